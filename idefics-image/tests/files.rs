//! Compares image files with Pillow, and tests inputs that are not images.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use idefics_image::{
    Alpha, FileAccess, Filter, ImageError, ImageErrorKind, ImageSource, Limits, ReadOptions, RgbImage, decode, load,
    load_with, resize,
};
use proptest::prelude::*;
use safetensors::SafeTensors;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap()
}

fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

fn decode_bytes(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    decode(bytes, "test", &Limits::default(), Alpha::White)
}

/// Returns a PNG signature and header, without pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend([8, 2, 0, 0, 0]);
    let crc = crc32(bytes[12..].iter().copied());
    bytes.extend(crc.to_be_bytes());
    bytes
}

#[test]
fn every_file_matches_pillow() {
    let bytes = fixture("decode.safetensors");
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(fixtures().join("images")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        for (alpha, key) in [(Alpha::White, "white"), (Alpha::Drop, "drop")] {
            let image = load(&ImageSource::Path(path.clone()), &Limits::default(), alpha).unwrap();
            let expected = expected.tensor(&format!("{name}/{key}")).unwrap();
            assert_eq!([image.height() as usize, image.width() as usize, 3], expected.shape(), "{name} {key}");
            let difference = image.data().iter().zip(expected.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert_eq!(difference, 0, "{name} {key}");
        }
        files += 1;
    }
    assert!(files >= 53, "only {files} files were compared");
}

#[test]
fn parses_sources_from_text() {
    let parse = |text: &str| text.parse::<ImageSource>();
    assert!(matches!(parse("photos/cat.png").unwrap(), ImageSource::Path(_)));
    assert!(matches!(parse(r"C:\photos\cat.png").unwrap(), ImageSource::Path(_)));
    assert!(matches!(parse("HTTPS://example.com/cat.png").unwrap(), ImageSource::Url(_)));
    assert!(matches!(parse("data:image/png;base64,AAAA").unwrap(), ImageSource::DataUrl(_)));
    for refused in ["file:///etc/passwd", "ftp://example.com/a.png", "gopher://x", "http://", "http://[::1"] {
        let error = parse(refused).unwrap_err();
        assert!(matches!(error, ImageError::Url { .. }), "{refused}: {error}");
        assert_eq!(error.kind(), ImageErrorKind::Input);
    }
}

#[test]
fn decodes_data_urls() {
    use base64::Engine as _;
    let file = fixture("images/rgba.png");
    let text = base64::engine::general_purpose::STANDARD.encode(&file);
    let expected = decode_bytes(&file).unwrap();
    let (first, second) = text.split_at(10);
    for url in [
        format!("data:image/png;base64,{text}"),
        format!("DATA:Image/PNG;charset=utf-8;BASE64,{text}"),
        format!("data:image/jpeg;base64,{first}\r\n {second}\n"),
        format!("data:image/svg+xml;base64,{text}"),
        format!("data:image/png,{}", text.trim_end_matches('=')),
        format!("data:;base64,{text}"),
    ] {
        let source: ImageSource = url.parse().unwrap();
        assert_eq!(load(&source, &Limits::default(), Alpha::White).unwrap(), expected);
    }
    for (url, why) in [
        ("data:image/png;base64".to_owned(), "comma"),
        (format!("data:image/png;base64,{}", text.trim_end_matches('=').to_owned() + "*"), "base64"),
        ("data:image/png;base64,AAAAA".to_owned(), "base64"),
        (format!("data:image/png;base64,{}", "=".repeat(100_000)), "base64"),
    ] {
        let error = load(&ImageSource::DataUrl(url), &Limits::default(), Alpha::White).unwrap_err();
        assert!(matches!(error, ImageError::DataUrl { .. }), "{error}");
        assert!(error.to_string().contains("data URL") && error.to_string().contains(why), "{error}");
    }
}

#[test]
fn errors_name_unsupported_file_types() {
    for (bytes, found) in [
        (&b"not a picture\n"[..], "a text file"),
        (b"<?xml version=\"1.0\"?>\n<svg xmlns=\"x\"/>", "an SVG drawing"),
        (b"  <!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "heif-convert"),
        (b"%PDF-1.7\n\xff", "a PDF document"),
        (b"8BPS\0\x01", "a Photoshop document"),
        (b"\x76\x2f\x31\x01", "an OpenEXR image"),
        (b"\x89PNG", "PNG signature"),
        (b"\x01\x02\x03", "01 02 03"),
    ] {
        let error = decode(bytes, "cat.png", &Limits::default(), Alpha::White).unwrap_err();
        assert!(matches!(error, ImageError::Format { .. }), "{error}");
        assert!(error.to_string().starts_with("cat.png: ") && error.to_string().contains(found), "{error}");
        assert_eq!(error.kind(), ImageErrorKind::Input);
    }
}

#[test]
fn distinguishes_file_system_errors_from_input_errors() {
    let folder = tempfile::tempdir().unwrap();
    let fail = |path: &Path| load(&ImageSource::Path(path.to_owned()), &Limits::default(), Alpha::White).unwrap_err();

    let missing = fail(&folder.path().join("missing.png"));
    assert!(matches!(missing, ImageError::Read { .. }) && missing.kind() == ImageErrorKind::FileSystem);
    assert!(missing.to_string().contains("missing.png"));
    let directory = fail(folder.path());
    assert!(matches!(directory, ImageError::NotAFile { .. }) && directory.kind() == ImageErrorKind::FileSystem);
    #[cfg(unix)]
    assert!(matches!(fail(Path::new("/dev/zero")), ImageError::NotAFile { .. }));

    let empty = folder.path().join("empty.png");
    std::fs::write(&empty, b"").unwrap();
    assert!(matches!(fail(&empty), ImageError::Empty { .. }));
    let text = folder.path().join("text.png");
    std::fs::write(&text, b"hello").unwrap();
    assert!(matches!(fail(&text), ImageError::Format { .. }));
}

#[test]
fn rejects_sizes_from_header() {
    let fail = |bytes: &[u8]| decode_bytes(bytes).unwrap_err();
    for (width, height) in [(60_000, 60_000), (70_000, 1_000), (8_001, 8_000), (u32::MAX, u32::MAX)] {
        let error = fail(&png_header(width, height));
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        assert_eq!(error.kind(), ImageErrorKind::Input);
        assert!(error.to_string().contains("--max-image-pixels"), "{error}");
    }
    // The aspect ratio may be at most 1000.
    assert!(!matches!(fail(&png_header(20_000, 20)), ImageError::TooThin { .. }));
    assert!(matches!(fail(&png_header(1, 10_000)), ImageError::TooThin { .. }));
    assert!(matches!(fail(&png_header(0, 10)), ImageError::Decode { .. }));
    // A GIF of 65535x65535 pixels with a single frame of 1x1 pixels.
    let gif = b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    assert!(matches!(fail(gif), ImageError::TooLarge { .. }));

    let file = fixture("images/rgba.png");
    let limits = Limits { max_bytes: file.len() as u64 - 1, ..Limits::default() };
    for source in [ImageSource::from(file.clone()), ImageSource::Path(fixtures().join("images/rgba.png"))] {
        let error = load(&source, &limits, Alpha::White).unwrap_err();
        assert!(matches!(error, ImageError::TooManyBytes { .. }), "{error}");
        assert_eq!(error.kind(), ImageErrorKind::Limit);
    }
    let limits = Limits { max_decoded_bytes: 16 * 12 * 3 - 1, ..Limits::default() };
    let error = decode(&file, "x", &limits, Alpha::White).unwrap_err();
    assert!(matches!(error, ImageError::Memory { .. }), "{error}");
    assert_eq!(error.kind(), ImageErrorKind::Input);
    assert!(decode(&file, "x", &Limits::default().with_max_pixels(Some(16 * 12)), Alpha::White).is_ok());
    assert!(decode(&file, "x", &Limits::default().with_max_pixels(Some(16 * 12 - 1)), Alpha::White).is_err());
    assert!(decode(&file, "x", &Limits::default().with_max_pixels(None), Alpha::White).is_ok());
}

#[test]
fn decodes_and_resizes_long_thin_images() {
    for (width, height, out) in [(5_000, 20, (980, 4)), (1_000, 20_000, (49, 980))] {
        let level = |index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8;
        let data: Vec<u8> = (0..3 * width * height).map(level).collect();
        let mut file = Cursor::new(Vec::new());
        let colors = image::ExtendedColorType::Rgb8;
        image::write_buffer_with_format(&mut file, &data, width, height, colors, image::ImageFormat::Png).unwrap();
        let picture = decode(&file.into_inner(), "long", &Limits::default(), Alpha::White).unwrap();
        assert!(picture.data() == data, "{width}x{height}");
        let smaller = resize(&picture, out.0, out.1, Filter::Bilinear);
        assert_eq!((smaller.width(), smaller.height()), out);
    }
}

#[test]
fn reads_file_whose_name_could_be_base64() {
    let folder = tempfile::tempdir().unwrap();
    let name = "a".repeat(64);
    let path = folder.path().join(&name);
    std::fs::write(&path, fixture("images/rgba.png")).unwrap();
    let mut source: ImageSource = name.parse().unwrap();
    assert!(matches!(source, ImageSource::Base64 { .. }) && source.file().is_none());
    source.resolve(folder.path());
    assert_eq!(source.file().unwrap(), path);
    assert!(load(&source, &Limits::default(), Alpha::White).is_ok());
    // If the policy allows only another folder, the file is not read, and the error is the same as for a missing file.
    let below = tempfile::tempdir().unwrap();
    let read = |source: &ImageSource| {
        let mut options = ReadOptions::default();
        options.sources.files = FileAccess::Below(below.path().to_owned());
        load_with(source, &options, Alpha::White).unwrap_err().to_string()
    };
    let outside = read(&source);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read(&source), outside);
}

#[test]
fn rejects_png_with_two_headers() {
    let file = fixture("images/rgba.png");
    let header = &file[8..33];
    let twice = [&file[..33], header, &file[33..]].concat();
    let error = decode(&twice, "x", &Limits::default(), Alpha::White).unwrap_err();
    assert!(matches!(error, ImageError::Decode { .. }), "{error}");
}

#[test]
fn truncated_file_is_an_error_or_the_whole_image() {
    for entry in std::fs::read_dir(fixtures().join("images")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let whole = decode_bytes(&bytes).unwrap();
        for end in 0..bytes.len() {
            match decode_bytes(&bytes[..end]) {
                Ok(image) => assert_eq!(image, whole, "{} cut at {end} of {}", path.display(), bytes.len()),
                Err(error) => assert_eq!(error.kind(), ImageErrorKind::Input, "{error}"),
            }
        }
    }
}

#[test]
fn rejects_pixel_data_of_wrong_length() {
    assert!(RgbImage::new(2, 1, vec![0; 6]).is_ok());
    for (width, height, length) in [(2, 1, 5), (0, 1, 0), (1, 0, 0), (u32::MAX, u32::MAX, 3)] {
        assert!(matches!(RgbImage::new(width, height, vec![0; length]), Err(ImageError::PixelCount { .. })));
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..6_usize) {
        let starts: [&[u8]; 6] =
            [b"", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\xff\0\0\0WEBPVP8"];
        let _ = decode_bytes(&[starts[kind], &bytes].concat());
    }

    #[test]
    fn damaged_files_never_panic(at in 0..400_usize, value: u8, file in 0..6_usize) {
        let names = ["rgba.png", "420.jpg", "progressive.jpg", "animated.gif", "lossless_alpha.webp", "rgb.bmp"];
        let mut bytes = fixture(&format!("images/{}", names[file]));
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = decode_bytes(&bytes);
    }

    #[test]
    fn random_text_never_panics(text in any::<String>(), data in "[ -~]{0,40}") {
        let _ = text.parse::<ImageSource>();
        let _ = load(&ImageSource::DataUrl(format!("data:{data}")), &Limits::default(), Alpha::White);
        let _ = load(&ImageSource::DataUrl(format!("data:image/png;base64,{data}")), &Limits::default(), Alpha::White);
    }
}

/// Returns compressed PNG data of 16-pixel RGB rows. The last row has the given filter type, and all other rows have
/// type 0.
fn rows_of_png(rows: usize, filter: u8) -> Vec<u8> {
    let mut raw = Vec::new();
    for y in 0..rows {
        raw.push(if y + 1 == rows { filter } else { 0 });
        raw.extend((0..48).map(|x| (7 * x + 31 * y) as u8));
    }
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, &raw).unwrap();
    encoder.finish().unwrap()
}

/// Returns a PNG of 16x12 RGB pixels, with one IDAT chunk per slice of compressed data.
fn png_of_chunks(chunks: &[&[u8]]) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [kind, data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc32fast::hash(&body).to_be_bytes()].concat()
    };
    let header = chunk(b"IHDR", &[0, 0, 0, 16, 0, 0, 0, 12, 8, 2, 0, 0, 0]);
    let data: Vec<u8> = chunks.iter().flat_map(|data| chunk(b"IDAT", data)).collect();
    [b"\x89PNG\r\n\x1a\n".to_vec(), header, data, chunk(b"IEND", &[])].concat()
}

fn png_of_rows(rows: usize, filter: u8) -> Vec<u8> {
    png_of_chunks(&[&rows_of_png(rows, filter)])
}

/// As in Pillow, rows after the end of valid data are black, and an unknown filter is an error.
#[test]
fn missing_png_rows_are_black() {
    let whole = decode_bytes(&png_of_rows(12, 0)).unwrap();
    for rows in [1, 6, 11] {
        let picture = decode_bytes(&png_of_rows(rows, 0)).unwrap();
        assert_eq!(picture.data()[..48 * rows], whole.data()[..48 * rows]);
        assert!(picture.data()[48 * rows..].iter().all(|&value| value == 0), "{rows} rows");
        assert!(matches!(decode_bytes(&png_of_rows(rows, 9)), Err(ImageError::Decode { .. })), "{rows} rows");
    }
    assert!(matches!(decode_bytes(&png_of_rows(0, 0)), Err(ImageError::Decode { .. })));
}

/// As in Pillow, the Adler-32 checksum is only verified if it is in the same chunk as the end of the last row.
#[test]
fn png_checksum_is_verified_only_in_the_chunk_of_the_last_row() {
    let whole = decode_bytes(&png_of_rows(12, 0)).unwrap();
    let mut data = rows_of_png(12, 0);
    let end = data.len();
    data[end - 1] ^= 1;
    assert!(matches!(decode_bytes(&png_of_chunks(&[&data])), Err(ImageError::Decode { .. })));
    for place in 1..=4 {
        let (pixels, rest) = data.split_at(end - place);
        assert_eq!(decode_bytes(&png_of_chunks(&[pixels, rest])).unwrap(), whole, "{place} bytes in a separate chunk");
        assert_eq!(decode_bytes(&png_of_chunks(&[pixels])).unwrap(), whole, "{place} bytes missing");
    }
    // A chunk boundary in the middle of the pixels does not hide the wrong checksum.
    assert!(decode_bytes(&png_of_chunks(&[&data[..10], &data[10..]])).is_err());
}

/// As in Pillow, a wrong checksum in a separate chunk is tolerated in an interlaced image too. The image has 2x2
/// pixels.
#[test]
fn interlaced_png_tolerates_wrong_checksum_but_not_damage() {
    let file = |filter: u8, split: bool| {
        let raw = [0, 1, 2, 3, 0, 4, 5, 6, filter, 7, 8, 9, 10, 11, 12];
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, &raw).unwrap();
        let mut data = encoder.finish().unwrap();
        let end = data.len();
        data[end - 1] ^= 1;
        let chunks = if split { vec![&data[..end - 4], &data[end - 4..]] } else { vec![&data[..]] };
        let mut file = png_of_chunks(&chunks);
        file[16..29].copy_from_slice(&[0, 0, 0, 2, 0, 0, 0, 2, 8, 2, 0, 0, 1]);
        let sum = crc32fast::hash(&file[12..29]);
        file[29..33].copy_from_slice(&sum.to_be_bytes());
        file
    };
    assert_eq!(decode_bytes(&file(0, true)).unwrap().data(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    for damaged in [file(0, false), file(9, true), file(9, false)] {
        assert!(matches!(decode_bytes(&damaged), Err(ImageError::Decode { .. })));
    }
}
