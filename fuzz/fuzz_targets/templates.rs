//! Chat templates: parses any text as a template and renders it with a conversation.
#![no_main]

use idefics_template::{Limits, Now, Template};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(template) = Template::parse(text) else { return };
    let context = serde_json::json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is <this>?"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5}}}]},
        ],
        "tools": null,
        "add_generation_prompt": true,
        "bos_token": "<s>",
    });
    let context = context.as_object().expect("the context is an object");
    let _ = template.render(context, Limits::default(), Now::from_seconds(0));
});
