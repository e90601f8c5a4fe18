//! Renders a basic conversation.

use idefics_template::{Limits, Now, Template};
use serde_json::json;

fn render(source: &str) -> String {
    let context = json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]});
    let Some(context) = context.as_object() else { panic!("the context is not an object") };
    match Template::parse(source).and_then(|template| template.render(context, Limits::default(), Now::from_seconds(0)))
    {
        Ok(rendered) => rendered.text,
        Err(error) => format!("{error:?}"),
    }
}

#[test]
fn renders_conversation() {
    let source = "{%- for m in messages %}\n{{ m.role ~ ': ' + m['content'] | trim }}\n{% endfor -%}\n END";
    assert_eq!(render(source), "user: Hi\nassistant: Yes?\nEND");
}
