//! Draws a sheet of scenes, and prints a question about each of them:
//! `cargo run --release -p idefics-demo --example scenes -- sheet.png`.
#![allow(clippy::print_stdout)]

use idefics_demo::{Example, Form, Purpose, Task, rng};
use image::{Rgb, RgbImage, imageops};

const COLUMNS: u32 = 8;
const ROWS: u32 = 5;
/// Side of a cell in pixels: the largest picture and a margin.
const CELL: u32 = 136;

fn main() -> image::ImageResult<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "scenes.png".into());
    let mut sheet = RgbImage::from_pixel(COLUMNS * CELL, ROWS * CELL, Rgb([120, 160, 160]));
    let mut cell = 0;
    for index in 0.. {
        let task = Task::ALL[index as usize % Task::ALL.len()];
        let example = Example::single(&mut rng(Purpose::Demo, 0, index), task);
        if cell + example.scenes.len() as u32 > COLUMNS * ROWS {
            break;
        }
        let (first_row, first_column) = (cell / COLUMNS + 1, cell % COLUMNS + 1);
        for scene in &example.scenes {
            let (x, y) = (cell % COLUMNS * CELL, cell / COLUMNS * CELL);
            imageops::replace(&mut sheet, &scene.render(), i64::from(x) + 4, i64::from(y) + 4);
            cell += 1;
        }
        let (question, answer) = match &example.form {
            Form::Chat(exchanges) => (&exchanges[0].question, &exchanges[0].answer),
            Form::Continuation { prompt, answer, .. } => (prompt, answer),
        };
        println!("row {first_row}, column {first_column}, {task}: {question:?} {answer:?}");
    }
    sheet.save(path)
}
