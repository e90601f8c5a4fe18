//! The formats of codes and scales, by name.

use super::FourBitType;

/// How codes and scales become numbers; see [`super`]. Exhaustive: whoever handles formats handles all of them.
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
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Int8, Self::FourBit(FourBitType::Nf4), Self::FourBit(FourBitType::Fp4), Self::Q4];

    /// The name that `--quantize` gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::FourBit(kind) => kind.name(),
            Self::Q4 => "q4",
        }
    }
}
