//! `idefics demo`

use std::io::{self, Cursor, IsTerminal, Write};

use idefics_demo::{Example, Form, Purpose, Scene};
use idefics_generate::processor::image::ImageSource;
use idefics_generate::processor::{Content, Message, ProcessOptions, Sample};
use idefics_generate::{GenerationConfig, Idefics};
use image::{DynamicImage, ImageFormat};
use serde_json::json;

use crate::args::{DemoArgs, Global};
use crate::failure::Failure;
use crate::{model, signals};

/// Number of questions about each scene, including the caption.
const QUESTIONS: usize = 4;
/// Width of an image in the terminal, in character cells.
const PICTURE_CELLS: u32 = 32;

/// Draws scenes, shows them if the terminal can show images, asks questions about them and prints the answers. After a
/// wrong answer, the expected answer is printed.
pub(crate) fn run(global: &Global, args: &DemoArgs) -> Result<(), Failure> {
    if let Some(folder) = &args.save {
        std::fs::create_dir_all(folder).map_err(|error| Failure::io(folder, &error))?;
    }
    let model = model::load(global)?;
    let cancel = signals::cancel();
    let (mut right, mut asked) = (0, 0);
    for index in 0..args.count {
        let rng = &mut idefics_demo::rng(Purpose::Demo, global.seed, index as u64);
        let (width, height) = idefics_demo::random_size(rng);
        let scene = Scene::random(rng, width, height);
        let picture = DynamicImage::from(scene.render());
        let mut png = Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png).map_err(|error| Failure::input(error.to_string()))?;
        let png = png.into_inner();
        if let Some(folder) = &args.save {
            let path = folder.join(format!("scene-{index}.png"));
            std::fs::write(&path, &png).map_err(|error| Failure::io(&path, &error))?;
        }
        if !args.no_pictures && !global.json {
            show(&picture)?;
        }
        let Form::Chat(exchanges) = Example::chat(rng, vec![scene], QUESTIONS).form else { continue };
        for exchange in exchanges {
            if cancel.is_cancelled() {
                return Err(Failure::interrupted());
            }
            let answer = answer(&model, &png, &exchange.question, &cancel)?;
            let is_right = answer == exchange.answer;
            asked += 1;
            right += usize::from(is_right);
            let mut stdout = io::stdout().lock();
            if global.json {
                let line = json!({"scene": index, "question": exchange.question, "text": answer,
                    "expected": exchange.answer, "right": is_right});
                writeln!(stdout, "{line}")?;
            } else {
                let remark = if is_right { String::new() } else { format!("   (expected: {})", exchange.answer) };
                writeln!(stdout, "{:<44} {answer}{remark}", exchange.question)?;
            }
        }
        if !global.json {
            writeln!(io::stdout())?;
        }
    }
    if !global.json {
        writeln!(io::stdout(), "{right} of {asked} right")?;
    }
    Ok(())
}

fn answer(
    model: &Idefics,
    png: &[u8],
    question: &str,
    cancel: &idefics_generate::CancelToken,
) -> Result<String, Failure> {
    let content = vec![Content::image(ImageSource::Bytes(png.into())), Content::text(question)];
    let sample = Sample::chat(vec![Message::new("user", content)]);
    let options = GenerationConfig { max_new_tokens: Some(48), ..GenerationConfig::default() };
    let answers = model.generate(&[sample], &ProcessOptions::default(), &options, cancel)?;
    Ok(answers.into_iter().map(|answer| answer.text.trim().to_owned()).collect())
}

/// Shows the image through the terminal's graphics protocol, or as coloured blocks. Does nothing if standard output
/// is not a terminal.
fn show(picture: &DynamicImage) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        return Ok(());
    }
    let config = viuer::Config { absolute_offset: false, width: Some(PICTURE_CELLS), ..viuer::Config::default() };
    match viuer::print(picture, &config) {
        Ok(_) => Ok(()),
        Err(viuer::ViuError::Io(error)) => Err(error.into()),
        Err(_) => Ok(()), // the terminal cannot show images; the text is enough
    }
}
