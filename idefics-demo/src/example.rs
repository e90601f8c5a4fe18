//! Examples for training or evaluation: pictures and the text about them.

use rand::Rng;

use crate::colour::Colour;
use crate::questions;
use crate::random::{Purpose, pick, rng};
use crate::scene::{Scene, random_size};
use crate::shape::Kind;
use crate::task::{Exchange, Task};
use crate::two_pictures;

/// The tasks that occur in a chat about one picture.
const CHAT_TASKS: [Task; 7] =
    [Task::Caption, Task::Colour, Task::Shape, Task::Count, Task::Place, Task::Comparison, Task::YesNo];

/// One example: pictures and a text about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The pictures, in the order of their placeholders in the text.
    pub scenes: Vec<Scene>,
    /// The text, as a chat or a continuation.
    pub form: Form,
}

/// The text of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A chat in the format of Idefics2. The first user message starts with the pictures.
    Chat(Vec<Exchange>),
    /// Plain text that the model continues.
    Continuation {
        /// The type of text.
        task: Task,
        /// The input of the model, with one `<image>` per scene.
        prompt: String,
        /// The expected continuation. It starts with a space and ends with a full stop.
        answer: String,
    },
}

impl Example {
    /// Creates a random example. With probability 1/2 it has a single task, otherwise it is a chat of one to four
    /// exchanges. A quarter of the chats are about two pictures. Each picture has a random size, see [`random_size`].
    pub fn random(rng: &mut (impl Rng + ?Sized)) -> Self {
        if rng.random() {
            let task = pick(rng, Task::ALL);
            return Self::single(rng, task);
        }
        let n_scenes = if rng.random_ratio(1, 4) { 2 } else { 1 };
        let scenes = (0..n_scenes).map(|_| scene_of_random_size(rng)).collect();
        let n_exchanges = rng.random_range(1..=4);
        Self::chat(rng, scenes, n_exchanges)
    }

    /// Creates one exchange or continuation of `task`, with random pictures that are suitable for the task. Each
    /// picture has a random size, see [`random_size`].
    pub fn single(rng: &mut (impl Rng + ?Sized), task: Task) -> Self {
        loop {
            let scenes = (0..task.n_pictures()).map(|_| scene_of_random_size(rng)).collect();
            if let Some(example) = Self::about(rng, scenes, task) {
                return example;
            }
        }
    }

    /// Creates an example as [`Example::single`] does, but with pictures of `width` by `height` pixels.
    ///
    /// # Panics
    /// If a side is less than 32 pixels, or more than twice the other side.
    pub fn single_sized(rng: &mut (impl Rng + ?Sized), task: Task, width: u32, height: u32) -> Self {
        loop {
            let scenes = (0..task.n_pictures()).map(|_| Scene::random(rng, width, height)).collect();
            if let Some(example) = Self::about(rng, scenes, task) {
                return example;
            }
        }
    }

    /// Creates one exchange or continuation of `task` about the given scenes. Returns `None` if the scenes are not
    /// suitable for the task, or if their number is not [`Task::n_pictures`].
    ///
    /// # Panics
    /// If a scene does not have one to three shapes.
    pub fn about(rng: &mut (impl Rng + ?Sized), scenes: Vec<Scene>, task: Task) -> Option<Self> {
        check(&scenes);
        let form = match (scenes.as_slice(), task) {
            ([scene], Task::PromptedCaption | Task::Classification) => {
                let (prompt, answer) = questions::continuation(rng, task, scene)?;
                Form::Continuation { task, prompt, answer }
            }
            ([scene], _) => Form::Chat(vec![questions::ask(rng, task, scene)?]),
            ([first, second], Task::TwoPictures) => Form::Chat(vec![two_pictures::ask(rng, [first, second])?]),
            _ => return None,
        };
        Some(Self { scenes, form })
    }

    /// Creates a detailed caption of a scene, for training. It gives the position and size of each shape, from left to
    /// right.
    ///
    /// Example: ` a red circle at 2 7 of size 4 and a blue star at 8 3 of size 2.` The two numbers after `at` are the
    /// position of the centre from the left and from the top, in tenths of the picture, rounded down. Sizes are from
    /// 0 to 9, see [`Shape::grade`](crate::Shape::grade).
    ///
    /// # Panics
    /// If the scene does not have one to three shapes.
    pub fn in_detail(scene: Scene) -> Self {
        let scenes = vec![scene];
        check(&scenes);
        let form = Form::Continuation {
            task: Task::PromptedCaption,
            prompt: "<image>In detail:".into(),
            answer: format!(" {}.", questions::listed_in_detail(&scenes[0])),
        };
        Self { scenes, form }
    }

    /// Creates a chat about one or two scenes with `n_exchanges` exchanges, or fewer if the scenes do not allow that
    /// many.
    ///
    /// No question occurs twice. A question about a colour, a kind or the presence of a shape is only asked if earlier
    /// exchanges do not reveal the answer. A caption is exempt from this rule. There is at most one caption. It comes
    /// last with probability 3/4, and first otherwise.
    ///
    /// # Panics
    /// If there are not one or two scenes, or if a scene does not have one to three shapes.
    pub fn chat(rng: &mut (impl Rng + ?Sized), scenes: Vec<Scene>, n_exchanges: usize) -> Self {
        check(&scenes);
        let mut exchanges: Vec<Exchange> = Vec::new();
        let mut caption = None;
        // The number of attempts is limited, because a simple scene allows few different questions.
        for _ in 0..16 * n_exchanges {
            if exchanges.len() + usize::from(caption.is_some()) == n_exchanges {
                break;
            }
            let exchange = match scenes.as_slice() {
                [scene] => {
                    let task = pick(rng, CHAT_TASKS);
                    questions::ask(rng, task, scene)
                }
                [first, second] => two_pictures::ask(rng, [first, second]),
                _ => panic!("a chat needs one or two pictures"),
            };
            match exchange {
                Some(exchange) if exchange.task == Task::Caption => caption = Some(exchange),
                Some(exchange) if !is_already_answered(&exchange, &exchanges) => exchanges.push(exchange),
                _ => {}
            }
        }
        if let Some(caption) = caption {
            let place = if rng.random_ratio(3, 4) { exchanges.len() } else { 0 };
            exchanges.insert(place, caption);
        }
        Self { scenes, form: Form::Chat(exchanges) }
    }

    /// Returns the text including the answers: in the format of the Idefics2 chat template, or the prompt and its
    /// continuation. The text has one `<image>` per scene, and no token for its start or end.
    pub fn text(&self) -> String {
        match &self.form {
            Form::Chat(exchanges) => {
                let mut text = String::new();
                for (i, Exchange { question, answer, .. }) in exchanges.iter().enumerate() {
                    let images = if i == 0 { "<image>".repeat(self.scenes.len()) } else { " ".into() };
                    text +=
                        &format!("User:{images}{question}<end_of_utterance>\nAssistant: {answer}<end_of_utterance>\n");
                }
                text
            }
            Form::Continuation { prompt, answer, .. } => format!("{prompt}{answer}"),
        }
    }
}

/// Returns the texts of the first `n` training examples from [`Example::random`], to train a tokenizer.
pub fn corpus(seed: u64, n: usize) -> impl Iterator<Item = String> {
    (0..n as u64).map(move |index| Example::random(&mut rng(Purpose::Training, seed, index)).text())
}

fn scene_of_random_size(rng: &mut (impl Rng + ?Sized)) -> Scene {
    let (width, height) = random_size(rng);
    Scene::random(rng, width, height)
}

fn check(scenes: &[Scene]) {
    assert!(scenes.iter().all(|scene| (1..=3).contains(&scene.shapes.len())), "a scene must have one to three shapes");
}

/// Returns whether the question was asked before, or earlier exchanges reveal the answer. For example, an exchange
/// about a red circle reveals the answer to `What colour is the circle?`.
fn is_already_answered(exchange: &Exchange, earlier: &[Exchange]) -> bool {
    let names = names_in(exchange);
    earlier.iter().any(|before| {
        let said = names_in(before);
        let all_said = !names.is_empty() && names.iter().all(|name| said.contains(name));
        before.question == exchange.question
            || all_said && matches!(exchange.task, Task::Colour | Task::Shape | Task::YesNo)
    })
}

/// Returns the names of the colours and kinds that an exchange mentions.
fn names_in(Exchange { question, answer, .. }: &Exchange) -> Vec<&'static str> {
    let text = format!("{question} {answer}").to_lowercase();
    let names = Colour::ALL.map(Colour::name).into_iter().chain(Kind::ALL.map(Kind::name));
    names.filter(|name| text.contains(name)).collect()
}
