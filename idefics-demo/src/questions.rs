//! Questions about one picture. Each question has exactly one right answer, which follows from the scene.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::colour::Colour;
use crate::mention::Mention;
use crate::random::pick;
use crate::scene::Scene;
use crate::shape::{Kind, Shape};
use crate::task::{Exchange, Task};

/// A question, or a prompt, and its answer.
pub(crate) type Pair = (String, String);

/// The answers for 0 to 3 shapes.
pub(crate) const NUMBERS: [&str; 4] = ["None.", "One.", "Two.", "Three."];

/// Relative weights of the questions with the answers 0, 1, 2 and 3. Larger counts are rare in scenes, so they get
/// larger weights.
const COUNT_WEIGHTS: [usize; 4] = [1, 1, 6, 12];
/// Minimum distance of a shape's centre from each centre line of the picture, as a fraction of the side. Answers that
/// name a quadrant, such as `Top left.`, require this distance.
const MIN_OFF_MIDDLE: f32 = 0.08;
/// Minimum vertical distance between two centres, as a fraction of the height, to ask which shape is above.
const MIN_RISE: f32 = 0.15;
/// Minimum ratio of two areas to call one shape larger.
const MIN_AREA_RATIO: f32 = 1.6;

/// Asks a question of `task`. Returns `None` if the scene allows no unambiguous question, or if the task is not a
/// question about one picture.
pub(crate) fn ask<R: Rng + ?Sized>(rng: &mut R, task: Task, scene: &Scene) -> Option<Exchange> {
    let (question, answer) = match task {
        Task::Caption => caption(rng, scene),
        Task::Colour => colour(rng, scene)?,
        Task::Shape => shape(rng, scene)?,
        Task::Count => count(rng, scene)?,
        Task::Place => first_possible(rng, scene, [left_or_right, above_or_below, whereabouts, whereabouts])?,
        // Size questions are listed twice, because sizes are often too similar to compare.
        Task::Comparison => {
            first_possible(rng, scene, [larger_of_two, larger_of_two, largest, largest, further_of_two, furthest])?
        }
        Task::YesNo => first_possible(rng, scene, [is_there, is_there, has_colour, more_than])?,
        Task::PromptedCaption | Task::Classification | Task::TwoPictures => return None,
    };
    Some(Exchange { task, question, answer })
}

/// Returns a prompt of `task` and its continuation, or `None` if the scene is not suitable or the task is not a
/// continuation.
pub(crate) fn continuation<R: Rng + ?Sized>(rng: &mut R, task: Task, scene: &Scene) -> Option<Pair> {
    match task {
        Task::PromptedCaption => {
            let prompt = pick(rng, ["This picture shows", "A picture of", "We see"]);
            Some((format!("<image>{prompt}"), format!(" {}.", listed(scene))))
        }
        Task::Classification => classification(rng, scene),
        _ => None,
    }
}

/// Tries the `forms` of a question in random order, and returns the first one that the scene allows.
fn first_possible<R: Rng + ?Sized, const N: usize>(
    rng: &mut R,
    scene: &Scene,
    mut forms: [fn(&mut R, &Scene) -> Option<Pair>; N],
) -> Option<Pair> {
    forms.shuffle(rng);
    forms.into_iter().find_map(|form| form(rng, scene))
}

fn caption<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Pair {
    let question = pick(rng, ["Describe this image.", "Describe the picture.", "What is in the picture?"]);
    (question.into(), sentence(&listed(scene)))
}

fn colour<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let shape = unique_shape(rng, scene, |shape| Mention::Kind(shape.kind))?;
    let question = pick(rng, ["What colour is the", "Which colour is the"]);
    Some((format!("{question} {}?", shape.kind), sentence(shape.colour.name())))
}

fn shape<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let shape = unique_shape(rng, scene, |shape| Mention::Colour(shape.colour))?;
    let question = pick(rng, ["What shape is", "Which shape is"]);
    Some((format!("{question} {}?", shape.colour), sentence(&format!("a {}", shape.kind))))
}

fn count<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let (shapes, n_shapes) = match rng.random_range(0..3) {
        0 => ("shapes".to_owned(), scene.shapes.len()),
        family => {
            let mentions = if family == 1 { Mention::kinds() } else { Mention::colours() };
            let with_count = |n| mentions.iter().copied().filter(move |mention| mention.count(scene) == n);
            let counts: Vec<_> = (0..NUMBERS.len())
                .filter(|&n| with_count(n).next().is_some())
                .flat_map(|n| std::iter::repeat_n(n, COUNT_WEIGHTS[n]))
                .collect();
            let n_shapes = *counts.choose(rng)?;
            (choose(rng, with_count(n_shapes))?.plural(), n_shapes)
        }
    };
    Some((format!("How many {shapes} are there?"), NUMBERS[n_shapes].into()))
}

fn left_or_right<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let [one, other] = two_shapes(rng, scene, |_, _| true)?;
    let answer = if one.centre[0] < other.centre[0] { "Left." } else { "Right." };
    Some((format!("Is the {} left or right of the {}?", one.name(), other.name()), answer.into()))
}

fn above_or_below<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let rise = |one: &Shape, other: &Shape| (other.centre[1] - one.centre[1]) / scene.height as f32;
    let [one, other] = two_shapes(rng, scene, |one, other| rise(one, other).abs() >= MIN_RISE)?;
    let answer = if rise(one, other) > 0.0 { "Above." } else { "Below." };
    Some((format!("Is the {} above or below the {}?", one.name(), other.name()), answer.into()))
}

fn whereabouts<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let off_middle = |shape: &Shape| {
        let [x, y] = shape.centre;
        [x / scene.width as f32 - 0.5, y / scene.height as f32 - 0.5]
    };
    let is_clear = |shape: &&Shape| off_middle(shape).into_iter().all(|off| off.abs() >= MIN_OFF_MIDDLE);
    let shape = choose(rng, scene.shapes.iter().filter(is_clear))?;
    let [right, down] = off_middle(shape).map(|off| off > 0.0);
    let answer = match (down, right) {
        (false, false) => "Top left.",
        (false, true) => "Top right.",
        (true, false) => "Bottom left.",
        (true, true) => "Bottom right.",
    };
    Some((format!("Where is the {}?", shape.name()), answer.into()))
}

fn larger_of_two<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let sizes = Sizes::of(scene);
    let [one, other] = two_shapes(rng, scene, |one, other| sizes.is_larger(one, other) || sizes.is_larger(other, one))?;
    let (large, small) = if sizes.is_larger(one, other) { (one, other) } else { (other, one) };
    let (word, answer) = pick(rng, [("larger", large), ("smaller", small)]);
    Some((format!("Which is {word}, the {} or the {}?", one.name(), other.name()), the_shape(answer)))
}

fn further_of_two<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let [one, other] = two_shapes(rng, scene, |_, _| true)?;
    let (left, right) = if one.centre[0] < other.centre[0] { (one, other) } else { (other, one) };
    let (word, answer) = pick(rng, [("left", left), ("right", right)]);
    Some((format!("Which is further {word}, the {} or the {}?", one.name(), other.name()), the_shape(answer)))
}

fn largest<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    if scene.shapes.len() < 2 {
        return None;
    }
    let sizes = Sizes::of(scene);
    let rivals = |subject: &Shape| {
        scene.shapes.iter().filter(|shape| shape.name() != subject.name()).copied().collect::<Vec<_>>()
    };
    let large = scene.shapes.iter().find(|shape| rivals(shape).iter().all(|rival| sizes.is_larger(shape, rival)));
    let small = scene.shapes.iter().find(|shape| rivals(shape).iter().all(|rival| sizes.is_larger(rival, shape)));
    let answers = [large.map(|shape| ("largest", shape)), small.map(|shape| ("smallest", shape))];
    let (word, answer) = choose(rng, answers.into_iter().flatten())?;
    Some((format!("Which shape is {word}?"), the_shape(answer)))
}

fn furthest<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let [left, .., right] = scene.shapes.as_slice() else { return None };
    let (word, answer) = pick(rng, [("left", left), ("right", right)]);
    Some((format!("Which shape is furthest {word}?"), the_shape(answer)))
}

fn is_there<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let mentions = match rng.random_range(0..4) {
        0 => Mention::kinds(),
        1 => Mention::colours(),
        _ => Mention::pairs(),
    };
    let yes = rng.random();
    let mut fitting: Vec<_> = mentions.into_iter().filter(|mention| mention.is_in(scene) == yes).collect();
    // Most false descriptions are half right: the colour occurs on a different shape, or the shape in a different
    // colour.
    if !yes && rng.random_ratio(3, 4) {
        fitting.retain(|&mention| match mention {
            Mention::Both(colour, kind) => Mention::Colour(colour).is_in(scene) || Mention::Kind(kind).is_in(scene),
            Mention::Kind(_) | Mention::Colour(_) => true,
        });
    }
    let mention = choose(rng, fitting)?;
    Some((format!("Is there {}?", mention.singular()), yes_or_no(yes)))
}

fn has_colour<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let shape = unique_shape(rng, scene, |shape| Mention::Kind(shape.kind))?;
    let yes = rng.random();
    let mut colours = if yes { vec![shape.colour] } else { Colour::ALL.to_vec() };
    colours.retain(|&colour| yes || colour != shape.colour);
    // In half of the cases, the wrong colour is that of another shape, if another colour occurs in the scene.
    if !yes && rng.random() && colours.iter().any(|&colour| Mention::Colour(colour).is_in(scene)) {
        colours.retain(|&colour| Mention::Colour(colour).is_in(scene));
    }
    let colour = choose(rng, colours)?;
    Some((format!("Is the {} {colour}?", shape.kind), yes_or_no(yes)))
}

fn more_than<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let yes = rng.random();
    // If the answer is "yes", the scene has one shape more than the number in the question. If it is "no", the scene
    // has exactly that number. Both answers are equally likely.
    let question = match scene.shapes.len() - usize::from(yes) {
        1 => "Is there more than one shape?",
        2 => "Are there more than two shapes?",
        _ => return None,
    };
    Some((question.into(), yes_or_no(yes)))
}

fn classification<R: Rng + ?Sized>(rng: &mut R, scene: &Scene) -> Option<Pair> {
    let [shape] = scene.shapes.as_slice() else { return None };
    let (right, mut categories) = if rng.random() {
        (shape.kind.name(), Kind::ALL.map(Kind::name).to_vec())
    } else {
        (shape.colour.name(), Colour::ALL.map(Colour::name).to_vec())
    };
    categories.retain(|&category| category != right);
    categories.shuffle(rng);
    categories.truncate(rng.random_range(1..=4));
    categories.push(right);
    categories.shuffle(rng);
    Some((format!("Categories: {}.\n<image>Category:", categories.join(", ")), format!(" {right}.")))
}

/// Compares the sizes of shapes.
struct Sizes<'a> {
    scene: &'a Scene,
    visible: Vec<u32>,
}

impl<'a> Sizes<'a> {
    fn of(scene: &'a Scene) -> Self {
        Self { scene, visible: scene.visible_areas() }
    }

    /// Returns whether `one` is clearly larger than `other`: in total area, visible area and radius.
    fn is_larger(&self, one: &Shape, other: &Shape) -> bool {
        let visible = |shape: &Shape| {
            let shapes = self.scene.shapes.iter().zip(&self.visible);
            shapes.filter(|&(candidate, _)| candidate == shape).map(|(_, &visible)| visible as f32).sum::<f32>()
        };
        one.area() >= MIN_AREA_RATIO * other.area()
            && visible(one) >= MIN_AREA_RATIO * visible(other)
            && one.radius > other.radius
    }
}

/// Chooses a random shape whose `mention` matches no other shape. Returns `None` if there is no such shape.
pub(crate) fn unique_shape<'a, R: Rng + ?Sized>(
    rng: &mut R,
    scene: &'a Scene,
    mention: fn(&Shape) -> Mention,
) -> Option<&'a Shape> {
    choose(rng, scene.shapes.iter().filter(|shape| mention(shape).count(scene) == 1))
}

/// Chooses a random ordered pair of different shapes that satisfies `fit`.
fn two_shapes<'a, R: Rng + ?Sized>(
    rng: &mut R,
    scene: &'a Scene,
    fit: impl Fn(&Shape, &Shape) -> bool,
) -> Option<[&'a Shape; 2]> {
    let n_shapes = scene.shapes.len();
    let pairs = (0..n_shapes).flat_map(|i| (0..n_shapes).map(move |j| (i, j))).filter(|&(i, j)| i != j);
    let pairs = pairs.map(|(i, j)| [&scene.shapes[i], &scene.shapes[j]]);
    choose(rng, pairs.filter(|[one, other]| fit(one, other)))
}

/// Chooses a uniformly random option. Returns `None` if there are no options.
pub(crate) fn choose<R: Rng + ?Sized, T>(rng: &mut R, options: impl IntoIterator<Item = T>) -> Option<T> {
    let mut options: Vec<T> = options.into_iter().collect();
    if options.is_empty() { None } else { Some(options.swap_remove(rng.random_range(0..options.len()))) }
}

/// Lists the shapes from left to right: `a red circle, a blue star and a green square`.
fn listed(scene: &Scene) -> String {
    enumeration(scene.shapes.iter().map(named))
}

/// Lists the shapes from left to right, each with its position, in tenths of the picture, and its size, as a grade.
pub(crate) fn listed_in_detail(scene: &Scene) -> String {
    enumeration(scene.shapes.iter().map(|shape| {
        let [x, y] = scene.tenths(shape);
        format!("{} at {x} {y} of size {}", named(shape), shape.grade(scene.width, scene.height))
    }))
}

/// Names a shape: `a red circle`.
fn named(shape: &Shape) -> String {
    Mention::Both(shape.colour, shape.kind).singular()
}

/// Joins names: `one, two and three`.
fn enumeration(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    match names.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        names => names.concat(),
    }
}

/// Turns a text into a sentence: capitalises the first letter and adds a full stop.
pub(crate) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).chain(['.']).collect()
}

/// Returns the answer that names a shape: `The red circle.`
fn the_shape(shape: &Shape) -> String {
    format!("The {}.", shape.name())
}

pub(crate) fn yes_or_no(yes: bool) -> String {
    if yes { "Yes.".into() } else { "No.".into() }
}
