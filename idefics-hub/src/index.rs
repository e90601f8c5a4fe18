//! Reads the names of the shards from the index of a checkpoint. The index is not trusted, because the names are used
//! as paths.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use serde::Deserialize;

use crate::{HubError, error::file_system, files::WeightFiles, id::is_plain_name};

pub(crate) const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 1000;

/// Reads the names of the shards that an index lists, and checks that each is a plain file name with the right
/// extension.
pub(crate) fn shard_names(index: &Path, files: &WeightFiles, repo: &str) -> Result<BTreeSet<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let failed = |source| file_system("cannot read", index, source);
    if fs::metadata(index).map_err(failed)?.len() > MAX_INDEX_BYTES {
        return Err(bad_index(repo, files, "it is larger than 64 MiB"));
    }
    let bytes = fs::read(index).map_err(failed)?;
    let parsed: Index = serde_json::from_slice(&bytes).map_err(|error| bad_index(repo, files, error))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        let fault = format_args!("it lists {} files; expected 1 to {MAX_SHARDS}", shards.len());
        return Err(bad_index(repo, files, fault));
    }
    match shards.iter().find(|shard| !is_plain_name(shard) || !shard.ends_with(files.ending)) {
        Some(shard) => {
            let shard = shard.chars().take(100).collect();
            Err(HubError::ShardName { repo: repo.to_owned(), index: files.index, shard, ending: files.ending })
        }
        None => Ok(shards),
    }
}

pub(crate) fn bad_index(repo: &str, files: &WeightFiles, fault: impl fmt::Display) -> HubError {
    HubError::BadIndex { repo: repo.to_owned(), index: files.index, fault: fault.to_string() }
}
