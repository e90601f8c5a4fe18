//! Compares all formats with Pillow, including damaged files that Pillow tolerates or rejects.

use idefics_image::{Alpha, DecodeOptions, ImageErrorKind, Limits, decode};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::files::{fixture, fixtures};

/// Maximum difference from Pillow for a file, in levels. Only lossy JPEG 2000 may differ.
fn tolerance(name: &str) -> u8 {
    match name {
        "lossy.jp2" | "layers.jp2" => 1,
        _ => 0,
    }
}

/// Returns whether we read a file although Pillow rejects it.
fn is_rejected_only_by_pillow(name: &str) -> bool {
    // Pillow cannot determine the mode of the palette, although the pixels are complete.
    matches!(name, "24_with_palette.tga" | "indexed_32.tga")
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(fixtures().join("formats")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_format_matches_pillow() {
    let bytes = fixture("formats.safetensors");
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut wrong = Vec::new();
    for name in names() {
        let file = fixture(&format!("formats/{name}"));
        for (alpha, key) in [(Alpha::White, "white"), (Alpha::Drop, "drop")] {
            let found = decode(&file, &name, &Limits::default(), alpha);
            match (found, expected.tensor(&format!("{name}/{key}"))) {
                (Ok(image), Ok(right)) => {
                    let size = [image.height() as usize, image.width() as usize, 3];
                    let difference = image.data().iter().zip(right.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                    if size != right.shape() {
                        wrong.push(format!("{name} {key}: shape {size:?}; expected {:?}", right.shape()));
                    } else if difference > tolerance(&name) {
                        wrong.push(format!("{name} {key} differs by {difference} levels"));
                    }
                }
                (Err(error), Ok(_)) => wrong.push(format!("{name} {key} is rejected: {error}")),
                (Ok(_), Err(_)) if is_rejected_only_by_pillow(&name) => {}
                (Ok(_), Err(_)) => wrong.push(format!("{name} {key} is read, but Pillow rejects it")),
                (Err(error), Err(_)) => assert_eq!(error.kind(), ImageErrorKind::Input, "{error}"),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns the kind and the range of the data of each box.
fn boxes(bytes: &[u8]) -> Vec<([u8; 4], std::ops::Range<usize>)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let length = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        found.push((bytes[at + 4..at + 8].try_into().unwrap(), at + 8..at + length));
        at += length;
    }
    found
}

fn boxed(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    [&(data.len() as u32 + 8).to_be_bytes(), &kind[..], data].concat()
}

/// Renames the box `meta` of an AVIF file, so that it is not found.
fn without_meta(file: &mut [u8]) {
    let (_, place) = boxes(file).into_iter().find(|(kind, _)| kind == b"meta").unwrap();
    file[place.start - 4..place.start].copy_from_slice(b"free");
}

/// Turns the main image of an AVIF file written by libavif into the only cell of a grid. The alpha image still belongs
/// to the cell, not to the grid.
fn in_grid(file: &[u8], size: [u16; 2]) -> Vec<u8> {
    let (_, place) = boxes(file).into_iter().find(|(kind, _)| kind == b"meta").unwrap();
    let meta = &file[place.start + 4..place.end];
    let mut made = file.to_vec();
    without_meta(&mut made);
    let grid = [&[0; 4][..], &size[0].to_be_bytes(), &size[1].to_be_bytes()].concat();
    let at = made.len() as u32 + 8;
    made.extend(boxed(b"mdat", &grid));
    let mut new = vec![0; 4];
    for (kind, place) in boxes(meta) {
        let mut data = meta[place].to_vec();
        match &kind {
            b"pitm" => data[5] = 3,
            b"iloc" => {
                data[7] += 1;
                data.extend([&[0, 3, 0, 0, 0, 1][..], &at.to_be_bytes(), &(grid.len() as u32).to_be_bytes()].concat());
            }
            b"iinf" => {
                data[5] += 1;
                data.extend(boxed(b"infe", b"\x02\0\0\0\0\x03\0\0grid\0"));
            }
            b"iref" => data.extend(boxed(b"dimg", &[0, 3, 0, 1, 0, 1])),
            b"iprp" => {
                let places = boxes(&data);
                let [(_, container), (_, associations)] = places.as_slice() else { panic!("{places:?}") };
                let mut associations = data[associations.clone()].to_vec();
                associations[7] += 1;
                associations.extend([0, 3, 3, 1, 2, 4]); // size, depth, colours
                data = [boxed(b"ipco", &data[container.clone()]), boxed(b"ipma", &associations)].concat();
            }
            _ => {}
        }
        new.extend(boxed(&kind, &data));
    }
    made.extend(boxed(b"meta", &new));
    made
}

#[test]
fn grid_uses_alpha_of_its_cells() {
    let file = fixture("formats/444_alpha.avif");
    for alpha in [Alpha::White, Alpha::Drop] {
        let [alone, in_grid] = [file.clone(), in_grid(&file, [37, 27])]
            .map(|file| decode(&file, "test", &Limits::default(), alpha).unwrap());
        assert!(alone.data() == in_grid.data());
    }
}

#[test]
fn grid_with_too_many_cells_names_the_limit() {
    let file = fixture("formats/444_alpha.avif");
    let refused = |side: u8| {
        let mut made = in_grid(&file, [37, 27]);
        let grid = file.len() + 8; // in_grid appends the description of the grid in a box of its own
        made[grid + 2..grid + 4].fill(side - 1);
        decode(&made, "test", &Limits::default(), Alpha::White).unwrap_err().to_string()
    };
    let (large, sparse) = (refused(33), refused(32));
    assert!(large.contains("its grid has 33x33 cells; at most 1024 are allowed"), "{large}");
    assert!(sparse.contains("its grid of 32x32 cells lists 1 cells"), "{sparse}");
}

#[test]
fn animation_without_still_image_uses_first_frame() {
    let file = fixture("formats/animated.avif");
    let mut track = file.clone();
    without_meta(&mut track);
    let [still, first] = [file, track].map(|file| decode(&file, "test", &Limits::default(), Alpha::White).unwrap());
    assert!(still.data() == first.data());
}

#[test]
fn checks_memory_before_decoding_pixels() {
    for name in ["24_00.tga", "24_runs_00.tga", "p6_255.ppm", "p2_255.pgm", "565.bmp", "rle8.bmp", "32.ico", "32.cur"]
        .into_iter()
        .chain(["420.avif", "rgb.jp2", "interlace1.gif", "xmp.webp", "interlaced_rgb.png"])
    {
        let limits = Limits { max_decoded_bytes: 100, ..Limits::default() };
        let error = decode(&fixture(&format!("formats/{name}")), name, &limits, Alpha::White).unwrap_err();
        assert!(error.to_string().contains("memory"), "{name}: {error}");
        let limits = Limits { max_pixels: 8, ..Limits::default() };
        let error = decode(&fixture(&format!("formats/{name}")), name, &limits, Alpha::White).unwrap_err();
        assert!(error.to_string().contains("at most 8 are allowed;"), "{name}: {error}");
    }
}

#[test]
fn truncated_files_never_panic() {
    for name in names() {
        let file = fixture(&format!("formats/{name}"));
        // Rejecting damaged AV1 data is slow, so fewer lengths are tried.
        let step = if name.ends_with(".avif") { 37 } else { 3 };
        for end in (0..file.len().min(3000)).step_by(step) {
            let _ = decode(&file[..end], &name, &Limits::default(), DecodeOptions::default());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_files_never_panic(
        file: prop::sample::Index,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let names = names();
        let mut bytes = fixture(&format!("formats/{}", file.get(&names)));
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = decode(&bytes, "test", &Limits { max_pixels: 1 << 20, ..Limits::default() }, Alpha::Drop);
    }
}
