//! Finds the GGUF files of a model.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{GgufError, GgufFault};

/// Names of weight files in other formats, and of their indices.
const OTHER_WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Paths of the GGUF files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufPaths {
    /// The file of the text model, or its first part if it was split.
    pub text: PathBuf,
    /// The file of the vision tower and connector; `None` for a text model.
    pub mmproj: Option<PathBuf>,
}

impl GgufPaths {
    /// Finds the files of a model. `path` is the GGUF file of a text model, or a folder with this file. The vision
    /// tower is the file `*mmproj*.gguf` in the same folder, if there is one.
    ///
    /// Returns `None` if there is no GGUF file, or if `path` is a folder with a `config.json` and weights in another
    /// format.
    ///
    /// # Errors
    /// [`GgufFault::Files`] if there are several models or vision towers, or if the text model is missing.
    pub fn find(path: &Path) -> Result<Option<Self>, GgufError> {
        if path.is_file() {
            return match is_gguf(path) {
                true => Self::of_file(path).map(Some),
                false => Ok(None),
            };
        }
        let there = |name: &str| path.join(name).exists();
        if there("config.json") && OTHER_WEIGHTS.into_iter().any(there) {
            return Ok(None);
        }
        let (mmprojs, texts): (Vec<PathBuf>, Vec<PathBuf>) = gguf_files(path).into_iter().partition(|p| is_mmproj(p));
        let error = |reason: String| Err(GgufError::new(path, GgufFault::Files { reason }));
        match texts.as_slice() {
            [] if mmprojs.is_empty() => Ok(None),
            [] => {
                error(format!("the folder has {}, but no text model; download the text model into it", names(&mmprojs)))
            }
            [text] => Ok(Some(Self { text: text.clone(), mmproj: one_mmproj(path, mmprojs)? })),
            _ => error(format!("the folder has several models: {}; give the path of one file", names(&texts))),
        }
    }

    /// Finds the text model as [`Self::find`] does, but uses `mmproj` as the vision tower. Weights in other formats in
    /// the folder are ignored. Returns `None` if there is no text model.
    ///
    /// # Errors
    /// [`GgufFault::Files`] if there are several text models.
    pub fn with_mmproj(path: &Path, mmproj: &Path) -> Result<Option<Self>, GgufError> {
        let text = match path.is_file() {
            true if !is_gguf(path) => return Ok(None),
            true => path.to_owned(),
            false => {
                let mut texts = gguf_files(path).into_iter().filter(|path| !is_mmproj(path));
                let Some(text) = texts.next() else { return Ok(None) };
                if let Some(second) = texts.next() {
                    let reason =
                        format!("the folder has several models: {}; give the path of one file", names(&[text, second]));
                    return Err(GgufError::new(path, GgufFault::Files { reason }));
                }
                text
            }
        };
        Ok(Some(Self { text, mmproj: Some(mmproj.to_owned()) }))
    }

    /// Lists every file that the model is read from: all parts of the text model, the vision tower, and the JSON files
    /// and templates in the folder.
    pub fn files(&self) -> Vec<PathBuf> {
        let is_text = |path: &Path| {
            let ends = |ending: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending));
            ends("json") || ends("jinja")
        };
        let beside = fs::read_dir(self.folder()).into_iter().flatten().flatten().map(|file| file.path());
        let mut files: Vec<PathBuf> = beside.filter(|path| is_text(path) && path.is_file()).collect();
        match Split::of(&self.text) {
            Some(split) => {
                files.extend((1..=split.count).map(|number| split.part(number)).filter(|path| path.is_file()))
            }
            None => files.push(self.text.clone()),
        }
        files.extend(self.mmproj.clone());
        files
    }

    fn of_file(path: &Path) -> Result<Self, GgufError> {
        if is_mmproj(path) {
            let reason = "it is the vision tower of a model (mmproj); give the GGUF file of the text model, and put \
                          this file into the same folder or pass it with --mmproj";
            return Err(GgufError::new(path, GgufFault::Files { reason: reason.to_owned() }));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mmprojs = gguf_files(folder).into_iter().filter(|path| is_mmproj(path)).collect();
        Ok(Self { text: path.to_owned(), mmproj: one_mmproj(folder, mmprojs)? })
    }

    /// Returns the folder of the text model. The JSON files and templates in this folder are part of the model.
    pub fn folder(&self) -> &Path {
        self.text.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }
}

/// Returns whether a file is a GGUF file, judging by the ending of its name or by its first bytes.
fn is_gguf(path: &Path) -> bool {
    let has_ending = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    path.is_file() && (has_ending || begins_with_gguf(path))
}

fn begins_with_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"GGUF"
}

/// Returns whether a file is a vision tower, judging by the name that llama.cpp's tools give it.
fn is_mmproj(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().contains("mmproj"))
}

/// Lists the GGUF files of a folder, sorted by name. Of a file that was split, only the first part is listed.
fn gguf_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let is_first = |path: &PathBuf| Split::of(path).is_none_or(|split| split.number == 1);
    // A GGUF file with the name of a weight file in another format is left out: the reader of that format reports it.
    let is_other = |path: &PathBuf| OTHER_WEIGHTS.iter().any(|name| path.ends_with(name));
    let files = files.filter(|path| !is_other(path) && is_gguf(path));
    let mut files: Vec<PathBuf> = files.filter(is_first).collect();
    files.sort();
    files
}

fn one_mmproj(folder: &Path, mut mmprojs: Vec<PathBuf>) -> Result<Option<PathBuf>, GgufError> {
    if mmprojs.len() > 1 {
        let reason = format!("the folder has several vision towers: {}; choose one with --mmproj", names(&mmprojs));
        return Err(GgufError::new(folder, GgufFault::Files { reason }));
    }
    Ok(mmprojs.pop())
}

/// Lists the names of the first few files.
fn names(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 4;
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let shown = paths.iter().take(SHOWN).map(name).collect::<Vec<_>>().join(", ");
    match paths.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The path of one part of a file that was split: `NAME-00002-of-00003.gguf`.
pub(super) struct Split {
    folder: PathBuf,
    name: String,
    /// Number of this part, from 1.
    pub(super) number: usize,
    /// Number of parts of the file.
    pub(super) count: usize,
}

impl Split {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let five_digits = |text: &str| -> Option<usize> {
            (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
        };
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        Some(Self { folder: path.parent()?.to_owned(), name: name.to_owned(), number, count })
    }

    pub(super) fn part(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{}-{number:05}-of-{:05}.gguf", self.name, self.count))
    }
}
