//! Converts a model of the Idefics3 family to the tensors and metadata of GGUF files.

use std::borrow::Cow;

use half::{bf16, f16};
use idefics_kernels::formats::{Blocks, Element, GgufType};
use safetensors::Dtype;

use super::mix::{Layer, Part};
use super::names::{TEXT, VISION};
use super::{GgufError, GgufFault, GgufMix, NewTensor, NewTokenizer, NewValue};
use crate::{Checkpoint, CheckpointError, TensorEntry};

/// A model to be written as GGUF files.
#[derive(Debug, Clone, Copy)]
pub struct GgufExport<'a> {
    /// The weights, with the tensor names of the Idefics3 family.
    pub checkpoint: &'a Checkpoint,
    /// Name of the model, which becomes `general.name`.
    pub name: &'a str,
    /// The decoder.
    pub text: &'a NewText,
    /// The vision tower and connector; `None` for a text model.
    pub vision: Option<&'a NewVision>,
    /// The quantisation, which sets the type of each tensor.
    pub mix: GgufMix,
}

/// The decoder of a model to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewText {
    /// Number of layers.
    pub layers: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Inner width of the feed-forward block.
    pub intermediate: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Context length in tokens.
    pub context: usize,
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Whether the head uses the embedding table as its weight.
    pub is_tied: bool,
    /// Epsilon of the RMS norms.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Scaling of the rotary frequencies.
    pub rope: NewRope,
}

/// Scaling of the rotary frequencies, in the form in which GGUF files store it.
#[derive(Debug, Clone, PartialEq)]
pub enum NewRope {
    /// The frequencies are not scaled.
    Plain,
    /// All frequencies are divided by this factor.
    Linear(f32),
    /// Each frequency has its own divisor, `[head_dim / 2]` (Llama 3).
    Divisors(Vec<f32>),
}

/// The vision tower and connector of a model to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewVision {
    /// Number of layers.
    pub layers: usize,
    /// Width of the features.
    pub hidden: usize,
    /// Inner width of the feed-forward block.
    pub intermediate: usize,
    /// Number of heads.
    pub heads: usize,
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// Side, in patches, of the square of patches that the connector joins to one vector.
    pub scale_factor: usize,
    /// Longest side of a picture in pixels before it is cut into tiles.
    pub longest_edge: usize,
    /// Mean of each channel.
    pub image_mean: [f32; 3],
    /// Standard deviation of each channel.
    pub image_std: [f32; 3],
}

type Keys = Vec<(String, NewValue)>;

fn unsigned(value: usize) -> NewValue {
    NewValue::Unsigned(u32::try_from(value).unwrap_or(u32::MAX)) // sizes in checked configurations are smaller
}

fn named(key: &str, value: NewValue) -> (String, NewValue) {
    (key.to_owned(), value)
}

impl<'a> GgufExport<'a> {
    /// Returns the metadata of the text model's file.
    pub fn text_metadata(&self, tokenizer: NewTokenizer) -> Keys {
        let text = self.text;
        let mut keys = self.general("llama", "model", self.mix);
        let sizes = [
            ("block_count", text.layers),
            ("context_length", text.context),
            ("embedding_length", text.hidden),
            ("feed_forward_length", text.intermediate),
            ("attention.head_count", text.heads),
            ("attention.head_count_kv", text.kv_heads),
            ("attention.key_length", text.head_dim),
            ("attention.value_length", text.head_dim),
            ("rope.dimension_count", text.head_dim),
            ("vocab_size", text.vocab),
        ];
        keys.extend(sizes.map(|(key, value)| named(&format!("llama.{key}"), unsigned(value))));
        keys.push(named("llama.attention.layer_norm_rms_epsilon", NewValue::Float(text.norm_eps)));
        keys.push(named("llama.rope.freq_base", NewValue::Float(text.rope_theta)));
        if let NewRope::Linear(factor) = text.rope {
            keys.push(named("llama.rope.scaling.type", NewValue::Text("linear".to_owned())));
            keys.push(named("llama.rope.scaling.factor", NewValue::Float(factor)));
        }
        keys.extend(tokenizer.keys);
        keys
    }

    /// Returns the metadata of the vision tower's file.
    pub fn vision_metadata(&self, vision: &NewVision) -> Keys {
        let mut keys = self.general("clip", "mmproj", self.mix.of_vision());
        keys.push(named("clip.projector_type", NewValue::Text("idefics3".to_owned())));
        keys.push(named("clip.has_vision_encoder", NewValue::Bool(true)));
        keys.push(named("clip.use_gelu", NewValue::Bool(true)));
        let sizes = [
            ("image_size", vision.image_size),
            ("patch_size", vision.patch_size),
            ("embedding_length", vision.hidden),
            ("feed_forward_length", vision.intermediate),
            ("block_count", vision.layers),
            ("projection_dim", self.text.hidden),
            ("attention.head_count", vision.heads),
            ("projector.scale_factor", vision.scale_factor),
            ("preproc_image_size", vision.longest_edge),
        ];
        keys.extend(sizes.map(|(key, value)| named(&format!("clip.vision.{key}"), unsigned(value))));
        keys.push(named("clip.vision.attention.layer_norm_epsilon", NewValue::Float(vision.norm_eps)));
        keys.push(named("clip.vision.image_mean", NewValue::Floats(vision.image_mean.to_vec())));
        keys.push(named("clip.vision.image_std", NewValue::Floats(vision.image_std.to_vec())));
        keys
    }

    fn general(&self, architecture: &str, kind: &str, mix: GgufMix) -> Keys {
        vec![
            named("general.architecture", NewValue::Text(architecture.to_owned())),
            named("general.type", NewValue::Text(kind.to_owned())),
            named("general.name", NewValue::Text(self.name.to_owned())),
            named("general.file_type", NewValue::Unsigned(mix.file_type())),
            named("general.quantization_version", NewValue::Unsigned(2)),
        ]
    }

    /// Returns the tensors of the text model's file. A weight is read only when it is written.
    ///
    /// # Errors
    /// [`GgufFault::Export`] if a tensor is missing, has another shape, or is quantised. [`CheckpointError::Dtype`] if
    /// a tensor is not F32, F16 or BF16.
    pub fn text_tensors(&self) -> Result<Vec<NewTensor<'a>>, CheckpointError> {
        let (text, mut tensors) = (self.text, Vec::new());
        let (kv, q) = (text.kv_heads * text.head_dim, text.heads * text.head_dim);
        let table = if text.is_tied { Part::Head } else { Part::Other };
        let of_vocab = [text.vocab, text.hidden];
        tensors.push(self.matrix("token_embd.weight", &format!("{TEXT}.embed_tokens.weight"), of_vocab, table)?);
        if let NewRope::Divisors(divisors) = &text.rope {
            let bytes: Vec<u8> = divisors.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push(NewTensor {
                name: "rope_freqs.weight".to_owned(),
                dims: vec![divisors.len()],
                kind: GgufType::F32,
                blocks: Box::new(move || Ok(bytes.clone().into())),
            });
        }
        for number in 0..text.layers {
            let (prefix, layer) = (format!("{TEXT}.layers.{number}"), Layer { number, count: text.layers });
            for (name, part) in [("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")] {
                let (name, part) = (format!("blk.{number}.{name}.weight"), format!("{prefix}.{part}.weight"));
                tensors.push(self.vector(&name, &part, text.hidden)?);
            }
            let (d, inner) = (text.hidden, text.intermediate);
            for (name, part, dims, of) in [
                ("attn_q", "self_attn.q_proj", [q, d], Part::Other),
                ("attn_k", "self_attn.k_proj", [kv, d], Part::Other),
                ("attn_v", "self_attn.v_proj", [kv, d], Part::Value(layer)),
                ("attn_output", "self_attn.o_proj", [d, q], Part::Other),
                ("ffn_gate", "mlp.gate_proj", [inner, d], Part::Other),
                ("ffn_up", "mlp.up_proj", [inner, d], Part::Other),
                ("ffn_down", "mlp.down_proj", [d, inner], Part::Down(layer)),
            ] {
                let (name, source) = (format!("blk.{number}.{name}.weight"), format!("{prefix}.{part}.weight"));
                tensors.push(match part {
                    "self_attn.q_proj" | "self_attn.k_proj" => self.rotary(&name, &source, dims)?,
                    _ => self.matrix(&name, &source, dims, of)?,
                });
            }
        }
        tensors.push(self.vector("output_norm.weight", &format!("{TEXT}.norm.weight"), text.hidden)?);
        if !text.is_tied {
            tensors.push(self.matrix("output.weight", "lm_head.weight", of_vocab, Part::Head)?);
        }
        Ok(tensors)
    }

    /// Returns the tensors of the vision tower's file.
    ///
    /// # Errors
    /// As [`Self::text_tensors`].
    pub fn vision_tensors(&self, vision: &NewVision) -> Result<Vec<NewTensor<'a>>, CheckpointError> {
        let export = Self { mix: self.mix.of_vision(), ..*self };
        let (d, inner, patch) = (vision.hidden, vision.intermediate, vision.patch_size);
        let embeddings = format!("{VISION}.embeddings");
        let patches = format!("{embeddings}.patch_embedding");
        let side = vision.image_size / patch;
        let squares = vision.scale_factor * vision.scale_factor;
        let connector = "model.connector.modality_projection.proj.weight";
        let mut tensors = vec![
            export.plain("v.patch_embd.weight", &format!("{patches}.weight"), &[d, 3, patch, patch])?,
            export.vector("v.patch_embd.bias", &format!("{patches}.bias"), d)?,
            export.plain(
                "v.position_embd.weight",
                &format!("{embeddings}.position_embedding.weight"),
                &[side * side, d],
            )?,
            export.matrix("mm.model.fc.weight", connector, [self.text.hidden, d * squares], Part::Other)?,
        ];
        for end in ["weight", "bias"] {
            tensors.push(export.vector(&format!("v.post_ln.{end}"), &format!("{VISION}.post_layernorm.{end}"), d)?);
        }
        for number in 0..vision.layers {
            let name = |name: &str| format!("v.blk.{number}.{name}");
            let source = |part: &str| format!("{VISION}.encoder.layers.{number}.{part}");
            for (of, part) in [("ln1", "layer_norm1"), ("ln2", "layer_norm2")] {
                for end in ["weight", "bias"] {
                    tensors.push(export.vector(&name(&format!("{of}.{end}")), &source(&format!("{part}.{end}")), d)?);
                }
            }
            for (of, part, dims) in [
                ("attn_q", "self_attn.q_proj", [d, d]),
                ("attn_k", "self_attn.k_proj", [d, d]),
                ("attn_v", "self_attn.v_proj", [d, d]),
                ("attn_out", "self_attn.out_proj", [d, d]),
                ("ffn_up", "mlp.fc1", [inner, d]),
                ("ffn_down", "mlp.fc2", [d, inner]),
            ] {
                let (weight, bias) = (format!("{of}.weight"), format!("{of}.bias"));
                tensors.push(export.matrix(&name(&weight), &source(&format!("{part}.weight")), dims, Part::Other)?);
                tensors.push(export.vector(&name(&bias), &source(&format!("{part}.bias")), dims[0])?);
            }
        }
        Ok(tensors)
    }

    /// Looks up a tensor of the checkpoint. It must have this shape, and must not be quantised.
    fn entry(&self, source: &str, shape: &[usize]) -> Result<&'a TensorEntry, CheckpointError> {
        let failed = |reason: String| CheckpointError::from(self.error(reason));
        let Some(stored) = self.checkpoint.stored(source) else { return Err(failed(format!("it has no `{source}`"))) };
        if let Some(found) = stored.kind.packed_format() {
            let reason = format!("`{source}` is already quantised to {}; give the original model", found.name());
            return Err(failed(reason));
        }
        if stored.entry.shape != shape {
            return Err(failed(format!("`{source}` has shape {:?}; expected {shape:?}", stored.entry.shape)));
        }
        Ok(stored.entry)
    }

    fn error(&self, reason: String) -> GgufError {
        GgufError::new(self.checkpoint.folder(), GgufFault::Export { reason })
    }

    fn vector(&self, name: &str, source: &str, len: usize) -> Result<NewTensor<'a>, CheckpointError> {
        self.plain(name, source, &[len])
    }

    /// Returns a tensor to be written in f32.
    fn plain(&self, name: &str, source: &str, shape: &[usize]) -> Result<NewTensor<'a>, CheckpointError> {
        let entry = self.entry(source, shape)?;
        self.tensor(name, source, entry, GgufType::F32, None)
    }

    /// Returns a matrix to be written in the type that the mix sets.
    fn matrix(&self, name: &str, source: &str, dims: [usize; 2], part: Part) -> Result<NewTensor<'a>, CheckpointError> {
        let entry = self.entry(source, &dims)?;
        self.tensor(name, source, entry, self.mix.kind(part, dims[1]), None)
    }

    /// Returns a query or key projection, whose rows are reordered so that rotary pairs are adjacent.
    fn rotary(&self, name: &str, source: &str, dims: [usize; 2]) -> Result<NewTensor<'a>, CheckpointError> {
        let entry = self.entry(source, &dims)?;
        self.tensor(name, source, entry, self.mix.kind(Part::Other, dims[1]), Some(self.text.head_dim))
    }

    fn tensor(
        &self,
        name: &str,
        source: &str,
        entry: &'a TensorEntry,
        kind: GgufType,
        head_dim: Option<usize>,
    ) -> Result<NewTensor<'a>, CheckpointError> {
        if ![Dtype::F32, Dtype::F16, Dtype::BF16].contains(&entry.dtype) {
            let (file, name) = (entry.file.clone(), source.to_owned());
            return Err(CheckpointError::Dtype { file, name, found: entry.dtype });
        }
        let (dims, source) = (entry.shape.iter().rev().copied().collect::<Vec<_>>(), source.to_owned());
        let row_len = dims[0];
        let blocks = move || -> Result<Cow<'a, [u8]>, CheckpointError> {
            let mut values = floats(entry);
            entry.release();
            if let Some(head_dim) = head_dim {
                values = paired(&values, row_len, head_dim);
            }
            let blocks = Blocks::quantize(kind, &values, values.len() / row_len, row_len);
            let blocks = blocks.map_err(|error| CheckpointError::Quantized {
                file: entry.file.clone(),
                name: source.clone(),
                source: Box::new(error.into()),
            })?;
            Ok(blocks.into_bytes().into())
        };
        Ok(NewTensor { name: name.to_owned(), dims, kind, blocks: Box::new(blocks) })
    }
}

/// Reads the values of a tensor in F32, F16 or BF16 as f32.
fn floats(entry: &TensorEntry) -> Vec<f32> {
    fn read<E: Element>(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(size_of::<E>()).map(|bytes| E::from_le_bytes(bytes).to_f32()).collect()
    }
    if !entry.is_plain() {
        let mut values = vec![0.0; entry.num_elements()];
        entry.read_rows(0..values.len() / entry.row_len(), &mut values);
        return values;
    }
    match entry.dtype {
        Dtype::F16 => read::<f16>(entry.bytes()),
        Dtype::BF16 => read::<bf16>(entry.bytes()),
        _ => read::<f32>(entry.bytes()),
    }
}

/// Reorders the rows of a matrix so that the two rows of each rotary pair are adjacent. `GgufRows` undoes this order
/// when the file is read.
///
/// Source: `LlamaModel.permute` of `convert_hf_to_gguf.py`.
fn paired(values: &[f32], row_len: usize, head_dim: usize) -> Vec<f32> {
    let rows = 0..values.len() / row_len;
    let source = rows.map(|row| {
        let (head, in_head) = (row / head_dim, row % head_dim);
        head * head_dim + in_head % 2 * (head_dim / 2) + in_head / 2
    });
    source.flat_map(|row| &values[row * row_len..(row + 1) * row_len]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_rotary_pairs_become_adjacent() {
        let values: Vec<f32> = (0..12).map(|row| row as f32).collect();
        assert_eq!(paired(&values, 1, 6), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
    }
}
