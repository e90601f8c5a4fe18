//! Which part of a model goes where: devices in the order given, then what stays in the mapped files.
//!
//! Parts are placed in the order in which data meets them, so that it crosses from one place to the next as rarely as
//! can be; a part is never split. Source of the rules: `device_map="auto"` of Transformers, whose `_no_split_modules`
//! are the parts here. Where a part is decides what computes it, and nothing else: results are those of one device.
//! Parts in the files alone are held as the files have them, whatever the others are rounded to.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use burn::tensor::Device;
use idefics_checkpoint::Checkpoint;
use serde::Serialize;

use crate::{DeviceChoice, DeviceError, Error, ModelConfig, WeightOptions};

/// Why weights cannot be placed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// Not a list of places.
    #[error("{text:?}: expected places with their memory, such as cuda:0=20GB,cpu=16GB")]
    Places {
        /// What was given.
        text: String,
    },
    /// A place that is no device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Somewhere for weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// `cuda:0`, `cpu`, `cpu:1`: several places may be the same device.
    pub name: String,
    /// Bytes of weights that it takes.
    pub bytes: u64,
    #[serde(skip)]
    choice: DeviceChoice,
}

impl Place {
    /// A place with `bytes` of memory on the device called `name`; `cpu:0`, `cpu:1` and so on are all the CPU.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`].
    pub fn new(name: &str, bytes: u64) -> Result<Self, DeviceError> {
        let is_numbered_cpu = name.strip_prefix("cpu:").is_some_and(|number| number.parse::<usize>().is_ok());
        let choice = if is_numbered_cpu { DeviceChoice::Cpu } else { name.parse()? };
        Ok(Self { name: name.to_owned(), bytes, choice })
    }
}

/// `cuda:0=20GB,cpu=16GB`: places in the order in which they are filled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places(pub Vec<Place>);

impl FromStr for Places {
    type Err = PlacementError;

    fn from_str(text: &str) -> Result<Self, PlacementError> {
        let place = |part: &str| {
            let wrong = || PlacementError::Places { text: text.to_owned() };
            let (name, size) = part.split_once('=').ok_or_else(wrong)?;
            let bytes = parse_bytes(size.trim()).ok_or_else(wrong)?;
            Ok(Place::new(name.trim(), bytes)?)
        };
        text.split(',').map(place).collect::<Result<_, _>>().map(Self)
    }
}

/// `20GB`, `512MB`, `1.5GiB` or a number of bytes.
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
    /// What its tensors' names begin with: `model.layers.3`.
    pub name: String,
    /// Bytes of its weights on a device.
    pub bytes: u64,
    /// Bytes of its weights as the files have them.
    pub stored_bytes: u64,
}

/// The place of the files, behind all devices.
pub const FILES: &str = "files";

/// Where each part goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    places: Vec<Place>,
    /// Each part with the index of its place; one past the last is the files.
    blocks: Vec<(Block, usize)>,
}

impl Plan {
    /// Fills places in order. A part that does not fit goes to the next place, and all that follow it stay behind it;
    /// what fits nowhere stays in the mapped files, which the CPU computes from.
    pub fn new(blocks: Vec<Block>, Places(places): Places) -> Self {
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

    /// The plan for the model of a folder, or of a `config.json`, with weights held as `weights` says on devices like
    /// `device`. No weight is read.
    ///
    /// # Errors
    /// As [`ModelConfig::from_folder`]; [`Error::NotPlaceable`] for Idefics2.
    pub fn of_model(
        path: &Path,
        weights: impl Into<WeightOptions>,
        device: &Device,
        places: Places,
    ) -> Result<Self, Error> {
        let config = if path.is_dir() { ModelConfig::from_folder(path)? } else { ModelConfig::from_file(path)? };
        let weights = weights.into();
        // What is wrong with the files is said when they are loaded.
        let checkpoint = Checkpoint::open_with(path, weights.pickles).ok();
        match config.blocks(checkpoint.as_ref(), device, weights)? {
            blocks if blocks.is_empty() => Err(Error::NotPlaceable { folder: path.to_owned() }),
            blocks => Ok(Self::new(blocks, places)),
        }
    }

    /// Each place, the files last, with the parts that go there and the bytes that they take, or have in the files;
    /// places without a part included.
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

    /// Opens the devices: what each part's name begins with, and where it goes.
    ///
    /// # Errors
    /// [`DeviceError`] for a device that is not there.
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

/// One line a place: how much, and from which part to which.
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
    /// What the names of tensors begin with that stay in the files.
    in_files: Vec<String>,
}

impl Placement {
    /// Everything on one device.
    pub fn on(device: &Device) -> Self {
        Self { of: BTreeMap::new(), default: device.clone(), in_files: Vec::new() }
    }

    /// Where a part goes.
    pub fn device(&self, block: &str) -> Device {
        self.of.get(block).unwrap_or(&self.default).clone()
    }

    /// What the names of tensors begin with that stay in the files.
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
    fn places_are_filled_in_order_and_never_returned_to() {
        let two: Places = "cpu:0=10B,cpu:1=5B".parse().unwrap();
        // The third does not fit the first place any more; the small one behind it stays behind it.
        let plan = Plan::new(blocks(&[4, 4, 4, 1, 1]), two.clone());
        assert_eq!(places(&plan), [0, 0, 1, 1, 2]);
        let bytes: Vec<u64> = plan.by_place().into_iter().map(|(_, _, bytes)| bytes).collect();
        assert_eq!(bytes, [8, 5, 4], "in the files a part is as they have it");
        assert_eq!(places(&Plan::new(blocks(&[11, 1]), two)), [2, 2], "what fits nowhere stays in the files");
        assert_eq!(places(&Plan::new(blocks(&[1]), Places::default())), [0]);
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [("20GB", 20_000_000_000), ("1.5GiB", 1_610_612_736), ("512mb", 512_000_000), ("7", 7)] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        assert!(["", "GB", "-1GB", "1TB2", "nan"].iter().all(|text| parse_bytes(text).is_none()));
        assert!(matches!("cpu".parse::<Places>(), Err(PlacementError::Places { .. })));
        assert!(matches!("tpu=1GB".parse::<Places>(), Err(PlacementError::Device(DeviceError::Unknown { .. }))));
    }

    #[test]
    fn the_80b_shape_is_planned_without_memory() {
        let config = ModelConfig::from(Idefics1Config::idefics_80b());
        let device = DeviceChoice::Cpu.open().unwrap().1;
        let blocks = config.blocks(None, &device, DType::BF16).unwrap();
        let total = config.memory(None, &device, DType::BF16).unwrap().total();
        assert_eq!(blocks.iter().map(|block| block.bytes).sum::<u64>(), total);
        // All but norms, gates and the like are in BF16.
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
