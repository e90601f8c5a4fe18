//! The image processor's configuration: `preprocessor_config.json`, or the `image_processor` section of
//! `processor_config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::families::FamilyRules;
use crate::files::describe_io_error;
use crate::image::Filter;

/// How an image processor computes the size of its tiles. In JSON, the keys of the object select the variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum ImageSize {
    /// Scales the image down until its longer side is at most `longest_edge`, then raises each side to at least
    /// `shortest_edge`; see [`resize_output_size`](crate::families::resize_output_size).
    Edges {
        /// Minimum length of each side, in pixels.
        shortest_edge: u32,
        /// Maximum length of each side, in pixels.
        longest_edge: u32,
    },
    /// Scales the image until its longer side is `longest_edge`. Small images are enlarged.
    LongestEdge {
        /// Length of the longer side, in pixels.
        longest_edge: u32,
    },
    /// Resizes to exactly this size, ignoring the aspect ratio.
    Exact {
        /// Height, in pixels.
        height: u32,
        /// Width, in pixels.
        width: u32,
    },
}

/// Configuration of an image processor. Field names are the JSON keys.
///
/// A value that is not supported is an error, so that no configuration is applied in part. Keys that the reference's
/// class does not read are ignored. [`Self::ignored_keys`] lists the ignored keys that the author of a file may have
/// expected to work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct ImageProcessorConfig {
    /// Whether images are converted to RGB. No effect here, because decoded pictures are always RGB.
    pub do_convert_rgb: bool,
    /// Whether images are resized to `size`.
    pub do_resize: bool,
    /// Target size of resizing.
    pub size: ImageSize,
    /// Resampling filter. In JSON, it is Pillow's number for the filter.
    #[serde(serialize_with = "serialize_filter")]
    pub resample: Filter,
    /// Whether values are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// Factor that scales values from `[0, 255]` to the range of `image_mean` and `image_std`.
    pub rescale_factor: f64,
    /// Whether values are normalised with `image_mean` and `image_std`.
    pub do_normalize: bool,
    /// Mean of each channel, subtracted after rescaling.
    pub image_mean: [f64; 3],
    /// Standard deviation of each channel. Values are divided by it after the mean is subtracted.
    pub image_std: [f64; 3],
    /// Whether tiles of different sizes are padded to the size of the largest.
    pub do_pad: bool,
    /// Whether parts of each image are added before the image itself: its four quarters in Idefics2, the tiles of a
    /// grid in Idefics3.
    pub do_image_splitting: bool,
    /// Side of a square tile, in pixels. `None` in families without tiles of a fixed size.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_tile_side")]
    pub max_image_size: Option<u32>,
}

/// An error in an image processor's configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageConfigError {
    /// The file could not be read.
    #[error("{path}: cannot be read: {}", describe_io_error(error))]
    Read {
        /// Path of the file.
        path: String,
        /// Error of the operating system.
        #[source]
        error: std::io::Error,
    },
    /// The file is not JSON, or not a JSON object.
    #[error("the image processor's configuration is not a JSON object: {reason}")]
    Json {
        /// Error of the JSON parser, or the value found instead of an object.
        reason: String,
    },
    /// The value of a field is invalid or not supported.
    #[error("image processor field `{field}` is {found}; expected {expected}")]
    Field {
        /// Path of the field, such as `size.height`.
        field: String,
        /// The value in the file, shortened.
        found: String,
        /// The values that are accepted.
        expected: &'static str,
    },
}

/// Keys that may change the pixels, and that are therefore read.
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
    "image_size", // IDEFICS v1 only
];

/// Keys that Transformers writes but that do not change the pixels computed from an image file.
const INERT_FIELDS: [&str; 13] = [
    "_processor_class",
    "_valid_processor_keys",
    "default_to_square", // only used if size is a single number, which is rejected
    "device",
    "disable_grouping",
    "feature_extractor_type",
    "image_num_channels",
    "image_seq_length",
    "input_data_format", // describes input arrays, but the inputs here are image files
    "model_input_names",
    "processor_class",
    "return_tensors",
    "use_fast", // this crate always reproduces the processor that works without torchvision
];

impl ImageProcessorConfig {
    /// Reads the configuration from `preprocessor_config.json`, or from the `image_processor` section of
    /// `processor_config.json`. The family knows the meaning and the default of each field.
    ///
    /// # Errors
    /// Any [`ImageConfigError`].
    pub fn from_file(path: impl AsRef<Path>, family: &dyn FamilyRules) -> Result<Self, ImageConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ImageConfigError::Read { path: path.display().to_string(), error })?;
        Self::from_json(&text, family)
    }

    /// Reads the configuration from the text of the file that [`Self::from_file`] reads.
    ///
    /// # Errors
    /// Any [`ImageConfigError`] except [`ImageConfigError::Read`].
    pub fn from_json(text: &str, family: &dyn FamilyRules) -> Result<Self, ImageConfigError> {
        let json = |reason: String| ImageConfigError::Json { reason };
        match serde_json::from_str(text).map_err(|error| json(error.to_string()))? {
            Value::Object(mut object) => match object.remove("image_processor") {
                Some(Value::Object(section)) => family.image_config(section),
                Some(other) => Err(field_error("image_processor", &other, "an object")),
                None => family.image_config(object),
            },
            other => Err(json(format!("found {}", short(&other)))),
        }
    }

    /// Returns the keys of `object` that have a value but no effect: unknown keys, and settings of other image
    /// processors (`auto_map`, `do_center_crop`). The reference ignores these keys too. `object` must be the JSON
    /// object that this configuration was read from.
    pub fn ignored_keys(&self, object: &Map<String, Value>) -> Vec<String> {
        let is_expected = |key: &str, value: &Value| match key {
            "max_image_size" | "video_sampling" => self.max_image_size.is_some(),
            "data_format" => value == "channels_first",
            "do_center_crop" => value == false,
            "crop_size" => object.get("do_center_crop").is_none_or(|crops| crops != true),
            _ => FIELDS.contains(&key) || INERT_FIELDS.contains(&key),
        };
        let ignored = object.iter().filter(|(key, value)| !value.is_null() && !is_expected(key, value));
        ignored.map(|(key, _)| key.clone()).collect()
    }

    /// Overrides this configuration with the fields of `object`. `types` are the accepted values of
    /// `image_processor_type`.
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

    /// Checks the ranges of all numbers: sides from 1 to 16384 pixels, finite means, and a finite, nonzero
    /// `rescale_factor` and `image_std`. `longest_edge` may be below `shortest_edge`; see
    /// [`resize_output_size`](crate::families::resize_output_size).
    ///
    /// # Errors
    /// [`ImageConfigError::Field`] for the first field that is out of range.
    pub fn validate(&self) -> Result<(), ImageConfigError> {
        const MAX_SIDE: u32 = 16_384; // a square tile of this side takes 3 GiB in f32
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

/// The conversion that serde uses. Its errors name the field. Missing fields get the defaults of Idefics2.
impl TryFrom<Map<String, Value>> for ImageProcessorConfig {
    type Error = ImageConfigError;

    fn try_from(object: Map<String, Value>) -> Result<Self, ImageConfigError> {
        Self::from_idefics2_object(&object)
    }
}

/// Returns whether `number` can be a factor or a divisor: as f32, it is finite and neither zero nor subnormal.
fn is_usable(number: f64) -> bool {
    (number as f32).is_normal()
}

pub(crate) fn field_error(field: &str, found: &Value, expected: &'static str) -> ImageConfigError {
    ImageConfigError::Field { field: field.to_owned(), found: short(found), expected }
}

pub(crate) fn number_error(field: &str, found: impl std::fmt::Display, expected: &'static str) -> ImageConfigError {
    ImageConfigError::Field { field: field.to_owned(), found: found.to_string(), expected }
}

/// Formats a value for an error message, shortened to 80 characters.
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
    // Release 5 of Transformers writes the keys of all kinds of sizes, with null for the keys that are not in use.
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

/// Reads `max_image_size`, which has the form `{longest_edge}`.
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
