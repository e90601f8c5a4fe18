//! Videos of SmolVLM2: every kind of source gives the same frames, and invalid videos are rejected.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

use idefics_processor::image::{FileAccess, ImageSource, SourcePolicy};
use idefics_processor::video::VideoFrames;
use idefics_processor::{
    Content, ErrorKind, Message, ProcessOptions, ProcessedInputs, Processor, ProcessorError, Sample, VideoError,
    VideoSource,
};
use serde_json::json;

use crate::common::{Folder, checkpoint};

const WIDTH: usize = 20;
const HEIGHT: usize = 14;
const N_FRAMES: usize = 12;
const FPS: f64 = 4.0;

fn smolvlm2() -> &'static Processor {
    static PROCESSOR: std::sync::LazyLock<Processor> =
        std::sync::LazyLock::new(|| Processor::from_folder(&checkpoint("tiny-smolvlm2")).unwrap());
    &PROCESSOR
}

/// Returns the palette index of each pixel of a frame.
fn indices(frame: usize) -> Vec<u8> {
    let at = |place: usize| (place % WIDTH * 5 + place / WIDTH * 9 + 31 * frame) as u8;
    (0..WIDTH * HEIGHT).map(at).collect()
}

fn color(index: u8) -> [u8; 3] {
    [index, index.wrapping_mul(3), 255 - index]
}

fn rgb(frame: usize) -> image::RgbImage {
    let pixels = indices(frame).into_iter().flat_map(color).collect();
    image::RgbImage::from_raw(WIDTH as u32, HEIGHT as u32, pixels).unwrap()
}

/// Writes the frames to a folder as PNG files. The numbers in their names have one or two digits.
fn folder_of_frames(folder: &Path) -> PathBuf {
    let frames = folder.join("frames");
    std::fs::create_dir(&frames).unwrap();
    (0..N_FRAMES).for_each(|frame| rgb(frame).save(frames.join(format!("frame{frame}.png"))).unwrap());
    std::fs::write(frames.join("notes.txt"), "not a frame").unwrap();
    frames
}

/// Encodes the frames as a GIF. All LZW codes have 9 bits, because the code table is cleared before it needs longer
/// codes.
fn gif() -> Vec<u8> {
    let (width, height) = ((WIDTH as u16).to_le_bytes(), (HEIGHT as u16).to_le_bytes());
    let mut gif = [&b"GIF89a"[..], &width, &height, &[0xf7, 0, 0]].concat();
    gif.extend((0..=255).flat_map(color));
    for frame in 0..N_FRAMES {
        let delay = (100.0 / FPS) as u16;
        gif.extend([0x21, 0xf9, 4, 0, delay as u8, 0, 0, 0, 0x2c, 0, 0, 0, 0]);
        gif.extend([width, height].concat());
        gif.extend([0, 8]);
        let codes = indices(frame).into_iter().enumerate().flat_map(|(at, index)| {
            let clear = (at % 100 == 0).then_some(256);
            clear.into_iter().chain([u32::from(index)])
        });
        let (mut packed, mut bits, mut n_bits) = (Vec::new(), 0_u32, 0);
        for code in codes.chain([257, 0]) {
            bits |= code << n_bits;
            n_bits += 9;
            while n_bits >= 8 {
                packed.push(bits as u8);
                (bits, n_bits) = (bits >> 8, n_bits - 8);
            }
        }
        for block in packed.chunks(255) {
            gif.push(block.len() as u8);
            gif.extend(block);
        }
        gif.push(0);
    }
    gif.push(0x3b);
    gif
}

/// Encodes a frame as a JPEG file.
fn jpeg(frame: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
    encoder.encode(&rgb(frame), WIDTH as u16, HEIGHT as u16, jpeg_encoder::ColorType::Rgb).unwrap();
    bytes
}

/// Encodes the frames as an AVI file with Motion JPEG.
fn avi() -> Vec<u8> {
    let chunk = |kind: &[u8], data: &[u8]| {
        let mut chunk = [kind, &(data.len() as u32).to_le_bytes(), data].concat();
        chunk.resize(chunk.len() + data.len() % 2, 0);
        chunk
    };
    let list = |kind: &[u8], name: &[u8], content: &[u8]| chunk(kind, &[name, content].concat());
    let mut header = b"vidsMJPG".to_vec();
    header.extend([0; 12]);
    header.extend([1, 0, 0, 0, FPS as u8, 0, 0, 0]);
    header.extend([0; 28]);
    let mut format = vec![0; 40];
    format[16..20].copy_from_slice(b"MJPG");
    let stream = list(b"LIST", b"strl", &[chunk(b"strh", &header), chunk(b"strf", &format)].concat());
    let headers = list(b"LIST", b"hdrl", &[chunk(b"avih", &[0; 56]), stream].concat());
    let frames: Vec<u8> = (0..N_FRAMES).flat_map(|frame| chunk(b"00dc", &jpeg(frame))).collect();
    list(b"RIFF", b"AVI ", &[headers, list(b"LIST", b"movi", &frames)].concat())
}

fn ask(video: VideoSource) -> Sample {
    Sample::chat(vec![Message::new("user", vec![Content::video(video), Content::text("What happens?")])])
}

fn with_fps(mut video: VideoSource, fps: f64) -> VideoSource {
    video.fps = Some(fps);
    video
}

fn process(sample: Sample) -> Result<ProcessedInputs, ProcessorError> {
    smolvlm2().process(&[sample], &ProcessOptions::default())
}

#[track_caller]
fn refused(sample: Sample) -> VideoError {
    match process(sample) {
        Err(ProcessorError::Video { row: 0, video: 0, error } | ProcessorError::Videos { row: 0, error }) => error,
        other => panic!("expected an error from a video, found {other:?}"),
    }
}

fn parsed(value: serde_json::Value) -> Sample {
    Sample::from_json(value.to_string().as_bytes()).unwrap()
}

#[test]
fn every_source_gives_the_same_frames() {
    let folder = tempfile::tempdir().unwrap();
    let frames = folder_of_frames(folder.path());
    let from_folder = process(ask(with_fps(frames.clone().into(), FPS))).unwrap();
    let video = &from_folder.videos[0][0];
    assert_eq!(video.frames_indices, [0, 2, 5, 8, 11], "two frames per second, at most five frames");
    assert_eq!((video.fps, video.duration, video.is_fps_assumed), (FPS, Some(3.0), false));
    assert_eq!(from_folder.images[0].len(), 5);
    let image_tokens = from_folder.input_ids[0].iter().filter(|&&id| id == smolvlm2().tokenizer().image_token_id());
    assert_eq!(image_tokens.count(), 5 * smolvlm2().image_seq_len());
    assert!(from_folder.prompts[0].starts_with(
        "<|im_start|>User: You are provided the following series of five frames from a 0:00:03 [H:MM:SS] \
         video.\n\nFrame from 00:00:<fake_token_around_image><global-img><image>"
    ));

    let paths = (0..N_FRAMES).map(|frame| frames.join(format!("frame{frame}.png")));
    let list: Vec<ImageSource> = paths.map(ImageSource::Path).collect();
    assert_eq!(process(ask(with_fps(list.into(), FPS))).unwrap(), from_folder);

    let path = folder.path().join("clip.gif");
    std::fs::write(&path, gif()).unwrap();
    assert_eq!(process(ask(path.clone().into())).unwrap(), from_folder);
    assert_eq!(process(ask(ImageSource::from(gif()).into())).unwrap(), from_folder);
    let text = "<|im_start|>User: <video>What happens?<end_of_utterance>\nAssistant:";
    let from_text = process(parsed(json!({"text": text, "videos": [path.to_str().unwrap()]}))).unwrap();
    assert_eq!(from_text, from_folder);
}

#[test]
fn motion_jpeg_gives_the_frames_of_its_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.avi");
    std::fs::write(&path, avi()).unwrap();
    let list: Vec<ImageSource> = (0..N_FRAMES).map(|frame| ImageSource::from(jpeg(frame))).collect();
    assert_eq!(process(ask(path.into())).unwrap(), process(ask(with_fps(list.into(), FPS))).unwrap());

    let truncated = folder.path().join("truncated.avi");
    std::fs::write(&truncated, &avi()[..2000]).unwrap();
    let error = refused(ask(truncated.into())).to_string();
    assert!(error.contains("truncated.avi: not a complete, valid AVI file: at byte 0"), "{error}");
}

#[test]
fn ffmpeg_gives_the_frames_of_lossless_videos() {
    if Command::new("ffmpeg").arg("-version").output().is_err() {
        eprintln!("NOT RUN: the program ffmpeg is not installed, so decoding with it is not tested");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let frames = folder_of_frames(folder.path());
    let path = |name: &str| folder.path().join(name);
    let encode = |name: &str, more: &[&str]| {
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-framerate", "4", "-i"]).arg(frames.join("frame%d.png")).args(more);
        assert!(command.arg(path(name)).status().unwrap().success());
    };
    let expected = process(ask(with_fps(frames.clone().into(), FPS))).unwrap();
    encode("clip.mkv", &["-c:v", "ffv1", "-pix_fmt", "bgr0"]);
    assert_eq!(process(ask(path("clip.mkv").into())).unwrap(), expected);
    encode("clip.avi", &["-c:v", "ffv1", "-pix_fmt", "bgr0"]);
    assert_eq!(process(ask(path("clip.avi").into())).unwrap(), expected);
    encode("clip.mp4", &["-c:v", "libx264rgb", "-qp", "0"]);
    assert_eq!(process(ask(path("clip.mp4").into())).unwrap(), expected);
    // A file name that looks like an option and a protocol.
    std::fs::copy(path("clip.mkv"), path("-i concat:x.mkv")).unwrap();
    assert_eq!(process(ask(path("-i concat:x.mkv").into())).unwrap(), expected);
    // More frames than the number of terms that FFmpeg accepts in a sum.
    let mut many = ProcessOptions::default();
    many.video.num_frames = NonZeroUsize::new(300);
    many.video.target_fps = Some(FPS);
    encode("long.mkv", &["-c:v", "ffv1", "-vf", "loop=24:12"]);
    let long = smolvlm2().process(&[ask(path("long.mkv").into())], &many).unwrap();
    assert_eq!(long.images[0].len(), 300);
    assert!(long.images[0][..N_FRAMES] == long.images[0][N_FRAMES..2 * N_FRAMES]);
    // A lossy video of the same frames gives the same ids and other pixels.
    encode("lossy.mp4", &["-c:v", "libx264", "-pix_fmt", "yuv420p"]);
    let lossy = process(ask(path("lossy.mp4").into())).unwrap();
    assert_eq!((&lossy.input_ids, &lossy.videos), (&expected.input_ids, &expected.videos));
    assert!(lossy.images != expected.images);

    let mut damaged = std::fs::read(path("clip.mp4")).unwrap();
    damaged.truncate(100);
    std::fs::write(path("cut.mp4"), damaged).unwrap();
    let error = refused(ask(path("cut.mp4").into()));
    assert!(matches!(error, VideoError::Program { program: "ffprobe", .. }), "{error}");
    // A playlist that begins like a video file is not read as a playlist.
    std::fs::write(
        path("list.mp4"),
        format!("\0\0\0\x18ftypmp42\n#EXTM3U\n#EXTINF:1\n{}\n", path("clip.mp4").display()),
    )
    .unwrap();
    assert!(process(ask(path("list.mp4").into())).is_err());
    let mut options = ProcessOptions::default();
    options.limits.max_pixels = 100;
    let error = smolvlm2().process(&[ask(path("clip.mkv").into())], &options).unwrap_err().to_string();
    assert!(error.contains("a frame has 20x14 pixels, more than 100"), "{error}");
    let mut options = ProcessOptions::default();
    options.video.decoder_timeout = std::time::Duration::ZERO;
    let error = smolvlm2().process(&[ask(path("clip.mkv").into())], &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
}

#[test]
fn pictures_and_videos_follow_the_order_of_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let frames = folder_of_frames(folder.path());
    let picture = |frame: usize| frames.join(format!("frame{frame}.png")).to_str().unwrap().to_owned();
    let video = json!({"frames": [picture(3), picture(4)], "fps": 1, "frames_indices": [0, 1]});
    let options = ProcessOptions { do_image_splitting: Some(false), ..ProcessOptions::default() };
    let process = |sample| smolvlm2().process(&[parsed(sample)], &options).unwrap();
    let mixed =
        json!({"text": "<image>a<video>b<image>", "images": [picture(1), picture(2)], "videos": [video.clone()]});
    let mixed = process(mixed);
    let (text, images) = ("<image>".repeat(4), [1, 3, 4, 2].map(picture));
    let order = process(json!({"text": text, "images": images}));
    assert_eq!(mixed.images, order.images);
    assert_eq!((mixed.grids[0].len(), mixed.videos[0].len()), (2, 1));
    let parts = json!([
        {"type": "image", "path": picture(1)},
        {"type": "text", "text": "a"},
        {"type": "video"},
        {"type": "image", "path": picture(2)},
    ]);
    let messages = json!([{"role": "user", "content": parts}]);
    let chat = process(json!({"messages": messages, "videos": [video]}));
    assert_eq!(chat.images, mixed.images);
}

#[test]
fn options_change_the_sampling() {
    let folder = tempfile::tempdir().unwrap();
    let frames = folder_of_frames(folder.path());
    let sampled = |options: &ProcessOptions, video: VideoSource| {
        let inputs = smolvlm2().process(&[ask(video)], options).unwrap();
        (inputs.videos[0][0].frames_indices.clone(), inputs.videos[0][0].is_fps_assumed)
    };
    let mut options = ProcessOptions::default();
    let video = || VideoSource::from(frames.clone());
    assert_eq!(sampled(&options, video()), (vec![0], true), "24 frames per second are assumed");
    options.video.native_fps = Some(FPS);
    options.video.num_frames = NonZeroUsize::new(3);
    assert_eq!(sampled(&options, video()), (vec![0, 5, 11], false));
    assert_eq!(sampled(&options, with_fps(video(), 12.0)), (vec![0, 11], false), "the sample's rate takes precedence");
    options.video.num_frames = NonZeroUsize::new(600);
    options.video.target_fps = Some(3.0);
    assert_eq!(sampled(&options, video()).0.len(), 9);
    options.video.max_frames = NonZeroUsize::new(8);
    let error = smolvlm2().process(&[ask(video())], &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("9 frames would be shown to the model; at most 8"), "{error}");
}

#[test]
fn invalid_videos_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let frames = folder_of_frames(folder.path());
    let frame = frames.join("frame0.png");
    std::fs::create_dir(path("empty")).unwrap();
    std::fs::write(path("words.txt"), "words").unwrap();
    std::fs::write(path("void.mp4"), "").unwrap();
    let list = |video: serde_json::Value| {
        parsed(json!({"messages": [{"role": "user", "content": [video]}], "add_generation_prompt": true}))
    };
    let frames_with = |key: &str, value: serde_json::Value| {
        let mut video = json!({"type": "video", "frames": [frame.clone(), frame.clone()], "fps": 1});
        video[key] = value;
        refused(list(video))
    };
    assert!(matches!(refused(ask(path("empty").into())), VideoError::NoFrames { .. }));
    assert!(matches!(refused(ask(Vec::new().into())), VideoError::NoFrames { .. }));
    assert!(matches!(refused(ask(frame.clone().into())), VideoError::Picture { format: "PNG", .. }));
    assert!(matches!(refused(ask(path("words.txt").into())), VideoError::Format { .. }));
    assert!(matches!(refused(ask(path("void.mp4").into())), VideoError::Frame(_)));
    let error = refused(ask(path("absent.mp4").into()));
    assert!(error.to_string().contains("absent.mp4: cannot be read: there is no such file"), "{error}");
    let mp4 = ImageSource::from(b"\0\0\0\x18ftypmp42\0\0\0\0".to_vec());
    assert!(matches!(refused(ask(mp4.into())), VideoError::NotLocal { format: "MP4", .. }));
    for (key, value) in [
        ("fps", json!(0)),
        ("fps", json!(-1.0)),
        ("duration", json!(-0.5)),
        ("total_num_frames", json!(3)),
        ("total_num_frames", json!(u64::MAX)),
        ("frames_indices", json!([0])),
        ("frames_indices", json!([1, 1])),
    ] {
        let error = frames_with(key, value.clone());
        assert!(matches!(error, VideoError::Field { field, .. } if field == key), "{key} {value}: {error}");
    }
    // A list with only the chosen frames accepts any index.
    let far = json!({"type": "video", "frames": [frame], "fps": 30, "frames_indices": [u32::MAX]});
    assert!(process(list(far)).unwrap().prompts[0].contains("Frame from 2386092:56:"));
    let many =
        json!({"type": "video", "frames": vec![""; 513], "fps": 1, "frames_indices": (0..513).collect::<Vec<_>>()});
    assert!(matches!(refused(list(many)), VideoError::TooManyFrames { frames: 513, limit: 512, .. }));
}

#[test]
fn numbers_of_placeholders_and_videos_must_agree() {
    for (sample, expected) in [
        (json!({"text": "<video>"}), "the text has 1 <video> placeholders; expected 0"),
        (json!({"text": "<video>", "videos": ["a", "b"]}), "the text has 1 <video> placeholders; expected 2"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "video"}]}], "videos": ["a", "b"]}),
            "`videos` has 2 videos, but `messages` has 1 video part",
        ),
    ] {
        let error = refused(parsed(sample));
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn families_without_videos_are_named_in_the_error() {
    for (folder, family) in [("tiny-smolvlm", "idefics3"), ("tiny-idefics2", "idefics2"), ("idefics1-plain", "idefics")]
    {
        let processor = Processor::from_folder(&checkpoint(folder)).unwrap();
        assert!(!processor.reads_videos() && processor.video_sampling().is_none());
        let sample = parsed(json!({"text": "<video>", "videos": ["clip.gif"]}));
        let error = processor.process(&[sample], &ProcessOptions::default()).unwrap_err();
        assert!(matches!(&error, ProcessorError::Videos { error: VideoError::NotSupported { .. }, .. }), "{error}");
        assert!(error.to_string().contains(&format!("`model_type` {family} cannot read videos")), "{error}");
        assert_eq!(error.kind(), ErrorKind::Input);
        // In a family without videos, `<video>` is ordinary text.
        let text = parsed(json!({"text": "a <video> b"}));
        assert!(processor.process(&[text], &ProcessOptions::default()).is_ok());
    }
}

#[test]
fn placeholders_that_a_user_types_stay_text() {
    let sample = parsed(json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a <video> b"}]}]}));
    let inputs = process(sample).unwrap();
    assert!(inputs.videos[0].is_empty() && inputs.prompts[0].contains("a <video> b"));
    let plain = smolvlm2().tokenizer().encode(&inputs.prompts[0], false).unwrap();
    assert_eq!(inputs.input_ids[0], plain);
}

#[test]
fn equivalent_forms_of_json_give_equal_videos() {
    let file = json!({"path": "clip.mp4", "fps": 30});
    let Sample::Text { videos, .. } = parsed(json!({"text": "", "videos": [file, "frames", ["a.png", "b.png"]]}))
    else {
        panic!("expected a text")
    };
    assert_eq!(videos[0], with_fps(PathBuf::from("clip.mp4").into(), 30.0));
    assert_eq!(videos[1], PathBuf::from("frames").into(), "the string is a path, although it could be base64");
    assert!(matches!(&videos[2].frames, VideoFrames::Pictures(pictures) if pictures.len() == 2));
    let part = |part: serde_json::Value| parsed(json!({"messages": [{"role": "user", "content": [part]}]}));
    let named = part(json!({"type": "video", "path": "clip.mp4"}));
    for other in [
        json!({"type": "video", "url": "clip.mp4"}),
        json!({"type": "video", "video": "clip.mp4"}),
        json!({"type": "video_url", "video_url": {"url": "clip.mp4"}}),
    ] {
        assert_eq!(part(other).videos(), named.videos());
    }
    // A conversation with a video can be written as JSON.
    let video = json!({"frames": ["/a.png", "/b.png"], "fps": 2.5, "duration": 0.8, "frames_indices": [0, 9]});
    let mut keys = video.clone();
    keys["type"] = json!("video");
    let Sample::Messages(chat) = part(keys.clone()) else { panic!("expected messages") };
    assert_eq!(chat.messages[0].to_json()["content"][0], {
        let mut ordered = json!({"type": "video"});
        for (key, value) in video.as_object().unwrap() {
            ordered[key] = value.clone();
        }
        ordered
    });
    for (video, expected) in [
        (json!({"path": "a", "url": "b"}), "names more than one video (`path`, `url`)"),
        (json!({"fps": 1}), "has no `frames`"),
        (json!(3), "is 3; expected a path"),
        (json!({"path": 3}), "`videos[0].path` is 3"),
        (json!({"path": "a", "fps": "fast"}), "`videos[0].fps` is the string"),
        (json!({"path": "a", "frames_indices": [-1]}), "`videos[0].frames_indices[0]` is -1"),
    ] {
        let sample = json!({"text": "<video>", "videos": [video]}).to_string();
        let error = Sample::from_json(sample.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn policy_applies_to_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let frames = folder_of_frames(folder.path());
    let clip = folder.path().join("clip.gif");
    std::fs::write(&clip, gif()).unwrap();
    let mp4 = folder.path().join("clip.mp4");
    std::fs::write(&mp4, b"\0\0\0\x18ftypmp42\0\0\0\0").unwrap();
    let mut below = SourcePolicy::default();
    below.files = FileAccess::Below(frames.clone());
    for (sources, path) in [
        (SourcePolicy::data_only(), &frames),
        (SourcePolicy::data_only(), &clip),
        (SourcePolicy::data_only(), &mp4),
        (below.clone(), &clip),
        (below.clone(), &mp4),
    ] {
        let options = ProcessOptions { sources, ..ProcessOptions::default() };
        let error = smolvlm2().process(&[ask(path.clone().into())], &options).unwrap_err();
        assert!(error.to_string().contains("is not allowed"), "{error}");
    }
    let options = ProcessOptions { sources: below, ..ProcessOptions::default() };
    assert!(smolvlm2().process(&[ask(frames.into())], &options).is_ok());
}

#[test]
fn video_settings_are_read_from_the_files_of_a_checkpoint() {
    let flat = |video: serde_json::Value| {
        Folder::copy_of("tiny-smolvlm2")
            .change("processor_config.json", |keys| {
                keys.remove("image_processor");
                keys.remove("video_processor");
            })
            .write(
                "preprocessor_config.json",
                json!({"size": {"longest_edge": 41}, "max_image_size": {"longest_edge": 18}, "video_sampling": video}),
            )
    };
    let sampling = |folder: &Folder| folder.load().unwrap().video_sampling().unwrap();
    let public = flat(json!({"fps": 3, "max_frames": 7, "video_size": {"longest_edge": 30}}));
    assert_eq!((sampling(&public).fps, sampling(&public).num_frames), (3.0, 7));
    let unset = flat(json!(null));
    assert_eq!((sampling(&unset).fps, sampling(&unset).num_frames), (1.0, 64));
    let own = flat(json!(null)).write("video_preprocessor_config.json", json!({"fps": 0.5, "num_frames": 9}));
    assert_eq!((sampling(&own).fps, sampling(&own).num_frames), (0.5, 9));
    let nested = Folder::copy_of("tiny-smolvlm2");
    assert_eq!((sampling(&nested).fps, sampling(&nested).num_frames), (2.0, 5));
    for (video, expected) in [
        (json!({"fps": 0}), "`video_sampling.fps` is 0"),
        (json!({"max_frames": 1.5}), "`video_sampling.max_frames` is 1.5"),
        (json!(4), "`video_sampling` is 4"),
    ] {
        let error = flat(video).error().to_string();
        assert!(error.contains("preprocessor_config.json") && error.contains(expected), "{error}");
    }
}
