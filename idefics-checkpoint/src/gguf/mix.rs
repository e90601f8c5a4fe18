//! Chooses the type of each tensor in a GGUF file to be written.

use std::str::FromStr;

use idefics_kernels::formats::GgufType;

/// The quantisation of a GGUF file, with llama.cpp's names. If most matrices have fewer than eight bits per value, the
/// head has at least six. The letters S (small) and M (medium) say how many other matrices also get more bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names that GGUF files and programs use")]
pub enum GgufMix {
    /// All tensors in f32.
    F32,
    /// Matrices in f16.
    F16,
    /// Matrices in bf16.
    BF16,
    /// Matrices in [`GgufType::Q8_0`].
    Q8_0,
    /// Matrices in [`GgufType::Q4_0`].
    Q4_0,
    /// Matrices in [`GgufType::Q4_1`].
    Q4_1,
    /// Matrices in [`GgufType::Q5_0`].
    Q5_0,
    /// Matrices in [`GgufType::Q5_1`].
    Q5_1,
    /// Matrices in [`GgufType::Q4_K`], but `attn_v` and `ffn_down` of the first layers in Q5_K.
    Q4_K_S,
    /// Matrices in [`GgufType::Q4_K`], but `attn_v` and `ffn_down` of half of the layers in Q6_K.
    Q4_K_M,
    /// Matrices in [`GgufType::Q5_K`].
    Q5_K_S,
    /// Matrices in [`GgufType::Q5_K`], but `attn_v` and `ffn_down` of half of the layers in Q6_K.
    Q5_K_M,
    /// Matrices in [`GgufType::Q6_K`].
    Q6_K,
}

/// The error for a name that is not the name of a [`GgufMix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("GGUF type {name:?} is unknown; expected {}", GgufMix::ALL.map(GgufMix::name).join(", "))]
pub struct UnknownGgufMix {
    /// The requested name.
    pub name: String,
}

impl GgufMix {
    /// All mixes.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4_K_S,
        Self::Q4_K_M,
        Self::Q5_K_S,
        Self::Q5_K_M,
        Self::Q6_K,
    ];

    /// Returns the name used in command lines, such as `q4_k_m`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q4_K_S => "q4_k_s",
            Self::Q4_K_M => "q4_k_m",
            Self::Q5_K_S => "q5_k_s",
            Self::Q5_K_M => "q5_k_m",
            Self::Q6_K => "q6_k",
        }
    }

    /// Returns the value of `general.file_type`. Source: `llama_ftype` of llama.cpp.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q4_K_S => 14,
            Self::Q4_K_M => 15,
            Self::Q5_K_S => 16,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// Returns the mix for the vision tower that belongs to a text model with this mix. The result has at least eight
    /// bits per value, because four bits lose too many details of pictures.
    #[must_use]
    pub fn of_vision(self) -> Self {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => self,
            _ => Self::Q8_0,
        }
    }

    fn base(self) -> GgufType {
        match self {
            Self::F32 => GgufType::F32,
            Self::F16 => GgufType::F16,
            Self::BF16 => GgufType::BF16,
            Self::Q8_0 => GgufType::Q8_0,
            Self::Q4_0 => GgufType::Q4_0,
            Self::Q4_1 => GgufType::Q4_1,
            Self::Q5_0 => GgufType::Q5_0,
            Self::Q5_1 => GgufType::Q5_1,
            Self::Q4_K_S | Self::Q4_K_M => GgufType::Q4_K,
            Self::Q5_K_S | Self::Q5_K_M => GgufType::Q5_K,
            Self::Q6_K => GgufType::Q6_K,
        }
    }

    /// Returns the type of a matrix with rows of `row_len` values.
    ///
    /// Source: `llama_tensor_get_type` of llama.cpp, without an importance matrix, for models of up to 65 billion
    /// parameters.
    pub(super) fn kind(self, part: Part, row_len: usize) -> GgufType {
        let base = self.base();
        let kind = match (self, part) {
            (Self::F32 | Self::F16 | Self::BF16 | Self::Q8_0, _) => base,
            (_, Part::Head) if !row_len.is_multiple_of(base.block_len()) => GgufType::Q8_0,
            (_, Part::Head) => GgufType::Q6_K,
            (Self::Q4_K_M | Self::Q5_K_M, Part::Value(layer) | Part::Down(layer)) if layer.has_more_bits() => {
                GgufType::Q6_K
            }
            (Self::Q4_K_S, Part::Value(layer)) if layer.number < 4 => GgufType::Q5_K,
            (Self::Q4_K_S, Part::Down(layer)) if layer.number < layer.count / 8 => GgufType::Q5_K,
            _ => base,
        };
        fitting(kind, row_len)
    }
}

/// The role of a matrix in the model.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// The head, or the embedding table if it is also used as the head.
    Head,
    /// `attn_v` of a layer.
    Value(Layer),
    /// `ffn_down` of a layer.
    Down(Layer),
    /// Any other matrix.
    Other,
}

/// A layer of a text model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    pub(super) number: usize,
    /// Number of layers in the model.
    pub(super) count: usize,
}

impl Layer {
    /// Returns whether some matrices of the layer get more bits. This is so in the first and last eighth of the layers,
    /// and in every third layer between them. Source: `use_more_bits` of llama.cpp.
    fn has_more_bits(self) -> bool {
        let Self { number, count } = self;
        number < count / 8 || number >= 7 * count / 8 || (number - count / 8) % 3 == 2
    }
}

/// Returns `kind` if its blocks divide rows of `row_len` values evenly, or else a similar type whose blocks do.
fn fitting(kind: GgufType, row_len: usize) -> GgufType {
    if row_len.is_multiple_of(kind.block_len()) {
        return kind;
    }
    match kind {
        GgufType::Q4_K => fitting(GgufType::Q5_0, row_len),
        GgufType::Q5_K => fitting(GgufType::Q5_1, row_len),
        GgufType::Q6_K => fitting(GgufType::Q8_0, row_len),
        _ => GgufType::F16,
    }
}

impl FromStr for GgufMix {
    type Err = UnknownGgufMix;

    fn from_str(name: &str) -> Result<Self, UnknownGgufMix> {
        let found = Self::ALL.into_iter().find(|mix| mix.name() == name.to_lowercase());
        found.ok_or_else(|| UnknownGgufMix { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_not_whole_blocks_get_another_type() {
        let kind = |mix: &str, row_len| mix.parse::<GgufMix>().unwrap().kind(Part::Other, row_len);
        assert_eq!(kind("q4_k_m", 512), GgufType::Q4_K);
        assert_eq!(kind("q4_k_m", 576), GgufType::Q5_0);
        assert_eq!(kind("q5_k_m", 576), GgufType::Q5_1);
        assert_eq!(kind("q6_k", 576), GgufType::Q8_0);
        assert_eq!(kind("q8_0", 28), GgufType::F16);
        assert_eq!(kind("f32", 28), GgufType::F32);
        assert_eq!(
            "q3".parse::<GgufMix>().unwrap_err().to_string().split(',').next(),
            Some("GGUF type \"q3\" is unknown; expected f32")
        );
    }

    #[test]
    fn attn_v_and_ffn_down_get_six_bits_in_half_of_the_layers() {
        let six = |part: fn(Layer) -> Part| -> Vec<usize> {
            let kind = |number| GgufMix::Q4_K_M.kind(part(Layer { number, count: 30 }), 1536);
            (0..30).filter(|number| kind(*number) == GgufType::Q6_K).collect()
        };
        // The layers whose `ffn_down` llama.cpp writes with six bits in SmolLM2-135M-Instruct-Q4_K_M.
        assert_eq!(six(Part::Down), [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]);
        assert_eq!(six(Part::Value), six(Part::Down));
        assert_eq!(GgufMix::Q4_K_M.kind(Part::Head, 576), GgufType::Q8_0);
        assert_eq!(GgufMix::Q4_0.kind(Part::Head, 2048), GgufType::Q6_K);
    }
}
