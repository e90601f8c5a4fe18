//! Training data for the connector and the decoder. The data depends only on the step and the seed of the run.

use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use idefics_demo::{Example, Exchange, Form, Purpose, Scene, Task};
use idefics_generate::processor::image::{ImageSource, ImageTile};
use idefics_generate::processor::{Chat, Content, Message, ProcessOptions, Processor, Sample};
use idefics_train::{LabelRecipe, LabelledText, TrainingBatch};
use image::ImageFormat;
use rand::Rng;

use super::folder::SIDES;
use super::tokenizer::{END_OF_UTTERANCE, special_id};

/// Number of different images in a micro-batch.
pub(super) const PICTURES: usize = 8;

/// Maximum number of questions about an image or a pair of images.
const QUESTIONS: usize = 6;

/// The kind of text in a micro-batch. All rows have the same kind, so that their lengths are similar. Each row is about
/// a single image or about two images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Independent questions about one image. No question is in the context of another question, so that only the image
    /// helps to answer it.
    Questions,
    /// Independent questions about two images.
    TwoPictures,
    /// A conversation of several questions about one image.
    Conversation,
    Caption,
    PromptedCaption,
    /// Captions that include positions and sizes.
    InDetail,
    Classification,
}

/// Probability weights of the kinds in the first steps. Captions describe most of an image in few tokens.
const CAPTIONS: [(Kind, u32); 3] = [(Kind::Caption, 2), (Kind::PromptedCaption, 1), (Kind::InDetail, 3)];
/// Probability weights of the kinds in later steps.
const MIX: [(Kind, u32); 7] = [
    (Kind::Questions, 10),
    (Kind::TwoPictures, 5),
    (Kind::Conversation, 1),
    (Kind::Caption, 1),
    (Kind::PromptedCaption, 1),
    (Kind::InDetail, 1),
    (Kind::Classification, 1),
];

impl Kind {
    /// Creates the examples of one row. They share one image or pair of images.
    fn examples(self, rng: &mut impl Rng, width: u32, height: u32) -> Vec<Example> {
        let mut scene = || Scene::random(rng, width, height);
        match self {
            Self::Questions => {
                let scenes = vec![scene()];
                split_exchanges(Example::chat(rng, scenes, QUESTIONS))
            }
            Self::TwoPictures => {
                let scenes = vec![scene(), scene()];
                split_exchanges(Example::chat(rng, scenes, QUESTIONS))
            }
            Self::Conversation => {
                let scenes = vec![scene()];
                let n_exchanges = rng.random_range(3..=6);
                vec![Example::chat(rng, scenes, n_exchanges)]
            }
            Self::InDetail => vec![Example::in_detail(scene())],
            Self::Caption => vec![Example::single_sized(rng, Task::Caption, width, height)],
            Self::PromptedCaption => vec![Example::single_sized(rng, Task::PromptedCaption, width, height)],
            Self::Classification => vec![Example::single_sized(rng, Task::Classification, width, height)],
        }
    }
}

/// Splits a chat into one chat per question, with the same images. Leaves out captions, because they are long and have
/// micro-batches of their own.
fn split_exchanges(chat: Example) -> Vec<Example> {
    let Form::Chat(exchanges) = chat.form else { unreachable!("only chats are split") };
    let asked = exchanges.into_iter().filter(|exchange| exchange.task != Task::Caption);
    asked.map(|exchange| Example { scenes: chat.scenes.clone(), form: Form::Chat(vec![exchange]) }).collect()
}

/// Picks one of `options` with a probability proportional to its weight.
fn pick(rng: &mut impl Rng, options: &[(Kind, u32)]) -> Kind {
    let mut left = rng.random_range(0..options.iter().map(|(_, weight)| weight).sum());
    let chosen = options.iter().find(|(_, weight)| match left.checked_sub(*weight) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    chosen.expect("the number is below the sum of the weights").0
}

/// Turns scenes and texts into model inputs.
pub(super) struct Data<'a> {
    processor: &'a Processor,
    /// Token ids of `Assistant:`, which precedes every answer.
    answer_begins: Vec<u32>,
}

impl<'a> Data<'a> {
    pub(super) fn new(processor: &'a Processor) -> Result<Self> {
        let answer_begins = processor.tokenizer().encode("Assistant:", false)?;
        Ok(Self { processor, answer_begins })
    }

    /// Creates micro-batch `index` of the run. All its images have the same size. If `captions_only` is set, the kind
    /// of its texts is a kind of caption. Otherwise, it may be any kind.
    pub(super) fn micro_batch(&self, seed: u64, index: u64, captions_only: bool) -> Result<TrainingBatch> {
        let rng = &mut idefics_demo::rng(Purpose::Training, seed, index);
        let (width, height) = idefics_demo::random_size(rng);
        let kind = if captions_only { pick(rng, &CAPTIONS) } else { pick(rng, &MIX) };
        let n = if kind == Kind::TwoPictures { PICTURES / 2 } else { PICTURES };
        let mut rows = Vec::new();
        let mut images = Vec::new();
        let rows_of_examples =
            (0..n).map(|_| kind.examples(rng, width, height)).filter(|examples| !examples.is_empty());
        for examples in rows_of_examples {
            let (texts, pictures) = self.texts(&examples)?;
            rows.push(texts);
            images.extend(pictures.into_iter().next().unwrap_or_default()); // examples of a row have the same images
        }
        let pad_token_id = self.processor.tokenizer().pad_token_id_or_fallback();
        Ok(TrainingBatch::branching(&rows, images, LabelRecipe::IgnoreImageTokens, pad_token_id)?)
    }

    /// Returns the token ids of the examples with their answers as labels, and the images of each example.
    pub(super) fn texts(&self, examples: &[Example]) -> Result<(Vec<LabelledText>, Vec<Vec<ImageTile>>)> {
        let samples = examples.iter().map(|example| sample(example, true)).collect::<Result<Vec<_>>>()?;
        let processed = self.processor.process(&samples, &ProcessOptions::default())?;
        let texts = examples.iter().zip(processed.input_ids).map(|(example, ids)| {
            let labels = match &example.form {
                Form::Chat(_) => self.chat_labels(&ids),
                Form::Continuation { answer, .. } => self.continuation_labels(&ids, answer)?,
            };
            Ok(LabelledText { ids, labels })
        });
        Ok((texts.collect::<Result<_>>()?, processed.images))
    }

    /// Returns the labels for a chat: the tokens of every answer including its end token, and -100 elsewhere.
    fn chat_labels(&self, ids: &[u32]) -> Vec<i64> {
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

    /// Returns the labels for a continuation: the tokens of the answer at the end of the text and the end token, and
    /// -100 elsewhere.
    fn continuation_labels(&self, ids: &[u32], answer: &str) -> Result<Vec<i64>> {
        let n_answer = self.processor.tokenizer().encode(answer, false)?.len() + 1;
        ensure!(n_answer < ids.len(), "the answer is longer than the text");
        let first = ids.len() - n_answer;
        Ok(ids.iter().enumerate().map(|(slot, &id)| if slot < first { -100 } else { i64::from(id) }).collect())
    }
}

/// Creates the sample for an example: with its answers, or as a prompt for the first answer.
pub(super) fn sample(example: &Example, with_answers: bool) -> Result<Sample> {
    let images = example.scenes.iter().map(picture).collect::<Result<Vec<_>>>()?;
    Ok(match &example.form {
        Form::Chat(exchanges) => {
            let asked = if with_answers { exchanges.as_slice() } else { &exchanges[..1] };
            let messages = messages(images, asked, with_answers);
            if with_answers { Chat::new(messages).into() } else { Sample::chat(messages) }
        }
        Form::Continuation { prompt, answer, .. } => {
            let text = if with_answers { format!("{prompt}{answer}</s>") } else { prompt.clone() };
            Sample::Text { text, images, videos: Vec::new() }
        }
    })
}

fn messages(images: Vec<ImageSource>, exchanges: &[Exchange], with_answers: bool) -> Vec<Message> {
    let mut images = images.into_iter().map(Content::image).collect::<Vec<_>>();
    let mut messages = Vec::new();
    for Exchange { question, answer, .. } in exchanges {
        let mut content = std::mem::take(&mut images); // images come before the first question
        content.push(Content::text(question));
        messages.push(Message::new("user", content));
        if with_answers {
            messages.push(Message::text("assistant", answer));
        }
    }
    messages
}

/// Renders a scene to an image file in memory.
fn picture(scene: &Scene) -> Result<ImageSource> {
    ensure!(scene.width.max(scene.height) as usize <= SIDES.0, "the scene is so large that it would be resized");
    let mut bytes = Cursor::new(Vec::new());
    scene.render().write_to(&mut bytes, ImageFormat::Bmp).context("cannot encode a rendered scene")?;
    Ok(ImageSource::Bytes(bytes.into_inner().into()))
}
