//! A custom family in one file. A linear projection replaces the resampler, so an image has one vector per patch.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use idefics_generate::models::merge;
use idefics_generate::nn::{ConfigError, KvCache, Linear};
use idefics_generate::placement::Placement;
use idefics_generate::processor::Processor;
use idefics_generate::processor::families::Idefics2;
use idefics_generate::processor::image::{ImageConfigError, ImageProcessor, ImageProcessorConfig, ImageTile};
use idefics_generate::text::{Decoder, DecoderStack, TextConfig};
use idefics_generate::vision::{PatchLayout, VisionConfig, VisionTransformer};
use idefics_generate::{
    AssembledModel, Controls, Error, FamilyConfig, Generation, ImageBatch, ImageVectors, InputError, LogitsToKeep,
    Model, ModelConfig, ModelFamily, ModelShape, Prompts, QuantizationConfig, StepwiseEncoder,
};
use serde_json::{Value, json};

use crate::common::{SAME, difference, greedy};

const IMAGE: u32 = 7;

#[derive(Module, Debug)]
struct Toy {
    vision_model: VisionTransformer,
    projection: Linear,
    text_model: Decoder,
    lm_head: Linear,
    #[module(skip)]
    config: ToyConfig,
    #[module(skip)]
    shape: ModelShape,
}

/// Encodes a batch of images in a single step.
struct Run(Option<Tensor<3>>);

impl StepwiseEncoder for Run {
    fn step(&mut self, _n_layers: usize) -> Option<Tensor<3>> {
        self.0.take()
    }
}

impl Model for Toy {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn vision(&self, images: &ImageBatch<'_>) -> Result<Box<dyn StepwiseEncoder + '_>, InputError> {
        let positions = self.config.vision_config.positions_per_side();
        let layout = PatchLayout::new(&vec![images.grid; images.images.len()], positions);
        let features = self.vision_model.forward(images.upload(&self.device()), &layout);
        Ok(Box::new(Run(Some(self.projection.forward(features))))) // [n_images, patches, d]
    }

    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        _cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        merge::inputs_embeds(self.decoder(), prompts, image_hidden_states, IMAGE, self.shape.vocab_size)
    }

    fn decoder(&self) -> &dyn DecoderStack {
        &self.text_model
    }

    fn logits(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        self.lm_head.forward(hidden_states).cast(DType::F32)
    }
}

#[derive(Debug, Clone)]
struct ToyConfig {
    vision_config: VisionConfig,
    text_config: TextConfig,
}

impl FamilyConfig for ToyConfig {
    fn model_type(&self) -> &'static str {
        "toy"
    }

    fn shape(&self) -> ModelShape {
        ModelShape {
            vocab_size: self.text_config.vocab_size,
            text: self.text_config.clone(),
            patch_size: self.vision_config.patch_size,
            activation_bytes_per_patch: self.vision_config.activation_bytes_per_patch(),
            vision_layers: self.vision_config.num_hidden_layers,
        }
    }

    fn tied(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn quantization_config(&self) -> Option<&QuantizationConfig> {
        None
    }

    fn assemble(&self, placement: &Placement) -> Result<Box<dyn AssembledModel>, ConfigError> {
        let (device, d) = (&placement.device("model"), self.text_config.hidden_size);
        Ok(Box::new(Toy {
            vision_model: self.vision_config.init(device)?,
            projection: Linear::new(self.vision_config.hidden_size, d, device),
            text_model: self.text_config.init(device)?,
            lm_head: Linear::new_without_bias(d, self.text_config.vocab_size, device),
            config: self.clone(),
            shape: self.shape(),
        }))
    }

    fn parts(&self) -> &'static [(&'static str, &'static str)] {
        &[("vision_model", "vision_model."), ("text_model", "text_model.")]
    }

    fn vectors_per_image(&self) -> usize {
        4
    }

    fn image_placeholder(&self) -> Vec<u32> {
        vec![IMAGE; self.vectors_per_image()]
    }

    fn is_read_by_step(&self, name: &str, _sees_images: bool) -> bool {
        !name.starts_with("vision_model.")
    }

    fn check_processor(&self, _folder: &Path, _processor: &Processor) -> Result<(), Error> {
        Ok(())
    }

    fn image_processor(&self) -> Result<ImageProcessor, ImageConfigError> {
        ImageProcessor::new(&Idefics2, ImageProcessorConfig::default())
    }

    fn with_text_layers(&self, layers: usize) -> Box<dyn FamilyConfig> {
        let mut config = self.clone();
        config.text_config.num_hidden_layers = layers;
        Box::new(config)
    }
}

#[derive(Debug)]
struct Family;

impl ModelFamily for Family {
    fn model_type(&self) -> &'static str {
        "toy"
    }

    fn read(&self, _path: &Path, file: Value) -> Result<Box<dyn FamilyConfig>, Error> {
        let section = |key: &str| file[key].clone();
        Ok(Box::new(ToyConfig {
            vision_config: VisionConfig::from_section(section("vision_config"), &VisionConfig::siglip_so400m_980())
                .unwrap(),
            text_config: TextConfig::from_section(section("text_config"), &TextConfig::mistral_7b()).unwrap(),
        }))
    }
}

fn config(folder: &Path) -> ModelConfig {
    let config = json!({
        "model_type": "toy",
        "vision_config": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8},
        "text_config": {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    });
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let error = ModelConfig::from_file(&path).unwrap_err();
    assert!(matches!(error, Error::UnknownFamily { .. }), "{error}");
    ModelConfig::from_file_with(&path, &[&Family]).unwrap()
}

/// Uses two images with different numbers of patches, each in its own prompt.
#[test]
fn custom_family_runs_end_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let device = Device::flex();
    let model = config.random_model(&device, DType::F32, 3, |_| ()).unwrap();
    let model: &dyn Model = &*model;
    let planned = config.memory(None, &device, DType::F32).unwrap();
    assert!(planned.total() > 0 && config.downcast_ref::<ToyConfig>().is_some());

    for (width, height) in [(16, 16), (24, 8)] {
        let images = [image(width, height)];
        let patches = (width / 8) * (height / 8);
        let row = [vec![1, 2], vec![IMAGE; patches], vec![3, 4, 5]].concat();
        let prompts = Prompts::pad_left(std::slice::from_ref(&row), 0).unwrap();
        let logits = model.forward(&prompts, &images, LogitsToKeep::All).unwrap();
        assert_eq!(logits.dims(), [1, row.len(), 50]);

        let features = model.encode_images(&images).unwrap();
        let start = |features| Generation::start(model, &prompts, features, &greedy(4), Controls::default()).unwrap();
        let mut generation = start(features.clone());
        while generation.step().unwrap().is_some() {}
        let answer = generation.generated(0).to_vec();
        assert_eq!(answer.len(), 4);

        // A cached step must match the recomputed prompt.
        let longer = Prompts::pad_left(&[[row, answer[..1].to_vec()].concat()], 0).unwrap();
        let recomputed = model.prefill(&longer, features.clone(), &mut model.cache(&longer, 0)).unwrap();
        let mut cache = model.cache(&prompts, 4);
        model.prefill(&prompts, features, &mut cache).unwrap();
        let cached = model.decode(&answer[..1], &mut cache).unwrap();
        assert!(difference(cached, recomputed) <= SAME);
        let wrong = Prompts::pad_left(&[vec![1, IMAGE]], 0).unwrap();
        let error = model.forward(&wrong, &images, LogitsToKeep::All).unwrap_err();
        assert!(matches!(error, InputError::ImageTokenCount { .. }), "{error}");
    }
}

/// Returns an image with one vector per patch of 8 × 8 pixels.
fn image(width: usize, height: usize) -> ImageTile {
    let pixels = (0..3 * width * height).map(|index| (index % 17) as f32 / 17.0).collect();
    ImageTile::new(width, height, pixels).unwrap()
}

#[test]
fn images_with_different_numbers_of_vectors_share_a_prompt_and_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let model = config(folder.path()).random_model(&Device::flex(), DType::F32, 3, |_| ()).unwrap();
    let model: &dyn Model = &*model;
    // Images of equal size are not adjacent, so the results of the batches must be put back into the order of the
    // images. The third image repeats the first.
    let images = [image(24, 16), image(16, 16), image(24, 16), image(8, 8)];
    let counts = [6, 4, 6, 1];

    let encoded = model.encode_images(&images).unwrap().unwrap();
    assert_eq!(encoded.counts(), counts);
    assert!(encoded.clone().into_equal().is_none());
    for (image, vectors) in images.iter().zip(encoded.images()) {
        let alone = model.encode_images(std::slice::from_ref(image)).unwrap().unwrap();
        assert!(difference(alone.into_rows(), vectors) <= SAME);
    }

    let place = |count: usize| vec![IMAGE; count];
    let first = [vec![1], place(counts[0]), vec![2, 3], place(counts[1]), vec![4]].concat();
    let second = [place(counts[2]), place(counts[3]), vec![5]].concat();
    let prompts = Prompts::pad_left(&[first.clone(), second.clone()], 0).unwrap();
    let together = model.forward(&prompts, &images, LogitsToKeep::Last(1)).unwrap();
    for (row, (ids, images)) in [(first, &images[..2]), (second, &images[2..])].into_iter().enumerate() {
        let alone = Prompts::pad_left(&[ids], 0).unwrap();
        let alone = model.forward(&alone, images, LogitsToKeep::Last(1)).unwrap();
        assert!(difference(alone, together.clone().narrow(0, row, 1)) <= SAME, "row {row}");
    }
}
