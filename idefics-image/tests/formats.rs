//! Every kind of file that Pillow reads, and the damage that it forgives and does not.

use idefics_image::{Alpha, DecodeOptions, ImageErrorKind, Limits, decode};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::files::{fixture, fixtures};

/// How far lossy decoders may be from Pillow's, in levels.
fn tolerance(name: &str) -> u8 {
    match name {
        "lossy.jp2" | "layers.jp2" => 1,
        _ => 0,
    }
}

/// Files that we read, though Pillow refuses them, and why.
fn is_forgiven(name: &str) -> bool {
    // Pillow cannot tell a palette's mode here; the pixels are whole.
    matches!(name, "24_with_palette.tga" | "indexed_32.tga")
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(fixtures().join("formats")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_format_is_read_or_refused_as_by_pillow() {
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
                        wrong.push(format!("{name} {key}: {size:?} instead of {:?}", right.shape()));
                    } else if difference > tolerance(&name) {
                        wrong.push(format!("{name} {key} differs by {difference} levels"));
                    }
                }
                (Err(error), Ok(_)) => wrong.push(format!("{name} {key} is refused: {error}")),
                (Ok(_), Err(_)) if is_forgiven(&name) => {}
                (Ok(_), Err(_)) => wrong.push(format!("{name} {key} is read, Pillow refuses it")),
                (Err(error), Err(_)) => assert_eq!(error.kind(), ImageErrorKind::Input, "{error}"),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn memory_is_checked_before_pixels_are_decoded() {
    for name in ["24_00.tga", "24_runs_00.tga", "p6_255.ppm", "p2_255.pgm", "565.bmp", "rle8.bmp", "32.ico", "32.cur"]
        .into_iter()
        .chain(["420.avif", "rgb.jp2", "interlace1.gif", "xmp.webp", "interlaced_rgb.png"])
    {
        let limits = Limits { max_decoded_bytes: 100, ..Limits::default() };
        let error = decode(&fixture(&format!("formats/{name}")), name, &limits, Alpha::White).unwrap_err();
        assert!(error.to_string().contains("memory"), "{name}: {error}");
        let limits = Limits { max_pixels: 8, ..Limits::default() };
        let error = decode(&fixture(&format!("formats/{name}")), name, &limits, Alpha::White).unwrap_err();
        assert!(error.to_string().contains("at most 8 in all"), "{name}: {error}");
    }
}

#[test]
fn files_that_end_early_never_panic() {
    for name in names() {
        let file = fixture(&format!("formats/{name}"));
        // Damaged AV1 data is slow to refuse, so that fewer cuts are tried.
        let step = if name.ends_with(".avif") { 37 } else { 3 };
        for end in (0..file.len().min(3000)).step_by(step) {
            let _ = decode(&file[..end], &name, &Limits::default(), DecodeOptions::default());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_damage_to_any_format_panics(file: prop::sample::Index, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let names = names();
        let mut bytes = fixture(&format!("formats/{}", file.get(&names)));
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = decode(&bytes, "test", &Limits { max_pixels: 1 << 20, ..Limits::default() }, Alpha::Drop);
    }
}
