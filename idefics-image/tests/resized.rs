//! Compares resizing during decoding with resizing of the decoded image.

use std::io::Cursor;
use std::sync::OnceLock;

use idefics_image::{
    Alpha, Crop, Filter, ImageError, Limits, ResizeTarget, RgbImage, decode, decode_resized, resize_view,
};
use image::{DynamicImage, ImageFormat};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use proptest::prelude::*;

use crate::files::fixtures;

/// Returns the pixels of an image with detail everywhere, `[height, width, 3]`.
fn pixels(width: u32, height: u32) -> Vec<u8> {
    (0..3 * width * height).map(|index| (index.wrapping_mul(2_654_435_761) >> 20) as u8).collect()
}

/// Returns an EXIF block that starts with its TIFF header and has the orientation as its only tag.
fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    block.extend([orientation, 0, 0, 0, 0, 0, 0]);
    block
}

fn jpeg(width: u32, height: u32, orientation: u8, is_progressive: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, 80);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.set_progressive(is_progressive);
    encoder.add_app_segment(1, [b"Exif\0\0".as_slice(), &exif(orientation)].concat()).unwrap();
    encoder.encode(&pixels(width, height), width as u16, height as u16, ColorType::Rgb).unwrap();
    file
}

fn other(width: u32, height: u32, orientation: u8, format: ImageFormat) -> Vec<u8> {
    let picture = image::RgbImage::from_raw(width, height, pixels(width, height)).unwrap();
    let mut file = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(picture).write_to(&mut file, format).unwrap();
    let mut file = file.into_inner();
    if format == ImageFormat::Png {
        let chunk = [b"eXIf".as_slice(), &exif(orientation)].concat();
        let length = (chunk.len() as u32 - 4).to_be_bytes();
        let sum = crc32fast::hash(&chunk).to_be_bytes();
        file.splice(33..33, [length.as_slice(), &chunk, &sum].concat());
    }
    file
}

fn ppm(width: u32, height: u32) -> Vec<u8> {
    [format!("P6 {width} {height} 255\n").into_bytes(), pixels(width, height)].concat()
}

/// Returns an uncompressed TIFF in strips of seven rows.
fn tiff(width: u32, height: u32, orientation: u8) -> Vec<u8> {
    const ROWS: u32 = 7;
    let strips = height.div_ceil(ROWS);
    let entries = 9_u32;
    let (offsets_at, counts_at) = (8 + 2 + 12 * entries + 4, 8 + 2 + 12 * entries + 4 + 4 * strips);
    let bits_at = counts_at + 4 * strips;
    let data_at = bits_at + 6;
    let mut file = [b"II*\0".as_slice(), &8_u32.to_le_bytes(), &(entries as u16).to_le_bytes()].concat();
    let value_or_place = |place: u32, value: u32| if strips == 1 { value } else { place };
    for (tag, kind, count, value) in [
        (256_u16, 4_u16, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, bits_at),
        (262, 3, 1, 2),
        (273, 4, strips, value_or_place(offsets_at, data_at)),
        (274, 3, 1, u32::from(orientation)),
        (277, 3, 1, 3),
        (278, 4, 1, ROWS),
        (279, 4, strips, value_or_place(counts_at, 3 * width * height)),
    ] {
        file.extend([&tag.to_le_bytes()[..], &kind.to_le_bytes()].concat());
        file.extend([count, value].map(u32::to_le_bytes).concat());
    }
    file.extend(0_u32.to_le_bytes());
    file.extend((0..strips).flat_map(|strip| (data_at + strip * 3 * width * ROWS).to_le_bytes()));
    file.extend((0..strips).flat_map(|strip| (3 * width * ROWS.min(height - strip * ROWS)).to_le_bytes()));
    file.extend([8, 0, 8, 0, 8, 0]);
    file.extend(pixels(width, height));
    file
}

/// Returns a file of one of six formats. `kind` is 0 to 5.
fn file(kind: usize, width: u32, height: u32, orientation: u8) -> Vec<u8> {
    match kind {
        0 => jpeg(width, height, orientation, false),
        1 => jpeg(width, height, orientation, true),
        2 => other(width, height, orientation, ImageFormat::Png),
        3 => other(width, height, orientation, ImageFormat::Bmp),
        4 => tiff(width, height, orientation),
        _ => ppm(width, height),
    }
}

/// Returns a half-open range of at least one pixel inside `0..side`.
fn range(side: u32, [a, b]: [u32; 2]) -> (u32, u32) {
    let (a, b) = (a % side, b % side);
    (a.min(b), a.max(b) + 1)
}

fn expected(picture: &RgbImage, target: ResizeTarget) -> RgbImage {
    let Crop { left, top, right, bottom } = target.crop;
    let view = picture.view().crop(left as usize, top as usize, right as usize, bottom as usize);
    resize_view(view, target.width, target.height, target.filter)
}

fn threads(count: usize) -> &'static rayon::ThreadPool {
    static POOLS: OnceLock<[rayon::ThreadPool; 2]> = OnceLock::new();
    let pool = |count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
    &POOLS.get_or_init(|| [pool(1), pool(3)])[usize::from(count > 1)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn decode_resized_matches_decode_then_resize(
        kind in 0..6_usize,
        (width, height) in prop_oneof![(1..40_u32, 1..40_u32), (1..600_u32, 1..200_u32), (1..60_u32, 300..700_u32)],
        orientation in 1..=8_u8,
        crops in prop::collection::vec((any::<[u32; 2]>(), any::<[u32; 2]>(), 1..400_u32, 1..90_u32), 1..4),
        filter in prop::sample::select(Filter::ALL.to_vec()),
        thread_count in prop::sample::select(vec![1_usize, 3]),
    ) {
        let file = file(kind, width, height, orientation);
        threads(thread_count).install(|| {
            let limits = Limits::default();
            let picture = decode(&file, "picture", &limits, Alpha::White).unwrap();
            let target = |&(across, down, width, height): &([u32; 2], [u32; 2], u32, u32)| {
                let ((left, right), (top, bottom)) = (range(picture.width(), across), range(picture.height(), down));
                ResizeTarget { crop: Crop { left, top, right, bottom }, width, height, filter }
            };
            let targets: Vec<ResizeTarget> = crops.iter().map(target).collect();
            let mut size = None;
            let plan = |width, height| {
                size = Some((width, height));
                targets.clone()
            };
            let resized = decode_resized(&file, "picture", &limits, Alpha::White, plan).unwrap();
            prop_assert_eq!(size, Some((picture.width(), picture.height())));
            prop_assert_eq!(resized.len(), targets.len());
            for (resized, &target) in resized.iter().zip(&targets) {
                prop_assert!(*resized == expected(&picture, target), "{target:?}");
            }
            Ok(())
        })?;
    }
}

/// Uses every test file, including damaged, interlaced and animated files.
#[test]
fn decode_resized_matches_on_every_test_file() {
    let mut count = 0;
    for folder in ["images", "formats"] {
        for entry in std::fs::read_dir(fixtures().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let name = path.display().to_string();
            for alpha in [Alpha::White, Alpha::Drop] {
                let mut crop = Crop::whole(1, 1);
                let plan = |width: u32, height: u32| {
                    crop = Crop { left: width / 3, top: height / 4, right: width, bottom: height };
                    vec![ResizeTarget { crop, width: 11, height: 7, filter: Filter::Lanczos }]
                };
                let shrunk = decode_resized(&bytes, &name, &Limits::default(), alpha, plan);
                match (decode(&bytes, &name, &Limits::default(), alpha), shrunk) {
                    (Ok(picture), Ok(shrunk)) => {
                        let target = ResizeTarget { crop, width: 11, height: 7, filter: Filter::Lanczos };
                        assert!(shrunk == [expected(&picture, target)], "{name}");
                        count += 1;
                    }
                    (Err(whole), Err(shrunk)) => assert_eq!(whole.to_string(), shrunk.to_string()),
                    (whole, shrunk) => panic!("{name}: decode gives {whole:?}, decode_resized gives {shrunk:?}"),
                }
            }
        }
    }
    assert!(count > 100, "only {count} images were compared");
}

#[test]
fn applies_every_orientation() {
    let stored = decode(&ppm(5, 3), "picture", &Limits::default(), Alpha::White).unwrap();
    for orientation in 1..=8 {
        let file = other(5, 3, orientation, ImageFormat::Png);
        let picture = decode(&file, "picture", &Limits::default(), Alpha::White).unwrap();
        let mut turned = DynamicImage::ImageRgb8(image::RgbImage::from_raw(5, 3, stored.data().to_vec()).unwrap());
        turned.apply_orientation(image::metadata::Orientation::from_exif(orientation).unwrap());
        assert_eq!((picture.width(), picture.height()), (turned.width(), turned.height()));
        assert_eq!(picture.data(), turned.as_bytes(), "orientation {orientation}");
    }
}

#[test]
fn rejects_invalid_targets() {
    let whole = Crop::whole(5, 3);
    for (crop, width, height) in [
        (Crop { right: 6, ..whole }, 1, 1),
        (Crop { top: 3, ..whole }, 1, 1),
        (Crop { left: 4, right: 2, ..whole }, 1, 1),
        (whole, 0, 1),
        (whole, 1, 0),
    ] {
        let plan = |_, _| vec![ResizeTarget { crop, width, height, filter: Filter::Bilinear }];
        let error = decode_resized(&ppm(5, 3), "dot.ppm", &Limits::default(), Alpha::White, plan).unwrap_err();
        assert!(matches!(error, ImageError::Target { .. }), "{error}");
        assert!(error.to_string().starts_with("dot.ppm: cannot resize columns "), "{error}");
    }
}

#[test]
fn shrinking_needs_less_memory_than_full_image() {
    let limits = Limits { max_decoded_bytes: 1 << 20, ..Limits::default() };
    for kind in [0, 2, 3, 4, 5] {
        let file = file(kind, 2000, 1500, 6);
        let whole = decode(&file, "picture", &limits, Alpha::White);
        assert!(matches!(whole, Err(ImageError::Memory { .. })), "kind {kind}");
        let shrink = |width, height| {
            let crop = Crop::whole(width, height);
            vec![ResizeTarget { crop, width: 200, height: 150, filter: Filter::Lanczos }]
        };
        decode_resized(&file, "picture", &limits, Alpha::White, shrink).unwrap();
    }
}
