//! Placement of a model's parts on devices. Parts that do not fit on any device stay in the memory-mapped files.
//!
//! Parts are placed in the order in which data passes through them, so that data rarely moves between devices. A part
//! is never split. The rules are those of `device_map="auto"` in Transformers, and the parts correspond to its
//! `_no_split_modules`. The placement decides only where a part is computed, so results are the same as on a single
//! device. Parts that stay in the files keep the format of the files, even if the other parts are converted.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use burn::tensor::Device;
use idefics_checkpoint::Checkpoint;
use serde::Serialize;

use crate::{DeviceChoice, DeviceError, Error, ModelConfig, WeightOptions};

/// A placement that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The text is not a list of devices with sizes.
    #[error("{text:?}: expected a list of devices with their memory, such as cuda:0=20GB,cpu=16GB")]
    MaxMemory {
        /// The text that was given.
        text: String,
    },
    /// A name in the list is not a device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A place for parts of a model: a device, or a share of a device, with a limit on the size of the weights there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceBudget {
    /// Name of the place, such as `cuda:0`, `cpu` or `cpu:1`. Several places may be on the same device.
    pub name: String,
    /// Maximum size of the weights, in bytes.
    pub bytes: u64,
    #[serde(skip)]
    choice: DeviceChoice,
}

impl DeviceBudget {
    /// Creates a place with `bytes` of memory on the device `name`. The names `cpu:0`, `cpu:1` and so on all mean the
    /// CPU.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`].
    pub fn new(name: &str, bytes: u64) -> Result<Self, DeviceError> {
        let is_numbered_cpu = name.strip_prefix("cpu:").is_some_and(|number| number.parse::<usize>().is_ok());
        let choice = if is_numbered_cpu { DeviceChoice::Cpu } else { name.parse()? };
        Ok(Self { name: name.to_owned(), bytes, choice })
    }
}

/// A list of places in the order in which they are filled, written as in `cuda:0=20GB,cpu=16GB`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MaxMemory(pub Vec<DeviceBudget>);

impl FromStr for MaxMemory {
    type Err = PlacementError;

    fn from_str(text: &str) -> Result<Self, PlacementError> {
        let place = |part: &str| {
            let wrong = || PlacementError::MaxMemory { text: text.to_owned() };
            let (name, size) = part.split_once('=').ok_or_else(wrong)?;
            let bytes = parse_bytes(size.trim()).ok_or_else(wrong)?;
            Ok(DeviceBudget::new(name.trim(), bytes)?)
        };
        text.split(',').map(place).collect::<Result<_, _>>().map(Self)
    }
}

/// Parses a size: `20GB`, `512MB`, `1.5GiB` or a number of bytes.
fn parse_bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, f64); 7] = [
        ("GIB", 1_073_741_824.0),
        ("MIB", 1_048_576.0),
        ("KIB", 1024.0),
        ("GB", 1e9),
        ("MB", 1e6),
        ("KB", 1e3),
        ("B", 1.0),
    ];
    let text = text.to_ascii_uppercase();
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((&text, 1.0));
    let bytes = number.trim().parse::<f64>().ok()? * factor;
    (bytes.is_finite() && (0.0..1e18).contains(&bytes)).then_some(bytes as u64)
}

/// A part of a model that is never split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Block {
    /// Common prefix of the part's tensor names, for example `model.layers.3`.
    pub name: String,
    /// Size of the part's weights on a device, in bytes.
    pub bytes: u64,
    /// Size of the part's weights in the files, in bytes.
    pub stored_bytes: u64,
}

/// Name of the last place, for parts that fit on no device: the memory-mapped files.
pub const FILES: &str = "files";

/// A plan that assigns each part of a model to a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    places: Vec<DeviceBudget>,
    /// Each part with the index of its place; the index after the last place means the files.
    blocks: Vec<(Block, usize)>,
}

impl Plan {
    /// Fills the places in order. A part that does not fit goes to the next place, and later parts never return to an
    /// earlier place. Parts that fit nowhere stay in the memory-mapped files, and the CPU computes them.
    pub fn new(blocks: Vec<Block>, MaxMemory(places): MaxMemory) -> Self {
        let mut at = 0;
        let mut free = places.first().map_or(0, |place| place.bytes);
        let place = |block: Block| {
            while at < places.len() && block.bytes > free {
                at += 1;
                free = places.get(at).map_or(0, |place| place.bytes);
            }
            free = free.saturating_sub(block.bytes);
            (block, at)
        };
        let blocks = blocks.into_iter().map(place).collect();
        Self { places, blocks }
    }

    /// Makes a plan for the model of a folder or of a `config.json`. `weights` gives the format of the weights, and
    /// `device` the kind of device that they are placed on. No weight is read.
    ///
    /// # Errors
    /// Those of [`ModelConfig::from_folder`]; [`Error::NotPlaceable`] if the model cannot be split.
    pub fn for_model(
        path: &Path,
        weights: impl Into<WeightOptions>,
        device: &Device,
        places: MaxMemory,
    ) -> Result<Self, Error> {
        let config = if path.is_dir() { ModelConfig::from_folder(path)? } else { ModelConfig::from_file(path)? };
        let weights = weights.into();
        // Errors in the weight files are reported when the weights are loaded.
        let checkpoint = Checkpoint::open_with(path, weights.pickles).ok();
        match config.blocks(checkpoint.as_ref(), device, weights)? {
            blocks if blocks.is_empty() => Err(Error::NotPlaceable { folder: path.to_owned() }),
            blocks => Ok(Self::new(blocks, places)),
        }
    }

    /// Returns every place with its parts and their total bytes, the files last. For a device, the bytes are those of
    /// the weights on the device; for the files, they are those of the weights in the files. Places without parts are
    /// included.
    pub fn by_place(&self) -> Vec<(&str, Vec<&Block>, u64)> {
        let names = self.places.iter().map(|place| place.name.as_str()).chain([FILES]);
        let of = |(index, name)| {
            let blocks: Vec<&Block> =
                self.blocks.iter().filter(|(_, place)| *place == index).map(|(block, _)| block).collect();
            let is_device = index < self.places.len();
            let bytes = blocks.iter().map(|block| if is_device { block.bytes } else { block.stored_bytes }).sum();
            (name, blocks, bytes)
        };
        names.enumerate().map(of).collect()
    }

    /// Opens the devices.
    ///
    /// # Errors
    /// [`DeviceError`] if a device is not available.
    pub fn open(&self) -> Result<Placement, DeviceError> {
        let mut devices = Vec::with_capacity(self.places.len() + 1);
        for place in &self.places {
            devices.push(place.choice.open()?.1);
        }
        devices.push(DeviceChoice::Cpu.open()?.1);
        let of = self.blocks.iter().map(|(block, place)| (block.name.clone(), devices[*place].clone())).collect();
        let in_files = self.blocks.iter().filter(|(_, place)| *place == self.places.len());
        let in_files = in_files.map(|(block, _)| format!("{}.", block.name)).collect();
        Ok(Placement { of, default: devices[0].clone(), in_files })
    }
}

/// Writes one line for each place that has parts: its name, its bytes, and its first and last part.
impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, blocks, bytes) in self.by_place() {
            let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { continue };
            let (unit, size) = if bytes < 1_000_000_000 { ("MB", 1e6) } else { ("GB", 1e9) };
            let amount = bytes as f64 / size;
            writeln!(formatter, "{name:<8} {amount:>9.3} {unit}  {} … {}", first.name, last.name)?;
        }
        Ok(())
    }
}

/// The device of each part of a model.
#[derive(Debug, Clone)]
pub struct Placement {
    of: BTreeMap<String, Device>,
    default: Device,
    /// Name prefixes of the tensors that stay in the files.
    in_files: Vec<String>,
}

impl Placement {
    /// Places the whole model on one device.
    pub fn single_device(device: &Device) -> Self {
        Self { of: BTreeMap::new(), default: device.clone(), in_files: Vec::new() }
    }

    /// Returns the device of a part.
    pub fn device(&self, block: &str) -> Device {
        self.of.get(block).unwrap_or(&self.default).clone()
    }

    /// Name prefixes of the tensors that stay in the files.
    pub(crate) fn in_files(&self) -> &[String] {
        &self.in_files
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::Idefics1Config;

    fn blocks(sizes: &[u64]) -> Vec<Block> {
        let block = |(index, &bytes)| Block { name: format!("b{index}"), bytes, stored_bytes: 4 * bytes };
        sizes.iter().enumerate().map(block).collect()
    }

    fn places(plan: &Plan) -> Vec<usize> {
        plan.blocks.iter().map(|(_, place)| *place).collect()
    }

    #[test]
    fn places_are_filled_strictly_in_order() {
        let two: MaxMemory = "cpu:0=10B,cpu:1=5B".parse().unwrap();
        // The third part does not fit in the first place. The small parts after it would fit there, but must not
        // return.
        let plan = Plan::new(blocks(&[4, 4, 4, 1, 1]), two.clone());
        assert_eq!(places(&plan), [0, 0, 1, 1, 2]);
        let bytes: Vec<u64> = plan.by_place().into_iter().map(|(_, _, bytes)| bytes).collect();
        assert_eq!(bytes, [8, 5, 4], "parts in the files have their stored size");
        assert_eq!(places(&Plan::new(blocks(&[11, 1]), two)), [2, 2], "parts that fit nowhere stay in the files");
        assert_eq!(places(&Plan::new(blocks(&[1]), MaxMemory::default())), [0]);
    }

    #[test]
    fn parses_sizes_with_units() {
        for (text, bytes) in [("20GB", 20_000_000_000), ("1.5GiB", 1_610_612_736), ("512mb", 512_000_000), ("7", 7)] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        assert!(["", "GB", "-1GB", "1TB2", "nan"].iter().all(|text| parse_bytes(text).is_none()));
        assert!(matches!("cpu".parse::<MaxMemory>(), Err(PlacementError::MaxMemory { .. })));
        assert!(matches!("tpu=1GB".parse::<MaxMemory>(), Err(PlacementError::Device(DeviceError::Unknown { .. }))));
    }

    #[test]
    fn plans_80b_shape_without_allocating() {
        let config = ModelConfig::from(Idefics1Config::idefics_80b());
        let device = DeviceChoice::Cpu.open().unwrap().1;
        let blocks = config.blocks(None, &device, DType::BF16).unwrap();
        let total = config.memory(None, &device, DType::BF16).unwrap().total();
        assert_eq!(blocks.iter().map(|block| block.bytes).sum::<u64>(), total);
        // All weights except small ones such as norms and gates are BF16.
        assert!((2 * 79_967_843_624..2 * 80_000_000_000).contains(&total));
        let in_nf4 = WeightOptions { quantize: "nf4".parse().unwrap(), ..WeightOptions::default() };
        let in_nf4: u64 = config.blocks(None, &device, in_nf4).unwrap().iter().map(|block| block.bytes).sum();
        assert!((total / 4..total / 3).contains(&in_nf4), "{in_nf4}");
        let plan = Plan::new(blocks, "cpu:0=24GB,cpu:1=24GB,cpu:2=64GB".parse().unwrap());
        let by_place = plan.by_place();
        assert_eq!(by_place.len(), 4);
        let sum: u64 = by_place.iter().map(|(_, _, bytes)| bytes).sum();
        assert_eq!(sum, total);
        assert!(by_place[..3].iter().zip([24, 24, 64]).all(|((_, _, bytes), limit)| *bytes <= limit * 1_000_000_000));
        let (files, blocks, _) = &by_place[3];
        assert_eq!((*files, blocks.last().unwrap().name.as_str()), (FILES, "lm_head"));
        assert!(plan.to_string().contains("model.vision_model …"), "{plan}");
    }
}
