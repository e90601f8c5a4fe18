//! `preprocessor_config.json` of a checkpoint, and the `image_processor` section of `processor_config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::io_words;
use crate::image::Filter;

/// The size rule of an image processor; which fields the JSON object has decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum ImageSize {
    /// The longer side at most `longest_edge`, the shorter side scaled with it; then each side at least
    /// `shortest_edge`. Both in pixels.
    Edges {
        /// Least side, in pixels.
        shortest_edge: u32,
        /// Greatest side, in pixels.
        longest_edge: u32,
    },
    /// The longer side becomes `longest_edge`, the shorter side is scaled with it; small pictures grow. In pixels.
    LongestEdge {
        /// The longer side, in pixels.
        longest_edge: u32,
    },
    /// Exactly this size, whatever the aspect, in pixels.
    Exact {
        /// Height, in pixels.
        height: u32,
        /// Width, in pixels.
        width: u32,
    },
}

/// What an image processor does; fields are the JSON keys.
///
/// A key of the reference with a value that cannot be honored is an error, so that no configuration is half obeyed. Keys
/// that the reference's class does not read change nothing; [`Self::ignored_keys`] lists those that the author of a file
/// may have expected to count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct ImageProcessorConfig {
    /// Whether images become RGB. Our pictures always are, so that both values mean the same here.
    pub do_convert_rgb: bool,
    /// Whether images are resized to `size`.
    pub do_resize: bool,
    /// The size rule.
    pub size: ImageSize,
    /// How images are resized, Pillow's number of the filter.
    #[serde(serialize_with = "serialize_filter")]
    pub resample: Filter,
    /// Whether values are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// Factor from `[0, 255]` to the range that `image_mean` and `image_std` are in.
    pub rescale_factor: f64,
    /// Whether values are normalized with `image_mean` and `image_std`.
    pub do_normalize: bool,
    /// Mean subtracted from each channel, after rescaling.
    pub image_mean: [f64; 3],
    /// Deviation that each channel is divided by, after rescaling.
    pub image_std: [f64; 3],
    /// Whether tiles of different sizes are padded to one.
    pub do_pad: bool,
    /// Whether an image is also given in parts, before the image itself: its four quarters in Idefics2, a grid of tiles in
    /// Idefics3.
    pub do_image_splitting: bool,
    /// Side of a square tile, in pixels. `None` in families whose tiles have no fixed size.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_tile_side")]
    pub max_image_size: Option<u32>,
}

/// Why an image processor's configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageConfigError {
    /// The file could not be read.
    #[error("{path}: cannot be read: {}", io_words(error))]
    Read {
        /// The file.
        path: String,
        /// What the operating system said.
        #[source]
        error: std::io::Error,
    },
    /// Not JSON, or not a JSON object.
    #[error("the image processor's configuration is not a JSON object: {reason}")]
    Json {
        /// What the parser found.
        reason: String,
    },
    /// A field whose value we cannot honor.
    #[error("image processor field {field} is {found}; expected {expected}")]
    Field {
        /// The JSON key, with its parents.
        field: String,
        /// The value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
}

/// Keys that change the pixels.
const FIELDS: [&str; 13] = [
    "do_convert_rgb",
    "do_image_splitting",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_processor_type",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
    "image_size", // of the first Idefics
];

/// Keys that Python writes and that do not change what is computed from a file's pixels.
const INERT_FIELDS: [&str; 13] = [
    "_processor_class",
    "_valid_processor_keys",
    "default_to_square", // only read where size is a single number, which is refused
    "device",
    "disable_grouping",
    "feature_extractor_type",
    "image_num_channels",
    "image_seq_length",
    "input_data_format", // of arrays; ours are files
    "model_input_names",
    "processor_class",
    "return_tensors",
    "use_fast", // the processor that works without torchvision is always the one that is reproduced
];

/// Image processor classes of the reference that this configuration describes.
const IMAGE_PROCESSOR_TYPES: [&str; 3] =
    ["Idefics2ImageProcessor", "Idefics2ImageProcessorFast", "Idefics2ImageProcessorPil"];

impl ImageProcessorConfig {
    /// Reads `preprocessor_config.json`, or a `processor_config.json` with an `image_processor` section.
    ///
    /// # Errors
    /// Any [`ImageConfigError`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ImageConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ImageConfigError::Read { path: path.display().to_string(), error })?;
        Self::from_json(&text)
    }

    /// Like [`Self::from_file`], from the file's text.
    ///
    /// # Errors
    /// Any [`ImageConfigError`] but [`ImageConfigError::Read`].
    pub fn from_json(text: &str) -> Result<Self, ImageConfigError> {
        let json = |reason: String| ImageConfigError::Json { reason };
        match serde_json::from_str(text).map_err(|error| json(error.to_string()))? {
            Value::Object(mut object) => match object.remove("image_processor") {
                Some(Value::Object(section)) => Self::from_object(section),
                Some(other) => Err(field_error("image_processor", &other, "an object")),
                None => Self::from_object(object),
            },
            other => Err(json(format!("found {}", short(&other)))),
        }
    }

    /// Reads the object that holds the fields themselves, and checks them. Absent and null fields have their default.
    ///
    /// # Errors
    /// [`ImageConfigError::Field`].
    pub fn from_object(object: Map<String, Value>) -> Result<Self, ImageConfigError> {
        let config = Self::default().with_fields(&object, &IMAGE_PROCESSOR_TYPES)?;
        if let ImageSize::LongestEdge { .. } = config.size {
            let expected = "{shortest_edge, longest_edge} or {height, width} in whole pixels";
            return Err(field_error("size", object.get("size").unwrap_or(&Value::Null), expected));
        }
        Ok(config)
    }

    /// Keys of `object`, from which this configuration was read, that have no effect although they have a value: unknown
    /// ones, and settings of other image processors (`auto_map`, `do_center_crop`). The reference ignores them too.
    pub fn ignored_keys(&self, object: &Map<String, Value>) -> Vec<String> {
        let says_nothing = |key: &str, value: &Value| match key {
            "max_image_size" | "video_sampling" => self.max_image_size.is_some(),
            "data_format" => value == "channels_first",
            "do_center_crop" => value == false,
            "crop_size" => object.get("do_center_crop").is_none_or(|crops| crops != true),
            _ => FIELDS.contains(&key) || INERT_FIELDS.contains(&key),
        };
        let ignored = object.iter().filter(|(key, value)| !value.is_null() && !says_nothing(key, value));
        ignored.map(|(key, _)| key.clone()).collect()
    }

    /// This configuration with the fields of a file of one of `types` laid over it.
    pub(crate) fn with_fields(
        self,
        object: &Map<String, Value>,
        types: &[&'static str],
    ) -> Result<Self, ImageConfigError> {
        let mut config = self;
        for (key, value) in object {
            if value.is_null() {
                continue;
            }
            match key.as_str() {
                "do_convert_rgb" => config.do_convert_rgb = boolean(key, value)?,
                "do_resize" => config.do_resize = boolean(key, value)?,
                "size" => config.size = size(value)?,
                "resample" => {
                    let known = value.as_u64().and_then(Filter::from_pillow);
                    config.resample = known.ok_or_else(|| {
                        let filters = "0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (hamming)";
                        field_error(key, value, filters)
                    })?;
                }
                "do_rescale" => config.do_rescale = boolean(key, value)?,
                "rescale_factor" => {
                    config.rescale_factor = value.as_f64().ok_or_else(|| field_error(key, value, "a number"))?;
                }
                "do_normalize" => config.do_normalize = boolean(key, value)?,
                "image_mean" => config.image_mean = per_channel(key, value)?,
                "image_std" => config.image_std = per_channel(key, value)?,
                "do_pad" => config.do_pad = boolean(key, value)?,
                "do_image_splitting" => config.do_image_splitting = boolean(key, value)?,
                "max_image_size" if config.max_image_size.is_some() => config.max_image_size = Some(tile_side(value)?),
                "image_processor_type" if !value.as_str().is_some_and(|name| types.contains(&name)) => {
                    return Err(field_error(key, value, types[0]));
                }
                _ => {} // see `ignored_keys`
            }
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks that the numbers make sense: sides from 1 to 16384 pixels, finite means, finite factors and deviations
    /// other than 0. `longest_edge` may be below `shortest_edge`, see [`edges_size`](crate::families::edges_size).
    ///
    /// # Errors
    /// [`ImageConfigError::Field`] naming the first field that does not.
    pub fn validate(&self) -> Result<(), ImageConfigError> {
        const MAX_SIDE: u32 = 16_384; // 3 GiB of f32 for one square tile
        let check_side = |field: &str, side: u32| {
            let fits = (1..=MAX_SIDE).contains(&side);
            fits.then_some(()).ok_or_else(|| number_error(field, side, "from 1 to 16384 pixels"))
        };
        match self.size {
            ImageSize::Edges { shortest_edge, longest_edge } => {
                check_side("size.shortest_edge", shortest_edge)?;
                check_side("size.longest_edge", longest_edge)?;
            }
            ImageSize::LongestEdge { longest_edge } => check_side("size.longest_edge", longest_edge)?,
            ImageSize::Exact { height, width } => {
                check_side("size.height", height)?;
                check_side("size.width", width)?;
            }
        }
        if let Some(side) = self.max_image_size {
            check_side("max_image_size.longest_edge", side)?;
        }
        if !is_usable(self.rescale_factor) {
            return Err(number_error("rescale_factor", self.rescale_factor, "a finite number other than 0"));
        }
        for (channel, &mean) in self.image_mean.iter().enumerate() {
            if !(mean as f32).is_finite() {
                return Err(number_error(&format!("image_mean[{channel}]"), mean, "a finite number"));
            }
        }
        for (channel, &std) in self.image_std.iter().enumerate() {
            if !is_usable(std) {
                return Err(number_error(&format!("image_std[{channel}]"), std, "a finite number other than 0"));
            }
        }
        Ok(())
    }
}

/// Lets a configuration be a field of another serde type; the message keeps the field's name.
impl TryFrom<Map<String, Value>> for ImageProcessorConfig {
    type Error = ImageConfigError;

    fn try_from(object: Map<String, Value>) -> Result<Self, ImageConfigError> {
        Self::from_object(object)
    }
}

/// Whether values may be multiplied and divided by it, in f32 too.
fn is_usable(number: f64) -> bool {
    (number as f32).is_normal()
}

pub(crate) fn field_error(field: &str, found: &Value, expected: &'static str) -> ImageConfigError {
    ImageConfigError::Field { field: field.to_owned(), found: short(found), expected }
}

pub(crate) fn number_error(field: &str, found: impl std::fmt::Display, expected: &'static str) -> ImageConfigError {
    ImageConfigError::Field { field: field.to_owned(), found: found.to_string(), expected }
}

/// A value for a message, cut where it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn boolean(field: &str, value: &Value) -> Result<bool, ImageConfigError> {
    value.as_bool().ok_or_else(|| field_error(field, value, "true or false"))
}

fn size(value: &Value) -> Result<ImageSize, ImageConfigError> {
    const EXPECTED: &str = "{shortest_edge, longest_edge}, {longest_edge} or {height, width} in whole pixels";
    let object = value.as_object().ok_or_else(|| field_error("size", value, EXPECTED))?;
    // Version 5 of the library writes every kind of size, those not in use as null.
    let sides: Vec<(&str, &Value)> =
        object.iter().map(|(key, side)| (key.as_str(), side)).filter(|(_, side)| !side.is_null()).collect();
    let side = |name: &str| {
        let (_, side) = sides.iter().find(|(key, _)| *key == name)?;
        side.as_u64().and_then(|pixels| u32::try_from(pixels).ok())
    };
    match (sides.len(), side("shortest_edge"), side("longest_edge"), side("height"), side("width")) {
        (2, Some(shortest_edge), Some(longest_edge), None, None) => {
            Ok(ImageSize::Edges { shortest_edge, longest_edge })
        }
        (1, None, Some(longest_edge), None, None) => Ok(ImageSize::LongestEdge { longest_edge }),
        (2, None, None, Some(height), Some(width)) => Ok(ImageSize::Exact { height, width }),
        _ => Err(field_error("size", value, EXPECTED)),
    }
}

/// `max_image_size`: `{longest_edge}`.
fn tile_side(value: &Value) -> Result<u32, ImageConfigError> {
    match size(value) {
        Ok(ImageSize::LongestEdge { longest_edge }) => Ok(longest_edge),
        _ => Err(field_error("max_image_size", value, "{longest_edge} in whole pixels")),
    }
}

fn per_channel(field: &str, value: &Value) -> Result<[f64; 3], ImageConfigError> {
    let expected = "a number or three numbers";
    if let Some(number) = value.as_f64() {
        return Ok([number; 3]);
    }
    let numbers: Option<Vec<f64>> = value.as_array().and_then(|values| values.iter().map(Value::as_f64).collect());
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| field_error(field, value, expected))
}

fn serialize_filter<S: serde::Serializer>(filter: &Filter, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(*filter as u8)
}

fn serialize_tile_side<S: serde::Serializer>(side: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    side.map(|longest_edge| ImageSize::LongestEdge { longest_edge }).serialize(serializer)
}
