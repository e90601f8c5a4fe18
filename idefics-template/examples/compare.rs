//! Compares rendered templates with those of Transformers. Prints every difference, then a summary.
//!
//! Run it as `compare FILE`. `xtask/reference/template_fixtures.py` generates the file.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::Write;

use idefics_template::{Limits, Now, Template};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: compare FILE")?;
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let context = file["context"].as_object().ok_or("the file has no context")?;
    let now = Now::from_seconds(file["now"].as_i64().ok_or("the file has no time (now)")?);
    let cases = file["cases"].as_array().ok_or("the file has no cases")?;
    let mut out = std::io::stdout().lock();
    let (mut same, mut refused, mut accepted, mut other) = (0, 0, 0, 0);
    for case in cases {
        let source = case[0].as_str().ok_or("a case has no template")?;
        let result = Template::parse(source).and_then(|template| template.render(context, Limits::default(), now));
        match (&case[1], &result) {
            (Value::String(expected), Ok(found)) if *expected == found.text => same += 1,
            (Value::Null, Err(_)) => same += 1,
            (expected, found) => {
                match (expected, found) {
                    (Value::Null, _) => accepted += 1,
                    (_, Err(_)) => refused += 1,
                    _ => other += 1,
                }
                let found = found.as_ref().map(|rendered| &rendered.text);
                writeln!(out, "{source:?}\n  expected {expected}\n  found    {found:?}")?;
            }
        }
    }
    writeln!(out, "{same} equal, {refused} fail only here, {accepted} fail only in the reference, {other} differ")?;
    Ok(())
}
