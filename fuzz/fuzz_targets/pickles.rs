//! PyTorch files: the zip container, the pickle program, and the tensors that it describes.
#![no_main]

use std::path::Path;

use idefics_checkpoint::pickle::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(tensors) = parse(Path::new("pytorch_model.bin"), data) else { return };
    for tensor in tensors {
        assert!(tensor.byte_range().end <= data.len());
        // A tensor that is not contiguous may repeat elements, so that it is larger than its file.
        if tensor.len_bytes() <= 1 << 20 {
            assert_eq!(tensor.bytes(data).map(|bytes| bytes.len()), Some(tensor.len_bytes()));
        }
    }
});
