//! Templates with what the reference renders from them.

use idefics_template::{Limits, Now, Template};
use serde_json::Value;

/// Made by `xtask/reference/template_fixtures.py`.
const FIXTURE: &str = include_str!("reference.json");

#[test]
fn templates_render_as_in_the_reference() {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let context = fixture["context"].as_object().unwrap();
    let now = Now::from_seconds(fixture["now"].as_i64().unwrap());
    let mut wrong = Vec::new();
    let cases = fixture["cases"].as_array().unwrap();
    for case in cases {
        let source = case[0].as_str().unwrap();
        let rendered = Template::parse(source).and_then(|template| template.render(context, Limits::default(), now));
        let same = match (&case[1], &rendered) {
            (Value::String(expected), Ok(found)) => *expected == found.text,
            (Value::Null, Err(_)) => true,
            _ => false,
        };
        if !same {
            wrong.push(format!("{source:?}\n  expected {}\n  found {rendered:?}", case[1]));
        }
    }
    assert!(cases.len() > 3000, "only {} cases", cases.len());
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
