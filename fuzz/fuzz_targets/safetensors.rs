//! Safetensors files, and the index of a folder with shards.
#![no_main]

use idefics_checkpoint::{Checkpoint, Dtype, NamedTensor, ShardWriter};
use idefics_fuzz::Folder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let folder = Folder::new();
    folder.write("model.safetensors", data);
    read(&folder);

    folder.clear();
    let mut shard = ShardWriter::new(folder.path());
    let tensor = NamedTensor { name: "a".into(), dtype: Dtype::U8, shape: vec![1], bytes: vec![7].into() };
    shard.push(tensor).and_then(|()| shard.finish()).expect("the folder is writable");
    folder.rename("model.safetensors", "model-00001-of-00001.safetensors");
    folder.write("model.safetensors.index.json", data);
    read(&folder);
});

fn read(folder: &Folder) {
    let Ok(checkpoint) = Checkpoint::open(folder.path()) else { return };
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    for (_, tensor) in checkpoint.tensors() {
        assert_eq!(tensor.bytes().len(), tensor.len_bytes());
    }
    for name in names {
        let _ = checkpoint.stored(name);
    }
}
