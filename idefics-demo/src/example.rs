//! Samples to learn from or to measure with: pictures and what is said about them.

use rand::Rng;

use crate::colour::Colour;
use crate::questions;
use crate::random::{Purpose, pick, rng};
use crate::scene::{Scene, random_size};
use crate::shape::Kind;
use crate::task::{Exchange, Task};
use crate::two_pictures;

/// The tasks that a chat about one picture is made of.
const CHAT_TASKS: [Task; 7] =
    [Task::Caption, Task::Colour, Task::Shape, Task::Count, Task::Place, Task::Comparison, Task::YesNo];

/// What is shown and said in one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The pictures, in the order in which the text has them.
    pub scenes: Vec<Scene>,
    /// The text.
    pub form: Form,
}

/// The text of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// The chat of Idefics2: the pictures come first in the first user message, then the question; more exchanges may
    /// follow.
    Chat(Vec<Exchange>),
    /// Plain text that the model goes on with.
    Continuation {
        /// The sort of text.
        task: Task,
        /// What the model is given, with one `<image>` per scene.
        prompt: String,
        /// What the model adds, a space first and a full stop last.
        answer: String,
    },
}

impl Example {
    /// A mixture of everything: half are a single task, half a chat of one to four exchanges, a quarter of these about
    /// two pictures. Each picture has a size of its own.
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

    /// One exchange, or one continuation, of `task`, with pictures about which it can be asked. Each picture has a size
    /// of its own, see [`random_size`].
    pub fn single(rng: &mut (impl Rng + ?Sized), task: Task) -> Self {
        loop {
            let scenes = (0..task.n_pictures()).map(|_| scene_of_random_size(rng)).collect();
            if let Some(example) = Self::about(rng, scenes, task) {
                return example;
            }
        }
    }

    /// As [`Example::single`], all pictures `width` by `height` pixels.
    ///
    /// # Panics
    /// As [`Scene::random`].
    pub fn single_sized(rng: &mut (impl Rng + ?Sized), task: Task, width: u32, height: u32) -> Self {
        loop {
            let scenes = (0..task.n_pictures()).map(|_| Scene::random(rng, width, height)).collect();
            if let Some(example) = Self::about(rng, scenes, task) {
                return example;
            }
        }
    }

    /// One exchange, or one continuation, of `task` about given scenes; `None` where they do not allow it, or are not
    /// as many as the task is about.
    ///
    /// # Panics
    /// If a scene has no shapes or more than three.
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

    /// A scene told in full, shape after shape from the left: to learn from, as it says more than any question asks.
    ///
    /// ` a red circle at 2 7 of size 4 and a blue star at 8 3 of size 2.`: the two numbers are the position of
    /// the centre from the left and from the top, in tenths of the picture, rounded down; sizes go from 0 to 9, see [`Shape::grade`](crate::Shape::grade).
    ///
    /// # Panics
    /// If the scene has no shapes or more than three.
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

    /// A chat about one or two scenes, of `n_exchanges`, or fewer where the scenes do not give as many.
    ///
    /// No question comes twice. Colours, kinds and presence are not asked for once the chat has told them, with one
    /// exception: a caption, of which there is one at most, is the last word in three of four chats, but the first in
    /// the fourth.
    ///
    /// # Panics
    /// If there are no scenes or more than two, or if one has no shapes or more than three.
    pub fn chat(rng: &mut (impl Rng + ?Sized), scenes: Vec<Scene>, n_exchanges: usize) -> Self {
        check(&scenes);
        let mut exchanges: Vec<Exchange> = Vec::new();
        let mut caption = None;
        // A scene with little in it repeats itself.
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
                _ => panic!("a chat is about one or two pictures"),
            };
            match exchange {
                Some(exchange) if exchange.task == Task::Caption => caption = Some(exchange),
                Some(exchange) if !is_told(&exchange, &exchanges) => exchanges.push(exchange),
                _ => {}
            }
        }
        if let Some(caption) = caption {
            let place = if rng.random_ratio(3, 4) { exchanges.len() } else { 0 };
            exchanges.insert(place, caption);
        }
        Self { scenes, form: Form::Chat(exchanges) }
    }

    /// The text with the answers, as the chat template of Idefics2 writes it, or the prompt and its continuation. There
    /// is one `<image>` per scene, and no token for the beginning or the end.
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

/// The texts of `n` examples of [`Example::random`], to make a tokenizer from: those for training, numbers 0 to `n`.
pub fn corpus(seed: u64, n: usize) -> impl Iterator<Item = String> {
    (0..n as u64).map(move |index| Example::random(&mut rng(Purpose::Training, seed, index)).text())
}

fn scene_of_random_size(rng: &mut (impl Rng + ?Sized)) -> Scene {
    let (width, height) = random_size(rng);
    Scene::random(rng, width, height)
}

fn check(scenes: &[Scene]) {
    assert!(scenes.iter().all(|scene| (1..=3).contains(&scene.shapes.len())), "a scene has one to three shapes");
}

/// Whether the question has been asked, or its answer said: `What colour is the circle?` after words on a red circle.
fn is_told(exchange: &Exchange, earlier: &[Exchange]) -> bool {
    let names = names_in(exchange);
    earlier.iter().any(|before| {
        let said = names_in(before);
        let all_said = !names.is_empty() && names.iter().all(|name| said.contains(name));
        before.question == exchange.question
            || all_said && matches!(exchange.task, Task::Colour | Task::Shape | Task::YesNo)
    })
}

/// The colours and kinds that are named.
fn names_in(Exchange { question, answer, .. }: &Exchange) -> Vec<&'static str> {
    let text = format!("{question} {answer}").to_lowercase();
    let names = Colour::ALL.map(Colour::name).into_iter().chain(Kind::ALL.map(Kind::name));
    names.filter(|name| text.contains(name)).collect()
}
