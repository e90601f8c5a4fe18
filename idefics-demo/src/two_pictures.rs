//! Questions about two pictures.

use std::cmp::Ordering;

use rand::Rng;
use rand::seq::SliceRandom;

use crate::mention::Mention;
use crate::questions::{NUMBERS, Pair, choose, sentence, unique_shape, yes_or_no};
use crate::random::pick;
use crate::scene::Scene;
use crate::task::{Exchange, Task};

/// A function that asks one type of question about two pictures.
type Form<R> = fn(&mut R, [&Scene; 2]) -> Option<Pair>;

/// Asks a random question about two pictures. Returns `None` if the pictures allow no question.
pub(crate) fn ask<R: Rng + ?Sized>(rng: &mut R, pictures: [&Scene; 2]) -> Option<Exchange> {
    let mut forms: [Form<R>; 5] = [which_shows_more, which_shows, colour_in, count_in, do_both_show];
    forms.shuffle(rng);
    let (question, answer) = forms.into_iter().find_map(|form| form(rng, pictures))?;
    Some(Exchange { task: Task::TwoPictures, question, answer })
}

fn which_shows_more<R: Rng + ?Sized>(_: &mut R, [first, second]: [&Scene; 2]) -> Option<Pair> {
    let answer = match first.shapes.len().cmp(&second.shapes.len()) {
        Ordering::Greater => "The first.",
        Ordering::Less => "The second.",
        Ordering::Equal => "Neither.",
    };
    Some(("Which picture shows more shapes?".into(), answer.into()))
}

fn which_shows<R: Rng + ?Sized>(rng: &mut R, pictures: [&Scene; 2]) -> Option<Pair> {
    let is_somewhere = |mention: Mention| pictures.iter().any(|picture| mention.is_in(picture));
    let mut mentions = pick(rng, [Mention::kinds, Mention::colours, Mention::pairs])();
    // Only ask about combinations whose colour and kind both occur, possibly on different shapes.
    mentions.retain(|&mention| match mention {
        Mention::Both(colour, kind) => is_somewhere(Mention::Colour(colour)) && is_somewhere(Mention::Kind(kind)),
        Mention::Kind(_) | Mention::Colour(_) => true,
    });
    let mut answers = [
        ([true, false], "The first."),
        ([false, true], "The second."),
        ([true, true], "Both."),
        ([false, false], "Neither."),
    ];
    answers.shuffle(rng);
    answers.into_iter().find_map(|(shown, answer)| {
        let fitting = mentions.iter().filter(|mention| pictures.map(|picture| mention.is_in(picture)) == shown);
        let mention = choose(rng, fitting)?;
        Some((format!("Which picture shows {}?", mention.singular()), answer.into()))
    })
}

fn colour_in<R: Rng + ?Sized>(rng: &mut R, pictures: [&Scene; 2]) -> Option<Pair> {
    let (picture, ordinal) = one_of(rng, pictures);
    let shape = unique_shape(rng, picture, |shape| Mention::Kind(shape.kind))?;
    let question = format!("What colour is the {} in the {ordinal} picture?", shape.kind);
    Some((question, sentence(shape.colour.name())))
}

fn count_in<R: Rng + ?Sized>(rng: &mut R, pictures: [&Scene; 2]) -> Option<Pair> {
    let (picture, ordinal) = one_of(rng, pictures);
    let question = format!("How many shapes are there in the {ordinal} picture?");
    Some((question, NUMBERS[picture.shapes.len()].into()))
}

fn do_both_show<R: Rng + ?Sized>(rng: &mut R, pictures: [&Scene; 2]) -> Option<Pair> {
    let mentions = [Mention::kinds(), Mention::colours()].concat();
    let shown_in = |mention: &Mention| pictures.iter().filter(|picture| mention.is_in(picture)).count();
    let in_both = choose(rng, mentions.iter().filter(|mention| shown_in(mention) == 2))?;
    let in_one = choose(rng, mentions.iter().filter(|mention| shown_in(mention) == 1))?;
    let (mention, yes) = pick(rng, [(in_both, true), (in_one, false)]);
    Some((format!("Do both pictures show {}?", mention.singular()), yes_or_no(yes)))
}

/// Chooses one of the two pictures at random, and returns it with its ordinal.
fn one_of<'a, R: Rng + ?Sized>(rng: &mut R, [first, second]: [&'a Scene; 2]) -> (&'a Scene, &'static str) {
    pick(rng, [(first, "first"), (second, "second")])
}
