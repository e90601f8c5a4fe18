//! Checkpoint folders and images shared by several tests.

use std::path::{Path, PathBuf};

use idefics_processor::image::ImageSource;
use idefics_processor::{Processor, ProcessorError};
use serde_json::{Map, Value, json};

/// Returns the path of a folder in `xtask/checkpoints`.
pub(crate) fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/checkpoints").join(name)
}

/// Returns a processor that has the full vocabulary of the real Idefics2.
pub(crate) fn real() -> &'static Processor {
    static REAL: std::sync::LazyLock<Processor> = std::sync::LazyLock::new(|| {
        Processor::from_folder(&checkpoint("mistral-tokenizer")).expect("the committed checkpoint loads")
    });
    &REAL
}

/// Returns a picture of 2 × 1 pixels, for tests of text.
pub(crate) fn dot() -> ImageSource {
    let mut png = Vec::new();
    image::RgbImage::from_pixel(2, 1, image::Rgb([10, 20, 30]))
        .write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)
        .expect("encoding to memory succeeds");
    png.into()
}

/// A temporary checkpoint folder that a test builds.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    /// Creates an empty folder.
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder can be created"))
    }

    /// Copies `xtask/checkpoints/<name>` without its weights. The copy resizes pictures to at most 4 pixels per side,
    /// so that tiles are small.
    pub(crate) fn copy_of(name: &str) -> Self {
        let folder = Self::empty();
        for entry in std::fs::read_dir(checkpoint(name)).expect("the committed checkpoint exists") {
            let entry = entry.expect("a directory entry can be read");
            if !entry.file_name().to_string_lossy().contains("safetensors") {
                std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("the file can be copied");
            }
        }
        folder.write("preprocessor_config.json", json!({"size": {"shortest_edge": 2, "longest_edge": 4}}))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(self, name: &str, content: impl ToString) -> Self {
        std::fs::write(self.path().join(name), content.to_string()).expect("the file can be written");
        self
    }

    pub(crate) fn remove(self, name: &str) -> Self {
        std::fs::remove_file(self.path().join(name)).expect("the file can be removed");
        self
    }

    /// Edits a JSON file.
    pub(crate) fn change(self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) -> Self {
        let text = std::fs::read_to_string(self.path().join(name)).expect("the file can be read");
        let mut json: Value = serde_json::from_str(&text).expect("the file is JSON");
        change(json.as_object_mut().expect("the JSON value is an object"));
        self.write(name, json)
    }

    /// Sets the chat template.
    pub(crate) fn template(self, template: &str) -> Self {
        self.write("chat_template.json", json!({ "chat_template": template }))
    }

    pub(crate) fn load(&self) -> Result<Processor, ProcessorError> {
        Processor::from_folder(self.path())
    }

    #[track_caller]
    pub(crate) fn error(&self) -> ProcessorError {
        match self.load() {
            Ok(_) => panic!("expected an error, but the folder loads"),
            Err(error) => error,
        }
    }
}
