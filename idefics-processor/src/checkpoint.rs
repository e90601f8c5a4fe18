//! Reads the text files of a checkpoint folder, with limits on their sizes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ProcessorError;
use crate::families::{self, FamilyRules};
use crate::files::{is_git_lfs_pointer, without_byte_order_mark};
use crate::image::ImageProcessorConfig;
use crate::video::{self, VideoSettings};
use crate::warning::ProcessorWarning;

/// Largest accepted size of `tokenizer.json`, in bytes. Real tokenizers have 2 to 20 MB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// Largest accepted size of every other JSON file, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Largest accepted size of a chat template, in bytes. Real templates have less than 20 kB.
const MAX_TEMPLATE_BYTES: u64 = 256 << 10;

/// Text files from another source than the folder, such as the metadata of a GGUF file.
#[derive(Debug, Clone, Default)]
pub struct ExtraFiles {
    /// Path of the file that the contents come from, for error messages.
    pub source: PathBuf,
    /// File contents by name. A file of the same name in the folder takes precedence, except for `config.json`.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A checkpoint folder.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    folder: PathBuf,
    others: ExtraFiles,
}

/// The content of a file, with its path for error messages.
#[derive(Debug, Clone)]
pub(crate) struct Sourced<T> {
    pub(crate) path: PathBuf,
    pub(crate) content: T,
}

/// The processor's configuration, without the tokenizer.
#[derive(Debug, Clone)]
pub(crate) struct ProcessorFiles {
    pub(crate) images: ImageProcessorConfig,
    /// The file that `images` was read from.
    pub(crate) images_path: PathBuf,
    pub(crate) image_seq_len: usize,
    /// `None` for families without videos.
    pub(crate) video: Option<Sourced<VideoSettings>>,
    pub(crate) chat_template: Option<Sourced<String>>,
    pub(crate) warnings: Vec<ProcessorWarning>,
}

/// The fields of `config.json` that the processor uses.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ModelHead {
    pub(crate) model_type: Option<String>,
    pub(crate) tokenizer_class: Option<String>,
}

impl Checkpoint {
    pub(crate) fn open(folder: &Path) -> Result<Self, ProcessorError> {
        let metadata =
            std::fs::metadata(folder).map_err(|error| ProcessorError::Read { path: folder.to_owned(), error })?;
        if !metadata.is_dir() {
            return Err(ProcessorError::NotThere {
                path: folder.to_owned(),
                expected: "a checkpoint folder, not a file",
            });
        }
        Ok(Self { folder: folder.to_owned(), others: ExtraFiles::default() })
    }

    /// Returns the same folder, with `others` as extra files.
    pub(crate) fn with_others(self, others: ExtraFiles) -> Self {
        Self { others, ..self }
    }

    /// Reads the fields of `config.json` that the processor uses. The file may be missing, because only the model needs
    /// it.
    pub(crate) fn model_head(&self) -> Result<ModelHead, ProcessorError> {
        Ok(self.json::<ModelHead>("config.json")?.map(|file| file.content).unwrap_or_default())
    }

    /// Returns the rules of the model family that `config.json` names.
    pub(crate) fn family(&self, head: &ModelHead) -> Result<&'static dyn FamilyRules, ProcessorError> {
        let model_type = head.model_type.as_deref();
        families::for_model_type(model_type).ok_or_else(|| ProcessorError::Family {
            path: self.folder.join("config.json"),
            model_type: shorten(model_type.unwrap_or_default()),
            supported: families::supported(),
        })
    }

    /// Reads the bytes of `tokenizer.json`, without a byte order mark.
    pub(crate) fn tokenizer(&self) -> Result<Sourced<Vec<u8>>, ProcessorError> {
        let missing = || ProcessorError::MissingFile { folder: self.folder.clone(), file: "tokenizer.json" };
        let file = self.bytes("tokenizer.json", MAX_TOKENIZER_BYTES)?.ok_or_else(missing)?;
        let mark_length = file.content.len() - without_byte_order_mark(&file.content).len();
        Ok(Sourced { content: file.content[mark_length..].to_vec(), ..file })
    }

    /// Reads a JSON file. Returns `None` if the file does not exist.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<Sourced<T>>, ProcessorError> {
        let Some(Sourced { path, content }) = self.bytes(name, MAX_CONFIG_BYTES)? else { return Ok(None) };
        match serde_json::from_slice(without_byte_order_mark(&content)) {
            Ok(content) => Ok(Some(Sourced { path, content })),
            Err(error) => Err(ProcessorError::Json { path, error }),
        }
    }

    /// Reads the processor's configuration from the files that exist. Missing fields get the defaults of the
    /// reference's classes.
    ///
    /// Source: `ProcessorMixin.get_processor_dict`, for the order in which files are searched for the chat template and
    /// for the image processor's section.
    pub(crate) fn processor(
        &self,
        family: &dyn FamilyRules,
        tokenizer_config: Option<&Sourced<Map<String, Value>>>,
    ) -> Result<ProcessorFiles, ProcessorError> {
        let processor = self.json::<Map<String, Value>>("processor_config.json")?;
        let nested = processor.as_ref().and_then(|file| Some((&file.path, file.content.get("image_processor")?)));
        let flat = match nested {
            Some(_) => None,
            None => self.json::<Map<String, Value>>("preprocessor_config.json")?,
        };
        let (images_path, section) = match (nested, flat) {
            (Some((path, section)), _) => match section {
                Value::Object(section) => (path.clone(), section.clone()),
                other => return Err(field(path, "image_processor", other, "an object")),
            },
            (None, Some(file)) => (file.path, file.content),
            (None, None) => (self.folder.join("preprocessor_config.json"), Map::new()),
        };
        let images = family.image_config(section.clone());
        let images = images.map_err(|error| ProcessorError::ImageConfig { path: images_path.clone(), error })?;
        let keys = images.ignored_keys(&section);
        let warnings = match keys.is_empty() {
            true => Vec::new(),
            false => vec![ProcessorWarning::IgnoredImageKeys { path: images_path.clone(), keys }],
        };

        let configured = processor.as_ref().and_then(|file| Some((&file.path, file.content.get("image_seq_len")?)));
        let image_seq_len = match (family.image_seq_len(configured.map(|(_, value)| value)), configured) {
            (Some(length), _) => length,
            (None, Some((path, value))) => return Err(field(path, "image_seq_len", value, "1 to 4096 tokens")),
            (None, None) => return Err(field(&images_path, "image_seq_len", &Value::Null, "1 to 4096 tokens")),
        };

        let video = self.video(family, processor.as_ref(), (&images_path, &section))?;
        let chat_template = self.chat_template(processor.as_ref(), tokenizer_config)?;
        Ok(ProcessorFiles { images, images_path, image_seq_len, video, chat_template, warnings })
    }

    /// Reads the settings for videos from the first source that exists: `video_processor` in `processor_config.json`,
    /// the file `video_preprocessor_config.json`, or the settings for pictures.
    ///
    /// Source: `BaseVideoProcessor.get_video_processor_dict`.
    fn video(
        &self,
        family: &dyn FamilyRules,
        processor: Option<&Sourced<Map<String, Value>>>,
        pictures: (&Path, &Map<String, Value>),
    ) -> Result<Option<Sourced<VideoSettings>>, ProcessorError> {
        let Some(rules) = family.video() else { return Ok(None) };
        let nested = processor.and_then(|file| Some((&file.path, file.content.get("video_processor")?)));
        let (path, section) = match nested.filter(|(_, section)| !section.is_null()) {
            Some((path, Value::Object(section))) => (path.clone(), section.clone()),
            Some((path, other)) => return Err(field(path, "video_processor", other, "an object")),
            None => match self.json::<Map<String, Value>>("video_preprocessor_config.json")? {
                Some(file) => (file.path, file.content),
                None => (pictures.0.to_owned(), pictures.1.clone()),
            },
        };
        match video::settings(&section, family, &rules) {
            Ok(content) => Ok(Some(Sourced { path, content })),
            Err(error) => Err(ProcessorError::ImageConfig { path, error }),
        }
    }

    /// Reads the chat template from the first of these files that has one: `processor_config.json`,
    /// `chat_template.json`, `chat_template.jinja`, `tokenizer_config.json`.
    fn chat_template(
        &self,
        processor: Option<&Sourced<Map<String, Value>>>,
        tokenizer_config: Option<&Sourced<Map<String, Value>>>,
    ) -> Result<Option<Sourced<String>>, ProcessorError> {
        let read_template = |file: &Sourced<Map<String, Value>>| -> Result<Option<Sourced<String>>, ProcessorError> {
            let content = match file.content.get("chat_template") {
                None | Some(Value::Null) => return Ok(None),
                Some(value) => named_default(value)
                    .ok_or_else(|| field(&file.path, "chat_template", value, "text, or an entry named `default`"))?,
            };
            check_size(&file.path, content.len() as u64, MAX_TEMPLATE_BYTES)?;
            Ok(Some(Sourced { path: file.path.clone(), content }))
        };
        if let Some(template) = processor.map(read_template).transpose()?.flatten() {
            return Ok(Some(template));
        }
        if let Some(template) = self.json("chat_template.json")?.as_ref().map(read_template).transpose()?.flatten() {
            return Ok(Some(template));
        }
        if let Some(Sourced { path, content }) = self.bytes("chat_template.jinja", MAX_TEMPLATE_BYTES)? {
            return match String::from_utf8(content) {
                Ok(content) => Ok(Some(Sourced { path, content })),
                Err(error) => Err(ProcessorError::Encoding { path, offset: error.utf8_error().valid_up_to() }),
            };
        }
        Ok(tokenizer_config.map(read_template).transpose()?.flatten())
    }

    fn bytes(&self, name: &str, limit: u64) -> Result<Option<Sourced<Vec<u8>>>, ProcessorError> {
        let path = self.folder.join(name);
        let other = self.others.files.get(name);
        let other = || other.map(|content| Sourced { path: self.others.source.clone(), content: content.clone() });
        if name == "config.json" && other().is_some() {
            return Ok(other());
        }
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(other()),
            Err(error) => return Err(ProcessorError::Read { path, error }),
        };
        if !metadata.is_file() {
            return Err(ProcessorError::NotThere { path, expected: "a regular file, not a folder or device" });
        }
        check_size(&path, metadata.len(), limit)?;
        let mut content = Vec::with_capacity(metadata.len() as usize);
        let read = File::open(&path).and_then(|file| file.take(limit + 1).read_to_end(&mut content));
        if let Err(error) = read {
            return Err(ProcessorError::Read { path, error });
        }
        check_size(&path, content.len() as u64, limit)?; // the file may have grown since its metadata was read
        if is_git_lfs_pointer(&content) {
            return Err(ProcessorError::GitLfsPointer { path });
        }
        Ok(Some(Sourced { path, content }))
    }
}

/// Returns the template in a `chat_template` field: the string itself, or the entry `default` of an object or of the
/// older list form (`[{"name": …, "template": …}]`).
fn named_default(value: &Value) -> Option<String> {
    match value {
        Value::String(template) => Some(template.clone()),
        Value::Object(templates) => templates.get("default")?.as_str().map(str::to_owned),
        Value::Array(templates) => {
            let default = templates.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"))?;
            default.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

fn check_size(path: &Path, bytes: u64, limit: u64) -> Result<(), ProcessorError> {
    match bytes > limit {
        true => Err(ProcessorError::FileTooLarge { path: path.to_owned(), bytes, limit }),
        false => Ok(()),
    }
}

/// Returns the error for a field with an invalid value.
pub(crate) fn field(path: &Path, field: &'static str, found: &Value, expected: &str) -> ProcessorError {
    ProcessorError::Field {
        path: path.to_owned(),
        field,
        found: shorten(&found.to_string()),
        expected: expected.to_owned(),
    }
}

/// Shortens text from a file to at most 80 characters, so that it fits in an error message.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
