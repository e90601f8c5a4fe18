//! TIFF files against Pillow, and against damage.

use std::io::Read;
use std::num::NonZeroU32;
use std::path::Path;

use flate2::read::ZlibDecoder;
use idefics_image::{Alpha, DecodeOptions, ImageError, ImageErrorKind, Limits, RgbImage, decode};
use proptest::prelude::*;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

/// The files of `xtask/reference/tiff_fixtures.py`.
fn fixture() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiff.safetensors.zlib");
    let mut bytes = Vec::new();
    ZlibDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The files, by name.
fn files(fixture: &[u8]) -> Vec<(String, Vec<u8>)> {
    let tensors = SafeTensors::deserialize(fixture).unwrap();
    let is_file = |name: &str| !name.ends_with("/drop") && !name.ends_with("/white");
    let mut files: Vec<_> = tensors
        .iter()
        .filter(|(name, _)| is_file(name))
        .map(|(name, view)| (name.to_owned(), view.data().to_vec()))
        .collect();
    files.sort();
    files
}

fn file(name: &str) -> Vec<u8> {
    SafeTensors::deserialize(&fixture()).unwrap().tensor(name).unwrap().data().to_vec()
}

fn read(bytes: &[u8], options: impl Into<DecodeOptions>) -> Result<RgbImage, ImageError> {
    decode(bytes, "test", &Limits::default(), options)
}

/// A picture in the form of the fixture.
fn digest(image: &RgbImage) -> Vec<u8> {
    let mut digest = [image.width().to_le_bytes(), image.height().to_le_bytes()].concat();
    digest.extend(Sha256::digest(image.data()));
    digest
}

/// Files that are read although Pillow refuses them, and why.
fn is_read_by_us_alone(name: &str) -> bool {
    // Big-endian BigTIFF, which Pillow takes for the classic form.
    name.starts_with("big_") && name.ends_with("_be")
}

#[test]
fn every_file_has_the_pixels_that_pillow_gives_it() {
    let fixture = fixture();
    let tensors = SafeTensors::deserialize(&fixture).unwrap();
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for (name, file) in files(&fixture) {
        for (alpha, key) in [(Alpha::Drop, "drop"), (Alpha::White, "white")] {
            let expected = tensors.tensor(&format!("{name}/{key}")).unwrap().data();
            match read(&file, alpha) {
                Ok(image) if digest(&image) == expected => equal += 1,
                Ok(_) if expected.is_empty() && is_read_by_us_alone(&name) => {}
                Ok(image) => {
                    let what = if expected.is_empty() { "is refused by Pillow" } else { "differs" };
                    wrong.push(format!(
                        "{name} {key} {what}: {:?} {}x{}",
                        &digest(&image)[8..10],
                        image.width(),
                        image.height()
                    ));
                }
                Err(error) => {
                    assert_eq!(error.kind(), ImageErrorKind::Input, "{name}");
                    assert!(!matches!(error, ImageError::DecoderPanic { .. }), "{name}");
                    if expected.is_empty() { refused += 1 } else { wrong.push(format!("{name} {key}: {error}")) }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong, {equal} equal, {refused} refused:\n{}", wrong.len(), wrong.join("\n"));
    assert!(equal >= 740 && refused >= 60, "{equal} equal, {refused} refused");
}

#[test]
fn pages_are_counted_from_1() {
    let pages = file("pillow_pages");
    let of_page = |page| read(&pages, DecodeOptions::from(Alpha::Drop).with_page(NonZeroU32::new(page).unwrap()));
    let [first, second, third] = [1, 2, 3].map(|page| of_page(page).unwrap());
    assert_eq!(first, read(&pages, Alpha::Drop).unwrap());
    assert_ne!(first, second);
    assert!(third.data().iter().all(|&value| value == 0 || value == 255), "the third page is bilevel");
    let error = of_page(4).unwrap_err();
    assert!(matches!(error, ImageError::NoSuchPage { pages: 3, .. }), "{error}");
    assert!(error.to_string().contains("page 4"), "{error}");

    let mut png = Vec::new();
    image::RgbImage::new(2, 2).write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
    let error = read(&png, DecodeOptions::default().with_page(NonZeroU32::new(2).unwrap())).unwrap_err();
    assert!(matches!(error, ImageError::NoSuchPage { pages: 1, .. }), "{error}");
}

#[test]
fn what_is_wrong_is_named_with_its_tag() {
    for (name, what) in [
        ("no_width", "ImageWidth"),
        ("no_map", "ColorMap"),
        ("no_compression_of_this_kind", "Compression"),
        ("truncated", "StripOffsets"),
        ("few_counts", "strip 0"),
        ("half_le_1", "SampleFormat"),
    ] {
        let error = read(&file(name), Alpha::White).unwrap_err();
        assert!(error.to_string().contains(what), "{name}: {error}");
    }
}

#[test]
fn sizes_and_memory_are_checked_before_decoding() {
    let bytes = file("rgb_le_8");
    let limits = Limits { max_pixels: 21 * 13 - 1, ..Limits::default() };
    assert!(matches!(decode(&bytes, "x", &limits, Alpha::White), Err(ImageError::TooLarge { .. })));
    let limits = Limits { max_decoded_bytes: 3 * 21 * 13 - 1, ..Limits::default() };
    assert!(matches!(decode(&bytes, "x", &limits, Alpha::White), Err(ImageError::Memory { .. })));
    let limits = Limits { max_decoded_bytes: 3 * 21 * 13, ..Limits::default() };
    assert!(decode(&bytes, "x", &limits, Alpha::White).is_ok());

    // A tile much larger than the picture.
    let mut bytes = file("rgb_tiles_le_8");
    let entry = bytes.windows(4).position(|window| window == [0x42, 1, 4, 0]).unwrap();
    bytes[entry + 8..entry + 12].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    let error = read(&bytes, Alpha::White).unwrap_err();
    assert!(matches!(error, ImageError::Memory { .. }), "{error}");
}

#[test]
fn a_truncated_file_is_an_error_or_a_picture() {
    for name in ["rgb_le_8", "palette4_be_1", "tiffcp_g4_tiles", "tiffcp_jpeg_strips", "tiffcp_g3:2d_msb2lsb"] {
        let bytes = file(name);
        for end in (0..bytes.len()).step_by(7) {
            if let Err(error) = read(&bytes[..end], Alpha::White) {
                assert_eq!(error.kind(), ImageErrorKind::Input, "{error}");
                assert!(!matches!(error, ImageError::DecoderPanic { .. }), "{name} cut at {end}: {error}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damage_gives_pixels_or_an_error(
        file in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        is_cut: bool,
        page in 1..3_u32,
    ) {
        thread_local! {
            static FILES: Vec<(String, Vec<u8>)> = files(&fixture());
        }
        let mut bytes = FILES.with(|files| file.get(files).1.clone());
        for (at, value) in changes {
            *at.get_mut(&mut bytes) = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let limits = Limits { max_decoded_bytes: 1 << 24, ..Limits::default() };
        let options = DecodeOptions::default().with_page(NonZeroU32::new(page).unwrap());
        match decode(&bytes, "test", &limits, options) {
            Ok(image) => prop_assert_eq!(image.data().len(), 3 * (image.width() * image.height()) as usize),
            Err(error) => {
                prop_assert!(!matches!(error, ImageError::DecoderPanic { .. }), "{}", error);
                prop_assert_eq!(error.kind(), ImageErrorKind::Input);
            }
        }
    }
}
