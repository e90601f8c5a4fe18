//! Names of the packed formats.

use std::num::NonZeroUsize;

use super::{FourBitType, GgufType};

/// A packed format: codes with scales (see [`super`]). The enum is exhaustive, because code that handles formats must
/// handle all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedFormat {
    /// [`Int8`](super::Int8): codes in I8, scales in F32.
    Int8,
    /// [`FourBit`](super::FourBit): codes in U8, scales in F32.
    FourBit(FourBitType),
    /// [`Q4`](super::Q4): codes in U8, scales in BF16.
    Q4,
    /// [`Int4`](super::Int4): codes in U8, scales and zero points in F32.
    Int4 {
        /// Number of inputs that share a scale and a zero point.
        group: NonZeroUsize,
    },
    /// [`Blocks`](super::Blocks): blocks in U8, which contain their scales.
    Blocks(GgufType),
}

impl PackedFormat {
    /// The packed formats that weights can be quantised to. [`Self::Int4`] and [`Self::Blocks`] can only be read from
    /// files.
    pub const ALL: [Self; 4] = [Self::Int8, Self::FourBit(FourBitType::Nf4), Self::FourBit(FourBitType::Fp4), Self::Q4];

    /// The name of the format as in the option `--quantize`, or the name of the GGUF type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::FourBit(kind) => kind.name(),
            Self::Q4 => "q4",
            Self::Int4 { .. } => "int4",
            Self::Blocks(kind) => kind.name(),
        }
    }
}
