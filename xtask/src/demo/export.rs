//! Writes examples as a case folder, for which `xtask/reference/fill_case.py` adds the answers of the reference.

use std::path::Path;

use anyhow::{Context, Result};
use idefics_demo::{Example, Form};
use serde_json::{Value, json};

/// Writes `case.json` and the images of the examples. `model` is the model folder to evaluate.
pub(super) fn write(folder: &Path, model: &Path, examples: &[Example], max_new_tokens: usize) -> Result<()> {
    let images = folder.join("images");
    std::fs::create_dir_all(&images).with_context(|| images.display().to_string())?;
    let samples = examples.iter().enumerate().map(|(row, example)| sample(folder, row, example));
    let samples = samples.collect::<Result<Vec<Value>>>()?;
    let checkpoint = std::path::absolute(model)?;
    let case = json!({
        "format": 1,
        "family": "idefics2",
        "checkpoint": checkpoint,
        "samples": samples,
        "generate": {"greedy": {"max_new_tokens": max_new_tokens}}
    });
    let path = folder.join("case.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&case)?).with_context(|| path.display().to_string())
}

fn sample(folder: &Path, row: usize, example: &Example) -> Result<Value> {
    let mut paths = Vec::new();
    for (idx, scene) in example.scenes.iter().enumerate() {
        let name = format!("images/{row}-{idx}.png");
        scene.render().save(folder.join(&name)).with_context(|| name.clone())?;
        paths.push(name);
    }
    Ok(match &example.form {
        Form::Chat(exchanges) => {
            let mut content: Vec<Value> = paths.iter().map(|path| json!({"type": "image", "path": path})).collect();
            content.push(json!({"type": "text", "text": exchanges[0].question}));
            json!({"messages": [{"role": "user", "content": content}], "add_generation_prompt": true})
        }
        Form::Continuation { prompt, .. } => json!({"text": prompt, "images": paths}),
    })
}
