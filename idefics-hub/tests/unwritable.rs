//! Tests with caches in which `.no_exist`, `refs` or `.locks` cannot be written.

use std::fs;

use idefics_hub::fetch_with;
use tempfile::TempDir;

use super::servers::Hub;
use super::{COMMIT, REPO, SHARDS, no_progress};

#[test]
fn works_without_writable_metadata() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let root = cache.path().join("models--org--tiny");
    fs::create_dir_all(&root).unwrap();
    // Put files in place of the folders. Unlike missing permissions, this blocks writes even for root.
    for in_the_way in [root.join(".no_exist"), root.join("refs"), cache.path().join(".locks")] {
        fs::write(in_the_way, "").unwrap();
    }
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
    assert!(fs::read_dir(root.join("blobs")).unwrap().all(|blob| blob.unwrap().path().extension().is_none()));
    assert_eq!(fetch_with(&hub.options(&cache), REPO, Some(COMMIT), &mut no_progress).unwrap(), snapshot);
}
