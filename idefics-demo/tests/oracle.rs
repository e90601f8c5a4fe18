//! An independent oracle: answers questions from their words and the shapes' pixels, without the crate's question
//! code.

use idefics_demo::{Scene, Shape};

use crate::common::{pixels, visible_pixels};

/// Returns the only right answer. Panics if there is no right answer, or more than one.
pub(crate) fn answer(question: &str, scenes: &[Scene]) -> String {
    let words: Vec<&str> = question.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).collect();
    let scene = &scenes[0];
    match words.as_slice() {
        ["Describe", ..] | ["What", "is", "in", ..] => {
            let list = list(scene);
            format!("{}{}.", list[..1].to_uppercase(), &list[1..])
        }
        ["image", "This" | "A" | "We", ..] => format!(" {}.", list(scene)),
        ["Categories", categories @ .., "image", "Category"] => {
            let [shape] = scene.shapes.as_slice() else { panic!("expected a scene with one shape") };
            let right: Vec<_> = categories.iter().filter(|word| describes(word, shape)).collect();
            assert_eq!(right.len(), 1, "{question}");
            format!(" {}.", right[0])
        }
        ["What" | "Which", "colour", "is", "the", kind] => capital(only(scene, &[kind]).colour.name()),
        ["What", "colour", "is", "the", kind, "in", "the", ordinal, "picture"] => {
            capital(only(numbered(scenes, ordinal), &[kind]).colour.name())
        }
        ["Which", "shape", "is", "furthest", side] => {
            the_shape(extreme(scene, |shape| middle(scene, shape)[0], *side == "right"))
        }
        ["Which", "shape", "is", word @ ("largest" | "smallest")] => {
            the_shape(extreme(scene, |shape| visible(scene, shape), *word == "largest"))
        }
        ["What" | "Which", "shape", "is", colour] => format!("A {}.", only(scene, &[colour]).kind),
        ["How", "many", named @ .., "are", "there"] => number(matching(scene, named).len()),
        ["How", "many", "shapes", "are", "there", "in", "the", ordinal, "picture"] => {
            number(numbered(scenes, ordinal).shapes.len())
        }
        ["Is", "the", a, b, relation @ ("left" | "above"), "or", opposite, .., c, d] => {
            let axis = usize::from(*relation == "above");
            let [one, other] = [only(scene, &[a, b]), only(scene, &[c, d])].map(|shape| middle(scene, shape)[axis]);
            assert!((one - other).abs() > 0.1, "{question}");
            capital(if one < other { relation } else { opposite })
        }
        ["Where", "is", "the", colour, kind] => {
            let [x, y] = middle(scene, only(scene, &[colour, kind]));
            assert!((x - 0.5).abs() > 0.06 && (y - 0.5).abs() > 0.06, "{question}");
            format!("{} {}.", if y < 0.5 { "Top" } else { "Bottom" }, if x < 0.5 { "left" } else { "right" })
        }
        ["Which", "is", word @ ("larger" | "smaller"), "the", a, b, "or", "the", c, d] => {
            let [one, other] = [only(scene, &[a, b]), only(scene, &[c, d])];
            let [one_area, other_area] = [one, other].map(|shape| visible(scene, shape));
            assert!(one_area / other_area > 1.5 || other_area / one_area > 1.5, "{question}");
            the_shape(if (one_area > other_area) == (*word == "larger") { one } else { other })
        }
        ["Which", "is", "further", side, "the", a, b, "or", "the", c, d] => {
            let [one, other] = [only(scene, &[a, b]), only(scene, &[c, d])];
            let is_left = middle(scene, one)[0] < middle(scene, other)[0];
            the_shape(if is_left == (*side == "left") { one } else { other })
        }
        ["Is", "there", "more", "than", "one", "shape"] => yes_or_no(scene.shapes.len() > 1),
        ["Are", "there", "more", "than", "two", "shapes"] => yes_or_no(scene.shapes.len() > 2),
        ["Is", "there", "a" | "an", named @ ..] => yes_or_no(!matching(scene, named).is_empty()),
        ["Is", "the", kind, colour] => yes_or_no(only(scene, &[kind]).colour.name() == *colour),
        ["Which", "picture", "shows", "more", "shapes"] => {
            let [first, second] = [&scenes[0], &scenes[1]].map(|scene| scene.shapes.len());
            (if first > second {
                "The first."
            } else if first < second {
                "The second."
            } else {
                "Neither."
            })
            .into()
        }
        ["Which", "picture", "shows", "a" | "an", named @ ..] => {
            let shown = [&scenes[0], &scenes[1]].map(|scene| !matching(scene, named).is_empty());
            let answers = [["Neither.", "The second."], ["The first.", "Both."]];
            answers[usize::from(shown[0])][usize::from(shown[1])].into()
        }
        ["Do", "both", "pictures", "show", "a" | "an", named @ ..] => {
            yes_or_no(scenes.iter().all(|scene| !matching(scene, named).is_empty()))
        }
        _ => panic!("not a question of this crate: {question}"),
    }
}

fn describes(word: &str, shape: &Shape) -> bool {
    let kind = shape.kind.name();
    ["shape", "shapes", shape.colour.name(), kind].contains(&word)
        || word.strip_prefix(kind).is_some_and(|end| end == "s" || end == "es")
}

fn matching<'a>(scene: &'a Scene, words: &[&str]) -> Vec<&'a Shape> {
    scene.shapes.iter().filter(|shape| words.iter().all(|word| describes(word, shape))).collect()
}

/// Returns the only shape that matches all words.
fn only<'a>(scene: &'a Scene, words: &[&str]) -> &'a Shape {
    let shapes = matching(scene, words);
    assert_eq!(shapes.len(), 1, "{words:?} in {scene:?}");
    shapes[0]
}

fn numbered<'a>(scenes: &'a [Scene], ordinal: &str) -> &'a Scene {
    &scenes[if ordinal == "first" { 0 } else { 1 }]
}

/// Returns the centroid of the shape's pixels, as fractions of width and height.
fn middle(scene: &Scene, shape: &Shape) -> [f32; 2] {
    let pixels = pixels(scene, shape);
    let n_pixels = pixels.len() as f32;
    let [x, y] = [pixels.iter().map(|pixel| pixel.0).sum::<u32>(), pixels.iter().map(|pixel| pixel.1).sum::<u32>()];
    [(x as f32 / n_pixels + 0.5) / scene.width as f32, (y as f32 / n_pixels + 0.5) / scene.height as f32]
}

/// Returns the number of visible pixels of the shape.
fn visible(scene: &Scene, shape: &Shape) -> f32 {
    let index = scene.shapes.iter().position(|other| other == shape).unwrap();
    visible_pixels(scene, index).len() as f32
}

fn extreme(scene: &Scene, measure: impl Fn(&Shape) -> f32, largest: bool) -> &Shape {
    assert!(scene.shapes.len() > 1, "a superlative needs at least two shapes");
    let sign = if largest { 1.0 } else { -1.0 };
    scene.shapes.iter().max_by(|one, other| (sign * measure(one)).total_cmp(&(sign * measure(other)))).unwrap()
}

fn list(scene: &Scene) -> String {
    let mut shapes: Vec<_> = scene.shapes.iter().collect();
    shapes.sort_by(|one, other| middle(scene, one)[0].total_cmp(&middle(scene, other)[0]));
    let article = |name: &str| if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    let names: Vec<_> = shapes.iter().map(|shape| format!("{} {}", article(&shape.name()), shape.name())).collect();
    match names.as_slice() {
        [one] => one.clone(),
        [one, two] => format!("{one} and {two}"),
        [one, two, three] => format!("{one}, {two} and {three}"),
        _ => panic!("a scene must have one to three shapes"),
    }
}

fn number(n: usize) -> String {
    ["None.", "One.", "Two.", "Three."][n].into()
}

fn yes_or_no(yes: bool) -> String {
    (if yes { "Yes." } else { "No." }).into()
}

fn the_shape(shape: &Shape) -> String {
    format!("The {}.", shape.name())
}

fn capital(word: &str) -> String {
    format!("{}{}.", word[..1].to_uppercase(), &word[1..])
}
