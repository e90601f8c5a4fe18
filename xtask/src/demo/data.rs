//! What a step shows the model: it depends on the run's seed and the step alone.

use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use idefics_demo::{Example, Exchange, Form, Purpose, Scene, Task};
use idefics_generate::processor::image::ImageSource;
use idefics_generate::processor::{Content, Message, ProcessOptions, Processor, Sample};
use idefics_generate::train::TrainingBatch;
use idefics_generate::{LabelRecipe, Prompts};
use image::ImageFormat;
use rand::Rng;

use super::folder::SIDES;
use super::tokenizer::{END_OF_UTTERANCE, special_id};

/// Pictures of a micro-batch.
pub(super) const PICTURES: usize = 8;

/// Turns scenes and words into what the model reads.
pub(super) struct Data<'a> {
    processor: &'a Processor,
    /// `Assistant:`, after which an answer begins.
    answer_begins: Vec<u32>,
}

impl<'a> Data<'a> {
    pub(super) fn new(processor: &'a Processor) -> Result<Self> {
        let answer_begins = processor.tokenizer().encode("Assistant:", false)?;
        Ok(Self { processor, answer_begins })
    }

    /// Micro-batch `index` of the run: pictures of one size, and what is said about them.
    pub(super) fn micro_batch(&self, seed: u64, index: u64) -> Result<TrainingBatch> {
        let rng = &mut idefics_demo::rng(Purpose::Training, seed, index);
        let (width, height) = idefics_demo::random_size(rng);
        let scenes = |rng: &mut _, n: usize| (0..n).map(|_| Scene::random(rng, width, height)).collect::<Vec<_>>();
        let examples: Vec<Example> = match rng.random_range(0..20) {
            0..12 => {
                let chat = |_| {
                    let n_exchanges = rng.random_range(4..=7);
                    let scenes = scenes(rng, 1);
                    Example::chat(rng, scenes, n_exchanges)
                };
                (0..PICTURES).map(chat).collect()
            }
            12..15 => {
                let chat = |_| {
                    let n_exchanges = rng.random_range(2..=5);
                    let scenes = scenes(rng, 2);
                    Example::chat(rng, scenes, n_exchanges)
                };
                (0..PICTURES / 2).map(chat).collect()
            }
            15..17 => (0..PICTURES).map(|_| Example::single_sized(rng, Task::Caption, width, height)).collect(),
            17..19 => (0..PICTURES).map(|_| Example::single_sized(rng, Task::PromptedCaption, width, height)).collect(),
            _ => (0..PICTURES).map(|_| Example::single_sized(rng, Task::Classification, width, height)).collect(),
        };
        let samples = examples.iter().map(|example| sample(example, true)).collect::<Result<Vec<_>>>()?;
        let processed = self.processor.process(&samples, &ProcessOptions::default())?;
        let labels: Vec<Vec<i64>> = examples
            .iter()
            .zip(&processed.input_ids)
            .map(|(example, ids)| match &example.form {
                Form::Chat(_) => Ok(self.answers_of_chat(ids)),
                Form::Continuation { answer, .. } => self.end_of_text(ids, answer),
            })
            .collect::<Result<_>>()?;
        let prompts = Prompts::pad_left(&processed.input_ids, self.processor.tokenizer().pad_token_id_or_fallback())?;
        let padded = prompts.left_padding().iter().zip(&labels);
        let labels = padded.flat_map(|(&padding, row)| std::iter::repeat_n(-100, padding).chain(row.iter().copied()));
        Ok(TrainingBatch {
            labels: labels.collect(),
            images: processed.images.into_iter().flatten().collect(),
            recipe: LabelRecipe::IgnoreImageTokens,
            prompts,
        })
    }

    /// Every answer up to and with its end; nothing else.
    fn answers_of_chat(&self, ids: &[u32]) -> Vec<i64> {
        let end = special_id(END_OF_UTTERANCE);
        let mut labels = vec![-100; ids.len()];
        let mut slot = 0;
        while slot < ids.len() {
            if !ids[slot..].starts_with(&self.answer_begins) {
                slot += 1;
                continue;
            }
            slot += self.answer_begins.len();
            while slot < ids.len() {
                labels[slot] = i64::from(ids[slot]);
                slot += 1;
                if ids[slot - 1] == end {
                    break;
                }
            }
        }
        labels
    }

    /// The answer that ends the text, and the end.
    fn end_of_text(&self, ids: &[u32], answer: &str) -> Result<Vec<i64>> {
        let n_answer = self.processor.tokenizer().encode(answer, false)?.len() + 1;
        ensure!(n_answer < ids.len(), "the answer is longer than the text");
        let first = ids.len() - n_answer;
        Ok(ids.iter().enumerate().map(|(slot, &id)| if slot < first { -100 } else { i64::from(id) }).collect())
    }
}

/// The sample to read, with its answers, or up to where the first answer begins.
pub(super) fn sample(example: &Example, with_answers: bool) -> Result<Sample> {
    let images = example.scenes.iter().map(picture).collect::<Result<Vec<_>>>()?;
    Ok(match &example.form {
        Form::Chat(exchanges) => {
            let asked = if with_answers { exchanges.as_slice() } else { &exchanges[..1] };
            Sample::Messages { messages: messages(images, asked, with_answers), add_generation_prompt: !with_answers }
        }
        Form::Continuation { prompt, answer, .. } => {
            let text = if with_answers { format!("{prompt}{answer}</s>") } else { prompt.clone() };
            Sample::Text { text, images }
        }
    })
}

fn messages(images: Vec<ImageSource>, exchanges: &[Exchange], with_answers: bool) -> Vec<Message> {
    let mut images = images.into_iter().map(Content::image).collect::<Vec<_>>();
    let mut messages = Vec::new();
    for Exchange { question, answer, .. } in exchanges {
        let mut content = std::mem::take(&mut images); // before the first question
        content.push(Content::text(question));
        messages.push(Message { role: "user".to_owned(), content });
        if with_answers {
            messages.push(Message::text("assistant", answer));
        }
    }
    messages
}

/// The rendered scene as the bytes of a file.
fn picture(scene: &Scene) -> Result<ImageSource> {
    ensure!(scene.width.max(scene.height) as usize <= SIDES.0, "the scene would be resized");
    let mut bytes = Cursor::new(Vec::new());
    scene.render().write_to(&mut bytes, ImageFormat::Bmp).context("a rendered scene")?;
    Ok(ImageSource::Bytes(bytes.into_inner().into()))
}
