//! JSON samples: text, messages and prompt lists.
#![no_main]

use idefics_processor::Sample;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = serde_json::from_str::<Sample>(text);
});
