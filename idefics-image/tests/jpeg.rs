//! Compares JPEG decoding with Pillow, and tests damaged files.

use std::path::Path;

use idefics_image::{Alpha, ImageError, ImageErrorKind, Limits, RgbImage, decode};
use proptest::prelude::*;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

/// Reads the fixture that `xtask/reference/jpeg_fixtures.py` writes.
fn fixture() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg.safetensors")).unwrap()
}

fn read(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    decode(bytes, "test", &Limits::default(), Alpha::White)
}

/// Returns the test files, sorted by name.
fn files() -> Vec<(String, Vec<u8>)> {
    let fixture = fixture();
    let tensors = SafeTensors::deserialize(&fixture).unwrap();
    let mut files: Vec<(String, Vec<u8>)> = tensors
        .iter()
        .filter(|(name, _)| !name.ends_with("/rgb"))
        .map(|(name, view)| (name.to_owned(), view.data().to_vec()))
        .collect();
    files.sort();
    files
}

/// Returns width, height and a hash of the pixels, in the format of the fixture.
fn digest(image: &RgbImage) -> Vec<u8> {
    let mut digest = [image.width().to_le_bytes(), image.height().to_le_bytes()].concat();
    digest.extend(Sha256::digest(image.data()));
    digest
}

#[test]
fn every_file_matches_pillow() {
    let fixture = fixture();
    let tensors = SafeTensors::deserialize(&fixture).unwrap();
    let (mut read_files, mut refused) = (0, 0);
    for (name, file) in files() {
        let expected = tensors.tensor(&format!("{name}/rgb")).unwrap().data();
        match read(&file) {
            Ok(image) => {
                assert_eq!(digest(&image), expected, "{name}");
                read_files += 1;
            }
            Err(error) => {
                assert!(expected.is_empty(), "{name}: {error}");
                assert_eq!(error.kind(), ImageErrorKind::Input, "{name}");
                refused += 1;
            }
        }
    }
    assert_eq!((read_files, refused), (246, 12));
}

#[test]
fn result_does_not_depend_on_number_of_threads() {
    let pools = [1, 2, 5].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    let coffee = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/images/coffee.jpg");
    let mut files = files();
    files.push(("coffee".into(), std::fs::read(coffee).unwrap()));
    for (name, file) in files {
        let [one, two, five] = pools.each_ref().map(|pool| pool.install(|| read(&file).ok()));
        assert!(one == two && two == five, "{name}");
    }
}

#[test]
fn errors_name_unsupported_codings_and_damage() {
    let (_, plain) = files().into_iter().find(|(name, _)| name == "120x90_420_q95").unwrap();
    let frame = plain.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    for (marker, what) in [
        (0xc3, "lossless"),
        (0xc5, "hierarchical"),
        (0xc9, "arithmetic"),
        (0xca, "arithmetic"),
        (0xcb, "lossless arithmetic"),
        (0xcf, "hierarchical arithmetic"),
    ] {
        let mut file = plain.clone();
        file[frame + 1] = marker;
        let error = read(&file).unwrap_err();
        assert!(matches!(error, ImageError::Coding { .. }) && error.to_string().contains(what), "{error}");
    }
    let mut file = plain.clone();
    file[frame + 4] = 12;
    let error = read(&file).unwrap_err();
    assert!(matches!(error, ImageError::Coding { .. }) && error.to_string().contains("12 bits"), "{error}");

    let fail = |file: &[u8], what: &str| {
        let error = read(file).unwrap_err();
        assert!(matches!(error, ImageError::Decode { .. }) && error.to_string().contains(what), "{what}: {error}");
    };
    fail(&plain[..plain.len() - 1], "ends early");
    fail(&plain[..frame], "ends early");
    fail(b"\xff\xd8\xff\xd9", "before any image data");
    let scan = plain.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    fail(&[&plain[..plain.len() - 2], &plain[scan..]].concat(), "second scan");
    for (name, what) in [("two_frames", "two frames"), ("no_quantization", "quantisation table is missing")] {
        fail(&files().into_iter().find(|(found, _)| found == name).unwrap().1, what);
    }
}

#[test]
fn rejects_too_many_scans() {
    let (_, file) = files().into_iter().find(|(name, _)| name == "40x30_420_q30_progressive").unwrap();
    let start = file.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    let end = start + 2 + file[start + 2..].windows(2).position(|pair| pair[0] == 0xff && pair[1] >= 0xc0).unwrap();
    let bomb = [&file[..start], &file[start..end].repeat(501), b"\xff\xd9"].concat();
    let error = read(&bomb).unwrap_err();
    assert!(error.to_string().contains("too many scans"), "{error}");
}

#[test]
fn progressive_coefficients_count_as_memory() {
    let (_, file) = files().into_iter().find(|(name, _)| name == "40x30_420_q30_progressive").unwrap();
    // The image has 3x2 units (MCUs). The number of blocks per row is rounded up to an even number. Therefore, each of
    // the 2 rows of units has 2x6 blocks of luminance and 4 blocks of each chrominance component. A block takes 128
    // bytes, and its mask 8 bytes.
    let needed = 2 * (2 * 6 + 4 + 4) * (128 + 8);
    let limits = |max_decoded_bytes| Limits { max_decoded_bytes, ..Limits::default() };
    let read = |limit| decode(&file, "test", &limits(limit), Alpha::White);
    assert!(read(needed).is_ok());
    let error = read(needed - 1).unwrap_err();
    assert!(matches!(error, ImageError::Memory { .. }), "{error}");
    assert!(error.to_string().contains(&needed.to_string()), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_file_gives_pixels_or_an_error(
        file in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        is_cut: bool,
    ) {
        let files = files();
        let mut bytes = file.get(&files).1.clone();
        for (at, value) in changes {
            *at.get_mut(&mut bytes) = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
            bytes.extend([0xff, 0xd9]);
        }
        match read(&bytes) {
            Ok(image) => prop_assert_eq!(image.data().len(), 3 * (image.width() * image.height()) as usize),
            Err(error) => {
                prop_assert!(!matches!(error, ImageError::DecoderPanic { .. }), "{}", error);
                prop_assert_eq!(error.kind(), ImageErrorKind::Input);
            }
        }
    }
}
