//! Image configuration, and pixel values compared with Transformers.

use std::path::{Path, PathBuf};

use idefics_processor::families::Idefics2;
use idefics_processor::image::{
    Filter, ImageConfigError, ImageProcessor, ImageProcessorConfig, ImageSize, ImageTile, PadError, PaddedImages,
    RgbImage, pad_batch, resize_output_size,
};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap()
}

fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// Draws the same pictures as `xtask/reference/processor_fixtures.py`.
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

fn f32s(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::F32);
    view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn i64s(tensors: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    let view = tensors.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::I64);
    view.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn edges_size_matches_reference() {
    let table: Vec<[u32; 4]> = serde_json::from_slice(&fixture("image_sizes.json")).unwrap();
    assert_eq!(table.len(), 22 * 22);
    for [width, height, new_width, new_height] in table {
        assert_eq!(resize_output_size(width, height, 378, 980), (new_width, new_height), "{width}x{height}");
    }
    // Pairs of (height, width), as in the reference's documentation.
    let examples = [
        ((480, 640), (480, 640)),
        ((300, 400), (378, 400)),
        ((100, 3000), (378, 980)),
        ((2000, 1000), (980, 490)),
        ((1333, 2000), (653, 980)),
        ((1080, 1920), (551, 980)),
    ];
    for ((height, width), (new_height, new_width)) in examples {
        assert_eq!(resize_output_size(width, height, 378, 980), (new_width, new_height), "{width}x{height}");
    }
}

// ---- configuration

#[test]
fn config_is_parsed_or_rejected_with_field_name() {
    let read = |text: &str| ImageProcessorConfig::from_json(text, &Idefics2);
    let published = r#"{"do_convert_rgb": true, "do_image_splitting": true, "do_normalize": true, "do_pad": true,
        "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Idefics2ImageProcessor", "processor_class": "Idefics2Processor", "resample": 2,
        "rescale_factor": 0.00392156862745098, "size": {"longest_edge": 980, "shortest_edge": 378}}"#;
    let expected = ImageProcessorConfig { do_image_splitting: true, ..Default::default() };
    assert_eq!(read(published).unwrap(), expected);
    let nested = format!(r#"{{"image_seq_len": 64, "image_processor": {published}}}"#);
    assert_eq!(read(&nested).unwrap(), expected);
    let written = serde_json::to_string(&expected).unwrap();
    assert_eq!(read(&written).unwrap(), expected);
    assert_eq!(serde_json::from_str::<ImageProcessorConfig>(&written).unwrap(), expected);
    assert_eq!(
        read(r#"{"size": null, "resample": null, "crop_size": null, "pad_size": null}"#).unwrap(),
        Default::default()
    );
    assert_eq!(read(r#"{"image_mean": 0.25, "size": {"height": 3, "width": 4, "longest_edge": null}}"#).unwrap(), {
        let size = ImageSize::Exact { height: 3, width: 4 };
        ImageProcessorConfig { image_mean: [0.25; 3], size, ..Default::default() }
    });

    for (text, field) in [
        (r#"{"image_std": [0.5, 0, 0.5]}"#, "image_std[1]"),
        (r#"{"image_std": [0.5, 0.5]}"#, "image_std"),
        (r#"{"image_std": 1e-60}"#, "image_std[0]"),
        (r#"{"image_mean": ["0.5", 1, 1]}"#, "image_mean"),
        (r#"{"image_mean": 1e300}"#, "image_mean[0]"),
        (r#"{"rescale_factor": 0}"#, "rescale_factor"),
        (r#"{"size": {"shortest_edge": 0, "longest_edge": 980}}"#, "size.shortest_edge"),
        (r#"{"size": {"shortest_edge": 1, "longest_edge": 99999}}"#, "size.longest_edge"),
        (r#"{"size": {"longest_edge": 980}}"#, "size"),
        (r#"{"size": {"longest_edge": 980, "shortest_edge": -1}}"#, "size"),
        (r#"{"size": {"longest_edge": 980, "shortest_edge": 378, "height": 1}}"#, "size"),
        (r#"{"size": 980}"#, "size"),
        (r#"{"resample": 6}"#, "resample"),
        (r#"{"do_pad": "yes"}"#, "do_pad"),
        (r#"{"image_processor_type": "Idefics3ImageProcessor"}"#, "image_processor_type"),
        (r#"{"image_processor": 3}"#, "image_processor"),
    ] {
        match read(text) {
            Err(ImageConfigError::Field { field: found, .. }) => assert_eq!(found, field, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(matches!(read("[]"), Err(ImageConfigError::Json { .. })));
    assert!(matches!(read("{"), Err(ImageConfigError::Json { .. })));
    let nan = ImageProcessorConfig { image_std: [f64::NAN; 3], ..Default::default() };
    assert!(ImageProcessor::new(&Idefics2, nan).is_err());
}

#[test]
fn unknown_keys_are_ignored_and_listed() {
    let object = |text: &str| serde_json::from_str::<serde_json::Map<_, _>>(text).unwrap();
    let ignored = |text: &str| ImageProcessorConfig::default().ignored_keys(&object(text)).join(" ");
    let strange = r#"{"auto_map": {}, "max_image_size": {"longest_edge": 364}, "do_center_crop": true, "resample": 1,
        "crop_size": 3, "pad_size": {"height": 1, "width": 1}, "data_format": "channels_last", "no_such_key": null}"#;
    assert_eq!(
        ignored(strange).split(' ').collect::<std::collections::BTreeSet<_>>(),
        ["auto_map", "crop_size", "data_format", "do_center_crop", "max_image_size", "pad_size"].into()
    );
    let config = ImageProcessorConfig::from_idefics2_object(&object(strange)).unwrap();
    assert_eq!(config, ImageProcessorConfig { resample: Filter::Lanczos, ..Default::default() });
    let usual = r#"{"use_fast": true, "do_center_crop": false, "crop_size": 3, "data_format": "channels_first",
        "size": {"height": 3, "width": 4}, "image_processor_type": "Idefics2ImageProcessor"}"#;
    assert_eq!(ignored(usual), "");
    // No field that serialisation writes is listed as ignored.
    let written = serde_json::to_string(&config).unwrap();
    assert_eq!(ignored(&written), "");
}

proptest! {
    #[test]
    fn longest_edge_may_be_below_shortest_edge(
        width in 0_u32..3000, height in 0_u32..3000, shortest in 1_u32..1000, longest in 1_u32..1000
    ) {
        let (new_width, new_height) = resize_output_size(width, height, shortest, longest);
        prop_assert!(new_width >= shortest && new_height >= shortest);
        prop_assert!(new_width.max(new_height) <= longest.max(shortest).max(width.max(height)));
        if longest >= shortest {
            prop_assert!(new_width.max(new_height) <= longest);
        } else {
            prop_assert_eq!((new_width, new_height), (shortest, shortest));
        }
    }
}

// ---- image processor

#[test]
fn pixel_values_match_reference() {
    let bytes = fixture("image_idefics2.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let variants =
        ["plain", "split", "split_narrow", "crossed_edges", "clip", "rescale_only", "normalize_only", "exact_size"];
    for name in variants {
        let json = tensors.tensor(&format!("{name}.config")).unwrap().data();
        let config = ImageProcessorConfig::from_json(std::str::from_utf8(json).unwrap(), &Idefics2).unwrap();
        let processor = ImageProcessor::new(&Idefics2, config).unwrap();

        let shape = tensors.tensor(&format!("{name}.pixel_values")).unwrap().shape().to_vec();
        let mut batch = vec![vec![]; shape[0]];
        for size in i64s(&tensors, &format!("{name}.sizes")).chunks_exact(3) {
            let row = &mut batch[size[0] as usize];
            row.push(picture(size[1] as u32, size[2] as u32, row.len() as u32));
        }
        let tiles = processor.process_all(&batch);
        for (images, tiles) in batch.iter().zip(&tiles) {
            let targets = images.iter().flat_map(|image| processor.layout(image.width(), image.height()).tiles);
            let expected: Vec<(u32, u32)> = targets.map(|target| (target.width, target.height)).collect();
            let found: Vec<(u32, u32)> = tiles.iter().map(|tile| (tile.width() as u32, tile.height() as u32)).collect();
            assert_eq!(found, expected);
        }
        let padded = processor.pad(&tiles).unwrap();
        assert_eq!(padded.pixel_values_shape(), shape.as_slice(), "{name}");
        assert_eq!(padded.pixel_values, f32s(&tensors, &format!("{name}.pixel_values")), "{name}");
        let mask = tensors.tensor(&format!("{name}.pixel_attention_mask")).unwrap();
        assert!(
            padded.pixel_attention_mask.iter().eq(mask
                .data()
                .iter()
                .map(|&value| i64::from(value))
                .collect::<Vec<_>>()
                .iter())
        );
        assert_eq!(padded.tiles().unwrap(), tiles, "{name}");
    }
}

#[test]
fn pixel_values_of_large_pictures_match_reference() {
    let bytes = fixture("image_idefics2.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (width, height) in [(1920, 1080), (300, 400), (777, 1203)] {
        for do_image_splitting in [false, true] {
            let config = ImageProcessorConfig { do_image_splitting, ..Default::default() };
            let processor = ImageProcessor::new(&Idefics2, config).unwrap();
            let tiles = vec![processor.process(&picture(width, height, 0))];
            let padded = pad_batch(&tiles);
            let name = format!("crc32.{width}x{height}.{}", u8::from(do_image_splitting));
            let mut found: Vec<i64> = padded.pixel_values_shape().iter().map(|&side| side as i64).collect();
            found.push(i64::from(crc32(padded.pixel_values.iter().flat_map(|value| value.to_le_bytes()))));
            assert_eq!(found, i64s(&tensors, &name), "{name}");
        }
    }
}

#[test]
fn processes_pictures_of_few_pixels() {
    for do_image_splitting in [false, true] {
        let config = ImageProcessorConfig { do_image_splitting, ..Default::default() };
        let processor = ImageProcessor::new(&Idefics2, config).unwrap();
        for (width, height) in [(1, 1), (1, 2), (2, 1), (3, 3), (1, 9), (8, 1), (4, 4)] {
            let tiles = processor.process(&picture(width, height, 0));
            assert_eq!(tiles.len(), if do_image_splitting { 5 } else { 1 });
            for tile in tiles {
                assert_eq!((tile.width(), tile.height(), tile.pixels().len()), (378, 378, 3 * 378 * 378));
                assert!(tile.pixels().iter().all(|value| (-1.0..=1.0).contains(value)));
            }
        }
    }
}

#[test]
fn images_of_a_batch_are_independent() {
    let processor = ImageProcessor::new(&Idefics2, ImageProcessorConfig::default()).unwrap();
    let (small, large) = (picture(30, 20, 0), picture(1200, 700, 1));
    let together = processor.process_all(&[vec![small.clone(), large.clone()], vec![large.clone()]]);
    assert_eq!(together[0][0], processor.process(&small)[0]);
    assert_eq!(together[0][1], processor.process(&large)[0]);
    assert_eq!(together[1][0], together[0][1]);
}

#[test]
fn without_padding_tile_sizes_must_be_equal() {
    let config = ImageProcessorConfig { do_pad: false, ..Default::default() };
    let processor = ImageProcessor::new(&Idefics2, config).unwrap();
    let tile = |width| ImageTile::new(width, 1, vec![1.0; 3 * width]).unwrap();
    assert_eq!(processor.pad(&[vec![tile(2)], vec![tile(2)]]).unwrap().pixel_attention_mask, [1; 4]);
    for batch in [vec![vec![tile(2)], vec![tile(3)]], vec![vec![tile(2)], vec![]], vec![vec![tile(2), tile(3)]]] {
        assert!(matches!(processor.pad(&batch), Err(PadError::Unequal { .. })));
    }
}

#[test]
fn mask_must_be_a_rectangle_at_the_top_left() {
    let padded = |mask: [i64; 9]| PaddedImages {
        batch: 1,
        n_images: 1,
        height: 3,
        width: 3,
        pixel_values: vec![1.0; 27],
        pixel_attention_mask: mask.to_vec(),
    };
    assert_eq!(padded([1, 1, 0, 1, 1, 0, 0, 0, 0]).tiles().unwrap()[0][0].pixels().len(), 12);
    for mask in [
        [0; 9],
        [1, 1, 0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0, 1],
        [1, 0, 1, 1, 0, 1, 0, 0, 0],
        [2, 1, 0, 1, 1, 0, 0, 0, 0],
    ] {
        assert_eq!(padded(mask).tiles(), Err(PadError::Mask { row: 0, image: 0 }), "{mask:?}");
    }
    let mut short = padded([1; 9]);
    short.pixel_values.pop();
    assert!(matches!(short.tiles(), Err(PadError::Length { name: "pixel_values", .. })));
    assert_eq!(pad_batch(&[vec![], vec![]]).tiles().unwrap(), [vec![], vec![]]);
}

#[test]
fn tile_length_must_match_its_size() {
    let mut tile = ImageTile::new(3, 2, vec![0.5; 18]).unwrap();
    tile.pixels_mut()[17] = 1.0;
    assert_eq!((tile.width(), tile.height(), tile.pixels()[17]), (3, 2, 1.0));
    for (width, height, n_values) in [(3, 2, 17), (3, 2, 19), (2, 2, 18), (0, 2, 1), (usize::MAX, 2, 0)] {
        let error = ImageTile::new(width, height, vec![0.0; n_values]).unwrap_err();
        let PadError::Length { shape, actual, .. } = error else { panic!("{error}") };
        assert_eq!((shape, actual), (vec![3, height, width], n_values));
    }
    let error = ImageTile::new(2, 2, vec![0.0; 11]).unwrap_err();
    assert_eq!(error.to_string(), "a tile has 11 values; its shape [3, 2, 2] needs 12");
}

fn any_tile() -> impl Strategy<Value = ImageTile> {
    (1..6_usize, 1..6_usize).prop_flat_map(|(width, height)| {
        // A tile with only zeros would count as padding, so the first value is not zero.
        prop::collection::vec(-1.0..1.0_f32, 3 * width * height).prop_map(move |mut pixels| {
            pixels[0] = 0.5;
            ImageTile::new(width, height, pixels).unwrap()
        })
    })
}

proptest! {
    #[test]
    fn unpacking_undoes_padding(batch in prop::collection::vec(prop::collection::vec(any_tile(), 0..4), 0..4)) {
        let padded = pad_batch(&batch);
        prop_assert_eq!(padded.tiles().unwrap(), batch);
    }

    #[test]
    fn parsing_any_config_does_not_panic(text in any::<String>()) {
        let _ = ImageProcessorConfig::from_json(&text, &Idefics2);
    }
}
