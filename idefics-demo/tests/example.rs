//! Answers are right, unique, and hard to guess without the picture.

use std::collections::HashMap;

use idefics_demo::{Colour, Example, Exchange, Form, Kind, Purpose, Scene, Task, corpus, rng};
use proptest::prelude::*;

use crate::common::{exchanges, seed_and_size};
use crate::oracle::answer;

const QUESTION_TASKS: [Task; 8] = [
    Task::Colour,
    Task::Shape,
    Task::Count,
    Task::Place,
    Task::Comparison,
    Task::YesNo,
    Task::Classification,
    Task::TwoPictures,
];

fn check_answers(example: &Example) {
    for Exchange { question, answer: said, .. } in exchanges(example) {
        assert_eq!(said, answer(&question, &example.scenes), "{question} {:?}", example.scenes);
    }
}

proptest! {
    #[test]
    fn single_answers_match_oracle((seed, width, height) in seed_and_size()) {
        for task in Task::ALL {
            let example = Example::single_sized(&mut rng(Purpose::Training, seed, 0), task, width, height);
            prop_assert!(example.scenes.iter().all(|scene| (scene.width, scene.height) == (width, height)));
            prop_assert_eq!(example.scenes.len(), task.n_pictures());
            let exchanges = exchanges(&example);
            prop_assert_eq!(exchanges.len(), 1);
            prop_assert_eq!(exchanges[0].task, task);
            check_answers(&example);
        }
    }

    #[test]
    fn chats_are_right_without_repeats((seed, width, height) in seed_and_size(), n_scenes in 1_usize..=2, n in 1_usize..8) {
        let mut rng = rng(Purpose::Training, seed, 1);
        let scenes: Vec<_> = (0..n_scenes).map(|_| Scene::random(&mut rng, width, height)).collect();
        let n_shapes = scenes[0].shapes.len();
        let example = Example::chat(&mut rng, scenes, n);
        check_answers(&example);
        let exchanges = exchanges(&example);
        prop_assert!(exchanges.len() <= n && (n > 4 || n_shapes == 1 || exchanges.len() == n), "{:?}", exchanges);
        prop_assert!(exchanges.iter().filter(|exchange| exchange.task == Task::Caption).count() <= 1);
        for (i, exchange) in exchanges.iter().enumerate() {
            prop_assert!(exchanges[..i].iter().all(|earlier| earlier.question != exchange.question));
        }
    }

    #[test]
    fn detailed_caption_matches_scene((seed, width, height) in seed_and_size()) {
        let scene = Scene::random(&mut rng(Purpose::Evaluation, seed, 0), width, height);
        let Form::Continuation { prompt, answer, .. } = Example::in_detail(scene.clone()).form else { panic!() };
        prop_assert_eq!(prompt, "<image>In detail:");
        let parts: Vec<&str> = answer.trim_end_matches('.').split(", ").flat_map(|part| part.split(" and ")).collect();
        prop_assert_eq!(parts.len(), scene.shapes.len());
        for (part, shape) in parts.into_iter().zip(&scene.shapes) {
            let words: Vec<&str> = part.split_whitespace().collect();
            let [_, colour, kind, "at", x, y, "of", "size", size] = words[..] else { panic!("{part}") };
            prop_assert_eq!((colour, kind), (shape.colour.name(), shape.kind.name()));
            let [x, y] = [x, y].map(|tenths| tenths.parse::<f32>().unwrap());
            let in_tenth = |tenths: f32, share: f32| (tenths..tenths + 1.0).contains(&(10.0 * share));
            prop_assert!(in_tenth(x, shape.centre[0] / width as f32) && in_tenth(y, shape.centre[1] / height as f32));
            prop_assert_eq!(size.parse::<u8>().unwrap(), shape.grade(width, height));
        }
    }

    #[test]
    fn purposes_have_different_streams(seed: u64, index: u64) {
        let purposes = [Purpose::Training, Purpose::Evaluation, Purpose::Demo];
        let examples = purposes.map(|purpose| Example::random(&mut rng(purpose, seed, index)));
        prop_assert!(examples[0] != examples[1] && examples[1] != examples[2] && examples[2] != examples[0]);
        prop_assert_eq!(&examples[0], &Example::random(&mut rng(Purpose::Training, seed, index)));
    }
}

#[test]
fn rejects_wrong_number_of_pictures() {
    let mut rng = rng(Purpose::Evaluation, 0, 0);
    let scene = Scene::random(&mut rng, 64, 64);
    assert_eq!(Example::about(&mut rng, vec![scene.clone()], Task::TwoPictures), None);
    assert_eq!(Example::about(&mut rng, vec![scene.clone(), scene], Task::Caption), None);
}

#[test]
fn text_has_chat_template_format() {
    let exchange = |question: &str, answer: &str| Exchange {
        task: Task::Colour,
        question: question.into(),
        answer: answer.into(),
    };
    let scene = Scene::random(&mut rng(Purpose::Demo, 0, 0), 64, 64);
    let chat = Form::Chat(vec![exchange("What colour is the star?", "Red."), exchange("Is there a cross?", "No.")]);
    let example = Example { scenes: vec![scene.clone(), scene.clone()], form: chat };
    assert_eq!(
        example.text(),
        "User:<image><image>What colour is the star?<end_of_utterance>\nAssistant: Red.<end_of_utterance>\n\
         User: Is there a cross?<end_of_utterance>\nAssistant: No.<end_of_utterance>\n"
    );
    let continuation = Form::Continuation {
        task: Task::Classification,
        prompt: "Categories: red, blue.\n<image>Category:".into(),
        answer: " red.".into(),
    };
    let example = Example { scenes: vec![scene], form: continuation };
    assert_eq!(example.text(), "Categories: red, blue.\n<image>Category: red.");
}

#[test]
fn corpus_contains_all_words() {
    let texts: Vec<_> = corpus(7, 2000).collect();
    assert_eq!(texts.len(), 2000);
    assert_eq!(texts[..10], corpus(7, 10).collect::<Vec<_>>());
    let all = texts.concat();
    let names = Colour::ALL.map(Colour::name).into_iter().chain(Kind::ALL.map(Kind::plural));
    for word in
        names.chain(["<image><image>", "<end_of_utterance>\n", "Categories: ", "Neither.", "None.", "Bottom left."])
    {
        assert!(all.contains(word), "{word}");
    }
}

/// Returns the pattern of a question. A mention of both colour and kind becomes `_`, and a list of categories becomes
/// its length.
///
/// A colour or kind that is mentioned alone is kept, because it can help to guess the answer.
fn pattern(question: &str) -> String {
    if let Some(categories) = question.strip_prefix("Categories") {
        return format!("Categories: {}", categories.matches(',').count() + 1);
    }
    let mut pattern = question.to_owned();
    for colour in Colour::ALL {
        for kind in Kind::ALL {
            pattern = pattern.replace(&format!("{colour} {kind}"), "_");
        }
    }
    pattern.replace(" an ", " a ")
}

/// Returns the index of the answer among the alternatives in the question, or the answer itself if it is not one of
/// them.
fn choice(question: &str, answer: &str) -> String {
    let answer = answer.trim_matches(['.', ' ']).to_lowercase();
    let alternatives = question.trim_end_matches('?').split(['\n', ':', ',', '.']).flat_map(|part| part.split(" or "));
    let place = alternatives.map(str::trim).filter(|part| !part.is_empty()).position(|part| part == answer);
    place.map_or(answer, |place| place.to_string())
}

#[test]
fn answers_cannot_be_guessed() {
    let mut n_right = 0;
    for (number, task) in (0..).zip(QUESTION_TASKS) {
        // For each pattern of questions, the number of times that each answer is right.
        let mut answers: HashMap<String, HashMap<String, usize>> = HashMap::new();
        for index in 0..2500 {
            let example = Example::single(&mut rng(Purpose::Evaluation, number, index), task);
            let Exchange { question, answer, .. } = exchanges(&example).remove(0);
            *answers.entry(pattern(&question)).or_default().entry(choice(&question, &answer)).or_default() += 1;
        }
        let best: usize = answers.values().map(|answers| answers.values().max().unwrap()).sum();
        if std::env::var_os("SHOW_GUESSES").is_some() {
            let mut rows: Vec<_> = answers.iter().collect();
            rows.sort_by_key(|(_, answers)| std::cmp::Reverse(answers.values().sum::<usize>()));
            println!("{task}: {:.1} %", 0.04 * best as f32);
            rows.iter().take(12).for_each(|row| println!("    {row:?}"));
        }
        assert!(best <= 2500 * 6 / 10, "{task}: {best} of 2500 answers can be guessed");
        n_right += best;
    }
    println!("guessed: {:.1} %", 0.005 * n_right as f32);
    assert!(n_right < 20_000 * 4 / 10, "{n_right} of 20,000 answers can be guessed");
}
