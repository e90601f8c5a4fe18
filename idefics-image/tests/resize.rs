//! Compares resized pixels with Pillow.

use idefics_image::{Filter, RgbImage, resize};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::files::fixture;

/// Returns the same image as in `xtask/reference/processor_fixtures.py`.
fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for c in 0..3_u32 {
                let ramp = x * (7 + seed) + y * (13 + 2 * seed) + c * 29;
                let edges = ((x / 5 + y / 3 + c) % 3) * 97;
                let mixed = x.wrapping_mul(2_654_435_761).wrapping_add(y.wrapping_mul(40_503));
                let noise = (mixed.wrapping_add(c * 97 + seed * 7919) >> 7) % 61;
                data.push(((ramp + edges + noise) % 256) as u8);
            }
        }
    }
    RgbImage::new(width, height, data).unwrap()
}

#[test]
fn resizing_matches_pillow_bit_for_bit() {
    let bytes = fixture("resize.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut cases = 0;
    for (name, expected) in tensors.iter() {
        let [filter, index, size] = name.split('/').collect::<Vec<_>>().try_into().unwrap();
        let filter = match filter {
            "nearest" => Filter::Nearest,
            "lanczos" => Filter::Lanczos,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            "box" => Filter::Box,
            "hamming" => Filter::Hamming,
            other => panic!("unknown filter {other}"),
        };
        let (width, height) = size.split_once('x').unwrap();
        let source = picture(width.parse().unwrap(), height.parse().unwrap(), index.parse().unwrap());
        let [out_height, out_width, 3] = *expected.shape() else { panic!("{name} is not an RGB image") };
        let resized = resize(&source, out_width as u32, out_height as u32, filter);
        assert_eq!(resized.data(), expected.data(), "{name} -> {out_width}x{out_height}");
        cases += 1;
    }
    assert_eq!(cases, 6 * 31);
}

/// If an image is more than 100 times as high as wide and its height shrinks, the vertical pass comes first. The
/// expected values are CRC-32 checksums of the pixels of Pillow 12.3, one per filter.
#[test]
fn very_tall_images_match_pillow() {
    for (width, height, out_width, out_height, expected) in [
        (20, 2001, 31, 300, [0xa7a9e930, 0x50f3b597, 0x4d42cf0d, 0x86423c6a, 0x73d0942a, 0x766bf526]),
        (20, 2000, 31, 300, [0x5f0b7e1d, 0xe24fb425, 0xb303168a, 0x4a6c6bd2, 0x4021d633, 0x18709398]),
        (3, 400, 5, 90, [0x3fe5c7df, 0x87eb7dbd, 0x84aab3e2, 0xe8cefd48, 0x87d60b48, 0x1fb351a3]),
        (3, 301, 2, 300, [0x01a5b6ec, 0xded00ebe, 0x2650f8e1, 0x86bfaa75, 0xd94e2383, 0x720d7cc2]),
        (3, 301, 2, 400, [0xff8baca3, 0xcfcf3091, 0x97f62a13, 0x91850c28, 0x57790bb2, 0xcbec3bda]),
        (400, 3, 90, 5, [0xb48d1d4f, 0x9b6c8945, 0x9709174f, 0xe68b5744, 0x5fb854a3, 0x54a16b7e]),
    ] {
        let source = picture(width, height, 1);
        for (filter, expected) in Filter::ALL.into_iter().zip(expected) {
            let resized = resize(&source, out_width, out_height, filter);
            let name = format!("{width}x{height} -> {out_width}x{out_height}, {filter:?}");
            assert_eq!(crc32fast::hash(resized.data()), expected, "{name}");
        }
    }
}

fn any_filter() -> impl Strategy<Value = Filter> {
    prop::sample::select(Filter::ALL.to_vec())
}

proptest! {
    #[test]
    fn resizing_keeps_uniform_images_uniform(
        (width, height) in (1..40_u32, 1..40_u32),
        (out_width, out_height) in (1..90_u32, 1..90_u32),
        value: u8,
        filter in any_filter(),
    ) {
        let flat = RgbImage::new(width, height, vec![value; (3 * width * height) as usize]).unwrap();
        let resized = resize(&flat, out_width, out_height, filter);
        prop_assert_eq!((resized.width(), resized.height()), (out_width, out_height));
        prop_assert!(resized.data().iter().all(|&found| found == value));
    }

    #[test]
    fn bilinear_stays_within_input_range(
        (width, height) in (1..30_u32, 1..30_u32),
        (out_width, out_height) in (1..60_u32, 1..60_u32),
        seed in 0..99_u32,
    ) {
        let image = picture(width, height, seed);
        let resized = resize(&image, out_width, out_height, Filter::Bilinear);
        let (low, high) = (image.data().iter().min(), image.data().iter().max());
        prop_assert!(resized.data().iter().all(|value| Some(value) >= low && Some(value) <= high));
    }
}
