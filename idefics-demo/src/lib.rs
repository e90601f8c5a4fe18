#![doc = include_str!("../README.md")]

mod background;
mod colour;
mod draw;
mod example;
mod mention;
mod model;
mod questions;
mod random;
mod scene;
mod shape;
mod task;
mod two_pictures;

pub use background::Background;
pub use colour::Colour;
pub use example::{Example, Form, corpus};
pub use model::{MODEL, write_model};
pub use random::{Purpose, rng};
pub use scene::{N_PATCH_CLASSES, PatchLabel, PatchShape, Scene, random_size};
pub use shape::{Kind, Shape};
pub use task::{Exchange, Task};
