//! Maps the tensors of GGUF files to the names of the original checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use idefics_kernels::formats::GgufType;
use memmap2::Mmap;

use super::model::{TextSizes, VisionSizes};
use super::{GgufError, GgufFault, GgufFile, GgufRows, GgufTensor};
use crate::TensorEntry;

pub(super) const TEXT: &str = "model.text_model";
pub(super) const VISION: &str = "model.vision_model";

/// The name and the row order of a tensor in the checkpoint.
struct Place {
    /// Name of the tensor in the checkpoint.
    name: String,
    /// Number of rows of a head, if the rows must be put back into the order of the checkpoint; otherwise `None`.
    head_dim: Option<usize>,
}

impl From<String> for Place {
    fn from(name: String) -> Self {
        Self { name, head_dim: None }
    }
}

/// Adds the tensors of a text model to `tensors`.
///
/// Source: `gguf/tensor_mapping.py` of gguf-py.
pub(super) fn add_text(
    file: &GgufFile,
    sizes: &TextSizes,
    tensors: &mut BTreeMap<String, TensorEntry>,
) -> Result<(), GgufError> {
    add(file, tensors, |tensor| {
        let place = match tensor.name.as_str() {
            "rope_freqs.weight" => return Ok(None), // it becomes part of config.json
            "token_embd.weight" => Some(format!("{TEXT}.embed_tokens.weight").into()),
            "output_norm.weight" => Some(format!("{TEXT}.norm.weight").into()),
            "output.weight" => Some("lm_head.weight".to_owned().into()),
            name => text_block(name, sizes),
        };
        let reason = || "it is not a tensor of the supported llama models".to_owned();
        let place = place.ok_or_else(reason)?;
        let rows = tensor.dims.get(1).copied().unwrap_or(1);
        match place.head_dim {
            Some(head_dim) if !rows.is_multiple_of(head_dim) || !head_dim.is_multiple_of(2) => {
                Err(format!("it has {rows} rows; expected a multiple of {head_dim}, the even width of a head"))
            }
            _ => Ok(Some(place)),
        }
    })
}

fn text_block(name: &str, sizes: &TextSizes) -> Option<Place> {
    let (layer, part) = block(name, "blk.", sizes.layers)?;
    let (part, is_rotary) = match part {
        "attn_norm.weight" => ("input_layernorm.weight", false),
        "ffn_norm.weight" => ("post_attention_layernorm.weight", false),
        "attn_q.weight" => ("self_attn.q_proj.weight", true),
        "attn_k.weight" => ("self_attn.k_proj.weight", true),
        "attn_v.weight" => ("self_attn.v_proj.weight", false),
        "attn_output.weight" => ("self_attn.o_proj.weight", false),
        "ffn_gate.weight" => ("mlp.gate_proj.weight", false),
        "ffn_up.weight" => ("mlp.up_proj.weight", false),
        "ffn_down.weight" => ("mlp.down_proj.weight", false),
        _ => return None,
    };
    let head_dim = is_rotary.then_some(sizes.head_dim);
    Some(Place { name: format!("{TEXT}.layers.{layer}.{part}"), head_dim })
}

/// Adds the tensors of a vision tower and connector to `tensors`.
pub(super) fn add_vision(
    file: &GgufFile,
    sizes: &VisionSizes,
    tensors: &mut BTreeMap<String, TensorEntry>,
) -> Result<(), GgufError> {
    add(file, tensors, |tensor| {
        let name = match tensor.name.as_str() {
            "v.patch_embd.weight" => Some(format!("{VISION}.embeddings.patch_embedding.weight")),
            "v.patch_embd.bias" => Some(format!("{VISION}.embeddings.patch_embedding.bias")),
            "v.position_embd.weight" => Some(format!("{VISION}.embeddings.position_embedding.weight")),
            "v.post_ln.weight" => Some(format!("{VISION}.post_layernorm.weight")),
            "v.post_ln.bias" => Some(format!("{VISION}.post_layernorm.bias")),
            "mm.model.fc.weight" => Some("model.connector.modality_projection.proj.weight".to_owned()),
            name => vision_block(name, tensor, sizes),
        };
        match name {
            Some(name) => Ok(Some(name.into())),
            None => Err("it is not a tensor of the vision tower or connector of Idefics3".to_owned()),
        }
    })
}

fn vision_block(name: &str, tensor: &GgufTensor, sizes: &VisionSizes) -> Option<String> {
    let (layer, part) = block(name, "v.blk.", sizes.layers)?;
    let (part, kind) = part.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let part = match part {
        "ln1" => "layer_norm1",
        "ln2" => "layer_norm2",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_out" => "self_attn.out_proj",
        // Older converters swapped the two names. If the two sizes differ, the shape says which matrix it is.
        "ffn_up" | "ffn_down" if sizes.hidden != sizes.intermediate => {
            let is_first = match kind {
                "weight" => tensor.dims[0] == sizes.hidden,
                _ => tensor.dims[0] == sizes.intermediate,
            };
            if is_first { "mlp.fc1" } else { "mlp.fc2" }
        }
        "ffn_up" => "mlp.fc1",
        "ffn_down" => "mlp.fc2",
        _ => return None,
    };
    Some(format!("{VISION}.encoder.layers.{layer}.{part}.{kind}"))
}

/// Splits the name of a tensor into the number of its layer and the part after that. Returns `None` if the model has no
/// such layer.
fn block<'a>(name: &'a str, prefix: &str, layers: usize) -> Option<(usize, &'a str)> {
    let (number, part) = name.strip_prefix(prefix)?.split_once('.')?;
    let layer: usize = number.parse().ok()?;
    (layer < layers && layer.to_string() == number).then_some((layer, part))
}

/// Adds each tensor of the file to `tensors` under the name that `place` returns. `place` returns `None` for a tensor
/// that is not a weight, and an error with the reason if a tensor is invalid.
fn add(
    file: &GgufFile,
    tensors: &mut BTreeMap<String, TensorEntry>,
    place: impl Fn(&GgufTensor) -> Result<Option<Place>, String>,
) -> Result<(), GgufError> {
    for (tensor, part, map) in file.mapped_tensors() {
        let refused = |reason| file.error(GgufFault::Tensor { name: tensor.name.clone(), reason });
        let Some(Place { name, head_dim }) = place(tensor).map_err(refused)? else { continue };
        if tensors.contains_key(&name) {
            return Err(refused(format!("another tensor is also named `{name}` in the checkpoint")));
        }
        tensors.insert(name, entry(tensor, part, map, head_dim));
    }
    Ok(())
}

fn entry(tensor: &GgufTensor, file: &str, map: &Arc<Mmap>, head_dim: Option<usize>) -> TensorEntry {
    let GgufTensor { dims, kind, range, .. } = tensor;
    let is_plain = matches!(kind, GgufType::F32 | GgufType::F16 | GgufType::BF16) && head_dim.is_none();
    TensorEntry {
        dtype: GgufRows::dtype(*kind),
        shape: dims.iter().rev().copied().collect(),
        file: file.to_owned(),
        map: map.clone(),
        start: range.start,
        end: range.end,
        is_mapped_file: true,
        rows: (!is_plain).then_some(GgufRows { kind: *kind, row_len: dims[0], head_dim }),
    }
}
