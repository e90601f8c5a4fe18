//! Tests decoding of AVI files, which the tests write themselves.

use idefics_image::{Alpha, Avi, ImageError, ImageErrorKind, Limits, ReadOptions, decode};
use proptest::prelude::*;

/// Returns a chunk with its header and padding.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut chunk = [&kind[..], &(data.len() as u32).to_le_bytes(), data].concat();
    chunk.resize(chunk.len() + data.len() % 2, 0);
    chunk
}

fn list(kind: &[u8; 4], name: &[u8; 4], chunks: &[Vec<u8>]) -> Vec<u8> {
    chunk(kind, &[&name[..], &chunks.concat()].concat())
}

/// Returns the list that describes a stream. `kind` is `vids` or `auds`.
fn stream(kind: &[u8; 4], codec: &[u8; 4], rate: u32, scale: u32) -> Vec<u8> {
    let mut header = [&kind[..], codec].concat();
    header.extend([0; 12]);
    header.extend(scale.to_le_bytes());
    header.extend(rate.to_le_bytes());
    header.extend([0; 28]);
    let mut format = vec![0; 40];
    format[16..20].copy_from_slice(codec);
    list(b"LIST", b"strl", &[chunk(b"strh", &header), chunk(b"strf", &format)])
}

fn main_header(microseconds: u32) -> Vec<u8> {
    let mut header = microseconds.to_le_bytes().to_vec();
    header.extend([0; 52]);
    chunk(b"avih", &header)
}

fn file(streams: &[Vec<u8>], frames: &[Vec<u8>]) -> Vec<u8> {
    let header = list(b"LIST", b"hdrl", &[vec![main_header(40_000)], streams.to_vec()].concat());
    let junk = chunk(b"JUNK", b"abc");
    list(b"RIFF", b"AVI ", &[header, junk, list(b"LIST", b"movi", frames), chunk(b"idx1", &[0; 16])])
}

fn jpeg(level: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pixels: Vec<u8> = (0..16 * 8 * 3).map(|at: u32| level.wrapping_add(at as u8 / 9)).collect();
    let encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
    encoder.encode(&pixels, 16, 8, jpeg_encoder::ColorType::Rgb).unwrap();
    bytes
}

/// Returns a file whose second stream has three frames at 15 frames per second.
fn clip() -> Vec<u8> {
    let frames = [10, 90, 200].map(|level| chunk(b"01dc", &jpeg(level)));
    let sound = chunk(b"00wb", &[0; 9]);
    let movie = [vec![sound], frames.to_vec()].concat();
    file(&[stream(b"auds", b"\x01\0\0\0", 1, 1), stream(b"vids", b"MJPG", 15_000, 1000)], &movie)
}

fn pictures(bytes: &[u8], indices: &[usize]) -> Result<Vec<Vec<u8>>, ImageError> {
    let read = ReadOptions::default();
    let mut pictures = Vec::new();
    Avi::open(bytes, "clip.avi", &read)?.decode(indices, |frame| pictures.push(frame.into_data()))?;
    Ok(pictures)
}

#[test]
fn frames_are_the_pictures_of_the_video_stream() {
    let (clip, read) = (clip(), ReadOptions::default());
    let avi = Avi::open(&clip, "clip.avi", &read).unwrap();
    assert_eq!((avi.len(), avi.fps(), avi.codec().as_str()), (3, Some(15.0), "MJPG"));
    let expected =
        [10, 90, 200].map(|level| decode(&jpeg(level), "", &Limits::default(), Alpha::White).unwrap().into_data());
    assert_eq!(pictures(&clip, &[0, 1, 2]).unwrap(), expected);
    assert_eq!(pictures(&clip, &[2, 7]).unwrap(), [expected[2].clone()]);
}

#[test]
fn empty_chunks_repeat_frames_and_further_lists_continue_the_file() {
    let one = [chunk(b"00dc", &jpeg(1)), chunk(b"00dc", b"")];
    let first = file(&[stream(b"vids", b"mjpg", 0, 0)], &[list(b"LIST", b"rec ", &one)]);
    let more = list(b"RIFF", b"AVIX", &[list(b"LIST", b"movi", &[chunk(b"00dc", &jpeg(2))])]);
    let bytes = [first, more, b"rest".to_vec()].concat();
    let read = ReadOptions::default();
    let avi = Avi::open(&bytes, "clip.avi", &read).unwrap();
    assert_eq!((avi.len(), avi.fps()), (3, Some(25.0))); // from the frame time of 40 ms in the main header
    let frames = pictures(&bytes, &[0, 1, 2]).unwrap();
    assert!(frames[0] == frames[1] && frames[1] != frames[2]);
}

#[test]
fn errors_name_the_offset() {
    let clip = clip();
    let refused = |bytes: &[u8]| match pictures(bytes, &[0]) {
        Err(ImageError::Avi { offset, reason, .. }) => (offset, reason),
        other => panic!("{other:?}"),
    };
    let movie = clip.windows(4).position(|kind| kind == b"01dc").unwrap();
    let mut long = clip.clone();
    long[movie + 4..movie + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    let (offset, reason) = refused(&long);
    assert_eq!(offset, movie as u64);
    assert!(reason.contains("\"01dc\" has 4294967295 bytes"), "{reason}");
    let (offset, reason) = refused(&clip[..movie + 100]);
    assert_eq!((offset, reason.starts_with("the chunk \"RIFF\" has")), (0, true), "{reason}");
    assert!(refused(b"RIFF\0\0\0\0WAVE").1.starts_with("expected"));
    assert!(refused(&file(&[], &[])).1.contains("no video stream"));
    assert!(refused(&file(&[stream(b"vids", b"MJPG", 1, 1)], &[])).1.contains("no frames"));
    assert!(refused(&file(&[stream(b"vids", b"MJPG", 1, 1)], &[chunk(b"00dc", b"")])).1.contains("empty"));
    let nested = (0..12).fold(Vec::new(), |inner, _| list(b"LIST", b"rec ", &[inner]));
    assert!(refused(&file(&[], &[nested])).1.contains("nested"));

    let broken = file(&[stream(b"vids", b"MJPG", 1, 1)], &[chunk(b"00dc", &jpeg(3)[..200])]);
    let error = pictures(&broken, &[0]).unwrap_err().to_string();
    assert!(error.starts_with("clip.avi, frame 0 at byte "), "{error}");
    let other = file(&[stream(b"vids", b"H264", 1, 1)], &[chunk(b"00dc", &[0; 9])]);
    let error = pictures(&other, &[0]).unwrap_err();
    assert!(matches!(error, ImageError::Coding { .. }) && error.to_string().contains("H264"), "{error}");
}

#[test]
fn limits_apply_to_the_file_and_its_frames() {
    let clip = clip();
    let mut read = ReadOptions::default();
    read.limits.max_bytes = 100;
    assert_eq!(Avi::open(&clip, "", &read).unwrap_err().kind(), ImageErrorKind::Limit);
    read.limits.max_bytes = 1 << 20;
    read.limits.max_pixels = 100;
    let error = Avi::open(&clip, "", &read).unwrap().decode(&[0], |_| ()).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");

    let frame = decode(&jpeg(10), "", &Limits::default(), Alpha::White).unwrap();
    read.limits.max_pixels = u64::from(frame.width()) * u64::from(frame.height());
    let avi = Avi::open(&clip, "clip.avi", &read).unwrap();
    let decoded = |count: usize| {
        let mut taken = 0;
        avi.decode(&vec![0; count], |_| taken += 1).map(|()| taken)
    };
    assert_eq!(decoded(64).unwrap(), 64);
    let error = decoded(65).unwrap_err();
    assert!(matches!(error, ImageError::TooManyFramePixels { .. }), "{error}");
    assert_eq!(error.kind(), ImageErrorKind::Limit);
}

#[test]
fn frames_of_other_formats_are_refused() {
    let gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    let bytes = file(&[stream(b"vids", b"MJPG", 1, 1)], &[chunk(b"00dc", gif)]);
    let error = pictures(&bytes, &[0]).unwrap_err().to_string();
    assert!(error.contains("frame 0 is a GIF picture; expected JPEG"), "{error}");
}

proptest! {
    #[test]
    fn damaged_files_never_panic(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6), cut in any::<usize>()) {
        let mut bytes = clip();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut % 40);
        let result = pictures(&bytes, &[0, 1, 2, 3]);
        let has_panicked = matches!(result, Err(ImageError::DecoderPanic { .. }));
        prop_assert!(!has_panicked);
    }
}
