//! Names of the packed formats.

use super::FourBitType;

/// A packed format: codes with scales (see [`super`]). Exhaustive, because code that handles formats must handle all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedFormat {
    /// [`Int8`](super::Int8): codes in I8, scales in F32.
    Int8,
    /// [`FourBit`](super::FourBit): codes in U8, scales in F32.
    FourBit(FourBitType),
    /// [`Q4`](super::Q4): codes in U8, scales in BF16.
    Q4,
}

impl PackedFormat {
    /// All packed formats.
    pub const ALL: [Self; 4] = [Self::Int8, Self::FourBit(FourBitType::Nf4), Self::FourBit(FourBitType::Fp4), Self::Q4];

    /// The name of the format in `--quantize`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::FourBit(kind) => kind.name(),
            Self::Q4 => "q4",
        }
    }
}
