//! Videos on the command line and in samples.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::{checkpoint, idefics, photo, text, xtask_folder};

fn smolvlm2() -> PathBuf {
    xtask_folder("checkpoints/tiny-smolvlm2")
}

/// Returns the folder of the committed case, whose frames are `wide_000.png` to `wide_008.png` and others.
fn case() -> PathBuf {
    xtask_folder("cases/smolvlm2-video")
}

/// Creates a folder with the frames of the case's first video.
fn frames(folder: &Path) -> PathBuf {
    let frames = folder.join("frames");
    fs::create_dir(&frames).unwrap();
    for frame in 0..9 {
        let name = format!("wide_{frame:03}.png");
        fs::copy(case().join("images").join(&name), frames.join(name)).unwrap();
    }
    frames
}

fn animation() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../idefics-image/tests/fixtures/animations/opaque_2.gif")
}

fn json_of(model: &Path, args: &[&str]) -> Value {
    let output = idefics(model, &[&["--json"], args, &["--max-new-tokens", "3"]].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refused(model: &Path, args: &[&str], code: i32) -> String {
    let output = idefics(model, args);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    message
}

#[test]
fn folders_of_frames_are_videos() {
    let folder = tempfile::tempdir().unwrap();
    let frames = frames(folder.path());
    let frames = frames.to_str().unwrap();
    let answer = json_of(&smolvlm2(), &["ask", frames, "What happens?", "--video-fps", "4"]);
    assert_eq!(answer["usage"]["image_tokens"], 4 * 4, "four frames of four tokens");
    let prompt = answer["prompt"].as_str().unwrap();
    assert!(
        prompt.starts_with("<|im_start|>User: You are provided the following series of four frames from a 0:00:02")
    );
    assert!(prompt.ends_with("\n\nWhat happens?<end_of_utterance>\nAssistant:"), "{prompt}");
    let more = ["--video-fps", "4", "--video-fps-target", "4", "--video-frames", "7"];
    let answer = json_of(&smolvlm2(), &[&["ask", frames, "What happens?"][..], &more].concat());
    assert_eq!(answer["usage"]["image_tokens"], 7 * 4);

    let output = idefics(&smolvlm2(), &["ask", frames, "What happens?", "--max-new-tokens", "1"]);
    assert!(text(&output.stderr).contains("24 frames per second are assumed; give the rate with --video-fps R"));
    let message = refused(&smolvlm2(), &["ask", frames, "What?", "--video-fps", "4", "--max-frames", "3"], 6);
    assert!(message.contains("4 frames would be shown to the model; at most 3"), "{message}");
    let message = refused(&smolvlm2(), &["ask", frames], 2);
    assert!(message.contains("is a folder; give the question after it"), "{message}");
    let message = refused(&checkpoint(), &["ask", frames, "What?"], 3);
    assert!(message.contains("`model_type` idefics2 cannot read videos"), "{message}");
}

#[test]
fn animations_are_videos_for_models_that_read_them() {
    let animation = animation();
    let animation = animation.to_str().unwrap();
    let video = json_of(&smolvlm2(), &["caption", animation]);
    assert!(video["prompt"].as_str().unwrap().contains("frames from a 0:00:00"), "{video}");
    assert!(video["prompt"].as_str().unwrap().contains("Describe this video."), "{video}");
    let picture = json_of(&checkpoint(), &["caption", animation]);
    assert!(picture["prompt"].as_str().unwrap().contains("Describe this image."), "{picture}");
    let still = json_of(&smolvlm2(), &["caption", &photo(), "--no-image-splitting"]);
    assert_eq!(still["usage"]["image_tokens"], 4);
    assert!(!still["prompt"].as_str().unwrap().contains("video"));
}

#[test]
fn samples_may_have_videos() {
    let folder = tempfile::tempdir().unwrap();
    frames(folder.path());
    let samples = json!([
        {"text": "<video> What?", "videos": [{"path": "frames", "fps": 4}]},
        {"messages": [{"role": "user", "content": [
            {"type": "video", "path": "frames", "fps": 4}, {"type": "text", "text": "What?"}]}],
         "add_generation_prompt": true},
        {"text": "No video"},
    ]);
    let prompts = folder.path().join("prompts.json");
    fs::write(&prompts, samples.to_string()).unwrap();
    let tokens = |lines: &str| -> Vec<Value> {
        lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["usage"]["image_tokens"].clone())
            .collect()
    };
    let output = idefics(
        &smolvlm2(),
        &["--json", "generate", "--prompt-file", prompts.to_str().unwrap(), "--max-new-tokens", "2"],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(tokens(&text(&output.stdout)), [16, 16, 0]);

    let rows: String = samples.as_array().unwrap().iter().map(|sample| format!("{sample}\n")).collect();
    let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
    fs::write(&input, rows).unwrap();
    let run = ["batch", input.to_str().unwrap(), "--output", output.to_str().unwrap(), "--max-new-tokens", "2"];
    let batch = idefics(&smolvlm2(), &run);
    assert!(batch.status.success(), "{}", text(&batch.stderr));
    let lines = fs::read_to_string(&output).unwrap();
    assert_eq!(tokens(&lines), [16, 16, 0]);
    assert!(!lines.contains("\"videos\""), "{lines}");

    let below = ["--images-below", "/usr"];
    let prompts = ["generate", "--prompt-file", prompts.to_str().unwrap()];
    assert!(refused(&smolvlm2(), &[&prompts[..], &below].concat(), 3).contains("files outside /usr is not allowed"));
}

#[test]
fn chat_shows_videos_and_saves_them() {
    let folder = tempfile::tempdir().unwrap();
    let frames = frames(folder.path());
    let saved = folder.path().join("saved.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.arg("--model").arg(smolvlm2()).args(["--json", "chat"]).arg(&frames);
    command.args(["--video-fps", "4", "--max-new-tokens", "2"]);
    command.env("HOME", folder.path()).env("XDG_STATE_HOME", folder.path().join("state"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let typed = format!("What?\n/image {}\nAnd this?\n/save {}\n", animation().display(), saved.display());
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let tokens: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["usage"]["image_tokens"].clone())
        .collect();
    assert_eq!(tokens, [16, 20], "four frames, then one more");
    let saved: Value = serde_json::from_slice(&fs::read(saved).unwrap()).unwrap();
    assert_eq!(saved["messages"][0]["content"][0], json!({"type": "video", "path": frames}));
}

#[test]
fn missing_ffmpeg_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let clip = folder.path().join("clip.mp4");
    fs::write(&clip, b"\0\0\0\x18ftypmp42\0\0\0\0").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.arg("--model").arg(smolvlm2()).arg("ask").arg(&clip).arg("What?").env("PATH", folder.path());
    let output = command.output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("ffprobe is not installed; install FFmpeg"), "{message}");
}

#[test]
fn damaged_videos_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let avi = folder.path().join("clip.avi");
    fs::write(&avi, b"RIFF\xff\xff\0\0AVI LIST").unwrap();
    let message = refused(&smolvlm2(), &["ask", avi.to_str().unwrap(), "What?"], 3);
    assert!(message.contains("byte 0: the chunk \"RIFF\" has 65535 bytes"), "{message}");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let message = refused(&smolvlm2(), &["ask", empty.to_str().unwrap(), "What?"], 3);
    assert!(message.contains("there are no pictures"), "{message}");
}
