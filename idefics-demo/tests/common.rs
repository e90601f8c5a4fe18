//! Helpers shared by the tests.

use idefics_demo::{Example, Exchange, Form, Scene, Shape};
use proptest::prelude::*;

/// Generates a random seed, and a width and height in pixels.
pub(crate) fn seed_and_size() -> impl Strategy<Value = (u64, u32, u32)> {
    (any::<u64>(), 64_u32..=128, 64_u32..=128)
}

/// Returns `(x, y)` of all pixels whose centres are inside the shape, including pixels that other shapes hide.
pub(crate) fn pixels(scene: &Scene, shape: &Shape) -> Vec<(u32, u32)> {
    let all = (0..scene.height).flat_map(|y| (0..scene.width).map(move |x| (x, y)));
    all.filter(|&(x, y)| shape.contains(x as f32 + 0.5, y as f32 + 0.5)).collect()
}

/// Returns the pixels of the shape at `index` that no later shape covers.
pub(crate) fn visible_pixels(scene: &Scene, index: usize) -> Vec<(u32, u32)> {
    let mut pixels = pixels(scene, &scene.shapes[index]);
    let later = &scene.shapes[index + 1..];
    pixels.retain(|&(x, y)| !later.iter().any(|shape| shape.contains(x as f32 + 0.5, y as f32 + 0.5)));
    pixels
}

/// Returns the exchanges of an example. A continuation counts as one exchange.
pub(crate) fn exchanges(example: &Example) -> Vec<Exchange> {
    match &example.form {
        Form::Chat(exchanges) => exchanges.clone(),
        Form::Continuation { task, prompt, answer } => {
            vec![Exchange { task: *task, question: prompt.clone(), answer: answer.clone() }]
        }
    }
}
