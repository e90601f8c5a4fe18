//! Reads `model.safetensors.index.json` and `pytorch_model.bin.index.json`, which list the shards of a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::files::UnexpectedFile;
use crate::opened::Opened;
use crate::{CheckpointError, CheckpointWarning, TensorEntry};

/// Maximum number of shards. All shards stay mapped while the checkpoint is open. The largest public checkpoints have
/// fewer than 200.
const MAX_SHARDS: usize = 1000;

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Opens every shard named in the index with `read_file`.
///
/// As in Transformers, the contents of the shards take precedence over the index: a tensor that is missing from the
/// index is still loaded, and a tensor that only the index names is treated as missing. If several shards have a tensor
/// of the same name, the index decides which shard is used.
pub(crate) fn read(
    folder: &Path,
    path: &Path,
    read_file: impl Fn(&Path, &str) -> Result<BTreeMap<String, TensorEntry>, CheckpointError>,
) -> Result<Opened, CheckpointError> {
    let text = std::fs::read(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
    if let Some(found) = UnexpectedFile::detect(&text) {
        return Err(CheckpointError::UnexpectedFile { path: path.to_owned(), found });
    }
    let ShardIndex { weight_map } = serde_json::from_slice(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text))
        .map_err(|error| CheckpointError::Index { path: path.to_owned(), reason: error.to_string() })?;

    for (name, shard) in &weight_map {
        if !is_plain_file_name(shard) {
            return Err(CheckpointError::ShardName { path: path.to_owned(), name: name.clone(), shard: shard.clone() });
        }
    }
    let shards: BTreeSet<&String> = weight_map.values().collect();
    if shards.len() > MAX_SHARDS {
        let reason = format!("it names {} shards; at most {MAX_SHARDS} are allowed", shards.len());
        return Err(CheckpointError::Index { path: path.to_owned(), reason });
    }
    let missing: Vec<String> =
        shards.iter().filter(|name| !folder.join(name).exists()).map(|&name| name.clone()).collect();
    if !missing.is_empty() {
        return Err(CheckpointError::ShardMissing { path: path.to_owned(), names: missing });
    }

    let mut tensors: BTreeMap<String, TensorEntry> = BTreeMap::new();
    for shard in shards {
        for (name, entry) in read_file(&folder.join(shard), shard)? {
            if weight_map.get(&name) == Some(shard) || !tensors.contains_key(&name) {
                tensors.insert(name, entry);
            }
        }
    }
    let names: Vec<String> = weight_map.into_keys().filter(|name| !tensors.contains_key(name)).collect();
    let warnings = match names.is_empty() {
        true => Vec::new(),
        false => vec![CheckpointWarning::NotInShards { path: path.to_owned(), names }],
    };
    Ok(Opened { tensors, warnings })
}

/// Returns whether a shard name is a plain file name on every operating system, so that it cannot leave the folder.
fn is_plain_file_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
