//! GGUF files: keys, values and descriptions of tensors.
#![no_main]

use std::path::Path;

use idefics_checkpoint::gguf::{GgufValue, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("some.gguf");
    let Ok(header) = parse(path, data) else { return };
    let metadata = header.metadata(path, data);
    for (key, value) in metadata.iter() {
        if let GgufValue::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
        }
        let _ = (metadata.text(key), metadata.number(key), metadata.float(key), metadata.texts(key), metadata.numbers(key));
    }
    for tensor in header.tensors() {
        let row = tensor.dims[0];
        let bytes = &data[tensor.range.clone()];
        let row_bytes = tensor.kind.row_bytes(row).expect("rows are whole blocks");
        if row <= 1 << 16 {
            tensor.kind.dequantize(&bytes[..row_bytes], &mut vec![0.0; row]);
        }
    }
});
