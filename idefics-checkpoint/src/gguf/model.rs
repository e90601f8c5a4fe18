//! Opens a text model and its vision tower as one model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{GgufError, GgufFault, GgufFile, GgufPaths, config, names, tokenizer};
use crate::opened::Opened;
use crate::{CheckpointError, CheckpointWarning};

/// Epsilon of the layer norms in the vision towers of all public models of the family.
pub(super) const LAYER_NORM_EPS: f64 = 1e-6;

/// The open GGUF files of an Idefics3 model, or of a text model alone.
#[derive(Debug, Clone)]
pub struct GgufModel {
    paths: GgufPaths,
    pub(super) text: GgufFile,
    pub(super) text_sizes: TextSizes,
    pub(super) vision: Option<Vision>,
}

/// A file of an original checkpoint other than its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFile {
    /// `config.json`, of the family Idefics3.
    Config,
    /// `generation_config.json`: the ids of the start, end and padding tokens.
    GenerationConfig,
    /// `tokenizer.json`.
    Tokenizer,
    /// `tokenizer_config.json`: special tokens by name, and the chat template.
    TokenizerConfig,
    /// `preprocessor_config.json`: how pictures are converted to pixel values.
    PreprocessorConfig,
    /// `processor_config.json`: the number of image tokens per tile.
    ProcessorConfig,
}

impl ModelFile {
    /// All files.
    pub const ALL: [Self; 6] = [
        Self::Config,
        Self::GenerationConfig,
        Self::Tokenizer,
        Self::TokenizerConfig,
        Self::PreprocessorConfig,
        Self::ProcessorConfig,
    ];

    /// Returns the name of the file in a model folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config.json",
            Self::GenerationConfig => "generation_config.json",
            Self::Tokenizer => "tokenizer.json",
            Self::TokenizerConfig => "tokenizer_config.json",
            Self::PreprocessorConfig => "preprocessor_config.json",
            Self::ProcessorConfig => "processor_config.json",
        }
    }
}

/// The open file of the vision tower and connector.
#[derive(Debug, Clone)]
pub(super) struct Vision {
    pub(super) file: GgufFile,
    pub(super) sizes: VisionSizes,
}

/// Sizes of a text model that determine the names of its tensors and the order of their rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextSizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

/// Sizes of a vision tower that determine the names and shapes of its tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct VisionSizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) image_size: usize,
    pub(super) patch_size: usize,
    pub(super) scale_factor: usize,
}

impl GgufModel {
    /// Finds the files of a model with [`GgufPaths::find`] and opens them. Returns `None` if there is no model at
    /// `path`.
    ///
    /// # Errors
    /// The errors of [`Self::open`] and [`GgufPaths::find`].
    pub fn find(path: &Path) -> Result<Option<Self>, CheckpointError> {
        GgufPaths::find(path)?.map(Self::open).transpose()
    }

    /// Opens the files of a model. Reads no weights.
    ///
    /// # Errors
    /// [`CheckpointError::Gguf`] if a file is invalid or has an unsupported architecture, or if the files do not belong
    /// together. [`CheckpointError::Io`] if a file cannot be read.
    pub fn open(paths: GgufPaths) -> Result<Self, CheckpointError> {
        let text = GgufFile::open(&paths.text)?;
        let text_sizes = text_sizes(&text)?;
        let vision = match &paths.mmproj {
            None => None,
            Some(path) => {
                let file = GgufFile::open(path)?;
                let sizes = vision_sizes(&file)?;
                let found = file.metadata().number("clip.vision.projection_dim")?.unwrap_or(text_sizes.hidden);
                if found != text_sizes.hidden {
                    let reason = format!(
                        "its image vectors have {found} values, but the text model {} needs {}; the file belongs to \
                         another model, so give the right one with --mmproj",
                        paths.text.display(),
                        text_sizes.hidden
                    );
                    return Err(file.error(GgufFault::Files { reason }).into());
                }
                Some(Vision { file, sizes })
            }
        };
        Ok(Self { paths, text, text_sizes, vision })
    }

    /// Returns the paths of the files.
    pub fn paths(&self) -> &GgufPaths {
        &self.paths
    }

    /// Builds the content of a file of the original checkpoint from the metadata.
    ///
    /// If there is no vision tower, `config.json` has `"text_only": true`, and the files about pictures are `None`.
    ///
    /// # Errors
    /// [`GgufError`], which names the key or tensor that is missing or not supported.
    pub fn file(&self, file: ModelFile) -> Result<Option<Value>, GgufError> {
        Ok(Some(match (file, &self.vision) {
            (ModelFile::Config, _) => config::config(self)?,
            (ModelFile::GenerationConfig, _) => config::generation(self)?,
            (ModelFile::Tokenizer, _) => tokenizer::tokenizer(&self.text.metadata())?,
            (ModelFile::TokenizerConfig, _) => tokenizer::tokenizer_config(&self.text.metadata())?,
            (ModelFile::PreprocessorConfig, Some(vision)) => config::preprocessor(vision)?,
            (ModelFile::ProcessorConfig, Some(vision)) => config::processor(vision),
            (ModelFile::PreprocessorConfig | ModelFile::ProcessorConfig, None) => return Ok(None),
        }))
    }

    /// Like [`Self::file`], but returns `None` if the folder of the text model has the file, because that file takes
    /// precedence. A `config.json` in the folder is ignored, because it may belong to the text model alone.
    ///
    /// # Errors
    /// The errors of [`Self::file`].
    pub fn file_unless_present(&self, file: ModelFile) -> Result<Option<Value>, GgufError> {
        match file != ModelFile::Config && self.paths.folder().join(file.name()).is_file() {
            true => Ok(None),
            false => self.file(file),
        }
    }

    /// Returns the tensors under the names of the original checkpoint, and warnings about the files.
    pub(crate) fn opened(&self) -> Result<Opened, GgufError> {
        let mut tensors = BTreeMap::new();
        names::add_text(&self.text, &self.text_sizes, &mut tensors)?;
        if let Some(Vision { file, sizes }) = &self.vision {
            names::add_vision(file, sizes, &mut tensors)?;
        }
        Ok(Opened { tensors, warnings: self.warnings()? })
    }

    fn warnings(&self) -> Result<Vec<CheckpointWarning>, GgufError> {
        let Some(Vision { file, .. }) = &self.vision else { return Ok(Vec::new()) };
        let found = file.metadata().float("clip.vision.attention.layer_norm_epsilon")?.unwrap_or(LAYER_NORM_EPS);
        if (found - LAYER_NORM_EPS).abs() < 0.01 * LAYER_NORM_EPS {
            return Ok(Vec::new());
        }
        let (path, found) = (PathBuf::from(file.path()), format!("{:e}", found as f32));
        Ok(vec![CheckpointWarning::GgufEpsilon { path, found }])
    }
}

fn text_sizes(file: &GgufFile) -> Result<TextSizes, GgufError> {
    let metadata = file.metadata();
    match metadata.required_text("general.architecture")? {
        "llama" => {}
        "clip" => {
            let reason = "it is the vision tower of a model (mmproj); give the file of the text model, and pass this \
                          file with --mmproj";
            return Err(file.error(GgufFault::Files { reason: reason.to_owned() }));
        }
        other => return Err(metadata.error("general.architecture", format!("{other:?}"), "`llama`")),
    }
    let hidden = metadata.required_number("llama.embedding_length")?;
    let heads = metadata.required_number("llama.attention.head_count")?;
    let rotary = metadata.number("llama.rope.dimension_count")?;
    let head_dim = match metadata.number("llama.attention.key_length")?.or(rotary) {
        Some(0) | None => hidden / heads,
        Some(head_dim) => head_dim,
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(found) = metadata.number(key)?.filter(|found| *found != head_dim) {
            return Err(metadata.error(key, found.to_string(), format!("{head_dim}, the width of a head")));
        }
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        let expected = "a number for which the width of a head is even";
        return Err(metadata.error("llama.attention.head_count", heads.to_string(), expected));
    }
    Ok(TextSizes { layers: metadata.required_number("llama.block_count")?, hidden, heads, head_dim })
}

fn vision_sizes(file: &GgufFile) -> Result<VisionSizes, GgufError> {
    let metadata = file.metadata();
    let architecture = metadata.required_text("general.architecture")?;
    if architecture != "clip" {
        let expected = "`clip`, the architecture of vision towers (mmproj)";
        return Err(metadata.error("general.architecture", format!("{architecture:?}"), expected));
    }
    let projector = metadata.required_text("clip.projector_type")?;
    if projector != "idefics3" {
        return Err(metadata.error("clip.projector_type", format!("{projector:?}"), "`idefics3`"));
    }
    if metadata.bool("clip.use_silu")? == Some(true) {
        return Err(metadata.error("clip.use_silu", "true", "false, because only GELU is supported"));
    }
    Ok(VisionSizes {
        layers: metadata.required_number("clip.vision.block_count")?,
        hidden: metadata.required_number("clip.vision.embedding_length")?,
        intermediate: metadata.required_number("clip.vision.feed_forward_length")?,
        image_size: metadata.required_number("clip.vision.image_size")?,
        patch_size: metadata.required_number("clip.vision.patch_size")?,
        scale_factor: metadata.required_number("clip.vision.projector.scale_factor")?,
    })
}
