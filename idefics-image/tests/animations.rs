//! Compares animations with the frames that Pillow composes, and tests damaged files and limits.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use idefics_image::{Alpha, Animation, ImageError, ImageErrorKind, Limits, ReadOptions, decode};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::files::{fixture, fixtures};

/// Decodes the frames at `indices`, each to `[height, width, 3]`.
fn frames(bytes: &[u8], indices: &[usize]) -> Result<Vec<Vec<u8>>, ImageError> {
    let read = ReadOptions::default();
    let animation = Animation::open(bytes, "test", &read, Alpha::White)?.expect("an animation");
    let mut frames = Vec::new();
    animation.decode(indices, |frame| frames.push(frame.into_data()))?;
    Ok(frames)
}

/// Returns the names and contents of all test files, sorted by name.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(fixtures().join("animations"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn every_frame_matches_pillow() {
    let bytes = fixture("animations.safetensors");
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut differing = Vec::new();
    for (name, bytes) in files() {
        let read = ReadOptions::default();
        let animation = Animation::open(&bytes, &name, &read, Alpha::White).unwrap().expect("an animation");
        let durations: Vec<i64> = animation.durations().map(|time| time.as_millis() as i64).collect();
        let stated = expected.tensor(&format!("{name}/durations")).unwrap();
        let stated: Vec<i64> = stated.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect();
        assert_eq!(durations, stated, "{name}");
        let pixels = expected.tensor(&format!("{name}/frames")).unwrap();
        let count = pixels.shape()[0];
        assert_eq!(animation.len(), count, "{name}");
        let found = frames(&bytes, &(0..count).collect::<Vec<_>>()).unwrap().concat();
        assert_eq!(found.len(), pixels.data().len(), "{name}");
        let frame = found.len() / count;
        let wrong = |index: &usize| found[index * frame..][..frame] != pixels.data()[index * frame..][..frame];
        let wrong: Vec<usize> = (0..count).filter(wrong).collect();
        if !wrong.is_empty() {
            let difference = found.iter().zip(pixels.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            differing.push((name.clone(), wrong, difference));
        }
    }
    assert!(differing.is_empty(), "{differing:?}");
}

#[test]
fn first_frame_is_the_picture_and_frames_are_chosen_by_index() {
    for (name, bytes) in files() {
        let all = frames(&bytes, &[0, 1, 2, 3]).unwrap();
        // The picture in `default.png` is a default image that does not belong to the animation.
        if name != "default.png" {
            let picture = decode(&bytes, &name, &Limits::default(), Alpha::White).unwrap();
            assert!(picture.data() == all[0], "{name}");
        }
        let some = frames(&bytes, &[1, 3, 99]).unwrap();
        assert!(some == [all[1].clone(), all[3].clone()], "{name}");
        assert!(frames(&bytes, &[]).unwrap().is_empty());
    }
}

#[test]
fn still_pictures_are_not_animations() {
    let read = ReadOptions::default();
    for name in ["lossless.webp", "lossy.webp"] {
        let bytes = fixture(&format!("images/{name}"));
        assert!(Animation::open(&bytes, name, &read, Alpha::White).unwrap().is_none(), "{name}");
    }
    for bytes in [&b""[..], b"\xff\xd8\xff\xe0", b"GIF8", b"\x89PNG\r\n\x1a\n"] {
        assert!(matches!(Animation::open(bytes, "", &read, Alpha::White), Ok(None)));
    }
    let gif = fixture("images/plain.gif");
    assert_eq!(Animation::open(&gif, "", &read, Alpha::White).unwrap().unwrap().len(), 1);
}

#[test]
fn limits_apply_to_the_canvas_and_to_all_frames_together() {
    let (_, gif) = files().into_iter().find(|(name, _)| name == "opaque_2.gif").unwrap();
    let mut read = ReadOptions::default();
    read.limits.max_pixels = 19 * 13 - 1;
    let error = Animation::open(&gif, "clip.gif", &read, Alpha::White).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    read.limits.max_pixels = 19 * 13;
    read.limits.max_decoded_bytes = 1000;
    let error = Animation::open(&gif, "clip.gif", &read, Alpha::White).unwrap_err();
    assert!(matches!(error, ImageError::Memory { .. }), "{error}");
    read.limits.max_decoded_bytes = 1 << 20;
    read.limits.max_bytes = 10;
    let error = Animation::open(&gif, "clip.gif", &read, Alpha::White).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Limit);

    // 70 frames, each with the maximum number of pixels of one picture.
    let frame = &b"\x21\xf9\x04\0\x05\0\0\0\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0"[..];
    let gif = [&b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff"[..], &frame.repeat(70), b";"].concat();
    let mut read = ReadOptions::default();
    read.limits.max_pixels = 1;
    let animation = Animation::open(&gif, "clip.gif", &read, Alpha::White).unwrap().unwrap();
    assert!(animation.decode(&[63], |_| ()).is_ok());
    let error = animation.decode(&[64], |_| ()).unwrap_err();
    assert!(matches!(error, ImageError::TooManyFramePixels { pixels: 65, limit: 64, .. }), "{error}");
}

#[test]
fn cancelling_ends_decoding() {
    let (_, gif) = files().into_iter().find(|(name, _)| name == "opaque_2.gif").unwrap();
    let mut read = ReadOptions::default();
    read.cancel = Some(Arc::new(AtomicBool::new(true)));
    let animation = Animation::open(&gif, "clip.gif", &read, Alpha::White).unwrap().unwrap();
    assert!(matches!(animation.decode(&[0], |_| ()), Err(ImageError::Cancelled { .. })));
}

#[test]
fn every_prefix_is_rejected_or_has_whole_frames() {
    for (name, bytes) in files() {
        for end in (0..bytes.len()).step_by(7) {
            let read = ReadOptions::default();
            if let Ok(Some(animation)) = Animation::open(&bytes[..end], &name, &read, Alpha::White) {
                let last = animation.len() - 1;
                let result = animation.decode(&[last], |frame| assert_eq!((frame.width(), frame.height()), (19, 13)));
                assert!(!matches!(result, Err(ImageError::DecoderPanic { .. })), "{name}, {end} bytes");
            }
        }
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(file in 0_usize..25, changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
        let files = files();
        let (name, mut bytes) = files[file % files.len()].clone();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let mut read = ReadOptions::default();
        read.limits.max_pixels = 1 << 20;
        read.limits.max_decoded_bytes = 64 << 20;
        if let Ok(Some(animation)) = Animation::open(&bytes, &name, &read, Alpha::White) {
            let all: Vec<usize> = (0..animation.len()).collect();
            let result = animation.decode(&all, |_| ());
            prop_assert!(!matches!(result, Err(ImageError::DecoderPanic { .. })), "{name}");
        }
    }
}
