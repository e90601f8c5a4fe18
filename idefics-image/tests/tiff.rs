//! Compares TIFF decoding with Pillow, and tests damaged files.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Read;
use std::num::NonZeroU32;
use std::path::Path;

use flate2::read::ZlibDecoder;
use idefics_image::{Alpha, DecodeOptions, ImageError, ImageErrorKind, Limits, RgbImage, decode};
use proptest::prelude::*;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

/// Reads the fixture that `xtask/reference/tiff_fixtures.py` writes.
fn fixture() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiff.safetensors.zlib");
    let mut bytes = Vec::new();
    ZlibDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Returns the test files, sorted by name.
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

/// Returns width, height and a hash of the pixels, in the format of the fixture.
fn digest(image: &RgbImage) -> Vec<u8> {
    let mut digest = [image.width().to_le_bytes(), image.height().to_le_bytes()].concat();
    digest.extend(Sha256::digest(image.data()));
    digest
}

/// Returns whether we read a file although Pillow rejects it.
fn is_rejected_only_by_pillow(name: &str) -> bool {
    // Pillow mistakes big-endian BigTIFF for classic TIFF.
    name.starts_with("big_") && name.ends_with("_be")
}

#[test]
fn every_file_matches_pillow() {
    let fixture = fixture();
    let tensors = SafeTensors::deserialize(&fixture).unwrap();
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for (name, file) in files(&fixture) {
        for (alpha, key) in [(Alpha::Drop, "drop"), (Alpha::White, "white")] {
            let expected = tensors.tensor(&format!("{name}/{key}")).unwrap().data();
            match read(&file, alpha) {
                Ok(image) if digest(&image) == expected => equal += 1,
                Ok(_) if expected.is_empty() && is_rejected_only_by_pillow(&name) => {}
                Ok(image) => {
                    let what = if expected.is_empty() { "is rejected by Pillow" } else { "differs" };
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
    assert!(wrong.is_empty(), "{} wrong, {equal} equal, {refused} rejected:\n{}", wrong.len(), wrong.join("\n"));
    assert!(equal >= 740 && refused >= 60, "{equal} equal, {refused} rejected");
}

#[test]
fn selects_pages_counted_from_1() {
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
fn errors_name_the_tag() {
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
fn checks_size_and_memory_before_decoding() {
    let bytes = file("rgb_le_8");
    let limits = Limits { max_pixels: 21 * 13 - 1, ..Limits::default() };
    assert!(matches!(decode(&bytes, "x", &limits, Alpha::White), Err(ImageError::TooLarge { .. })));
    let limits = Limits { max_decoded_bytes: 3 * 21 * 13 - 1, ..Limits::default() };
    assert!(matches!(decode(&bytes, "x", &limits, Alpha::White), Err(ImageError::Memory { .. })));
    let limits = Limits { max_decoded_bytes: 3 * 21 * 13, ..Limits::default() };
    assert!(decode(&bytes, "x", &limits, Alpha::White).is_ok());

    // A tile that is much larger than the image.
    let mut bytes = file("rgb_tiles_le_8");
    let entry = bytes.windows(4).position(|window| window == [0x42, 1, 4, 0]).unwrap();
    bytes[entry + 8..entry + 12].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    let error = read(&bytes, Alpha::White).unwrap_err();
    assert!(matches!(error, ImageError::Memory { .. }), "{error}");
}

#[test]
fn truncated_file_is_an_error_or_an_image() {
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

/// Returns a little-endian file with one page. `data` is at offset 8.
fn tiff(tags: &[(u16, Values<'_>)], data: &[u8]) -> Vec<u8> {
    let directory = 8 + data.len();
    let mut file = [b"II*\0", &u32::try_from(directory).unwrap().to_le_bytes()[..], data].concat();
    let behind = directory + 2 + 12 * tags.len() + 4;
    let mut long_values = Vec::new();
    file.extend(u16::try_from(tags.len()).unwrap().to_le_bytes());
    for (tag, values) in tags {
        let (kind, count, mut bytes) = match values {
            Values::Bytes(bytes) => (1_u16, bytes.len(), bytes.to_vec()),
            Values::Longs(values) => {
                (4, values.len(), values.iter().flat_map(|value: &u32| value.to_le_bytes()).collect())
            }
        };
        if bytes.len() > 4 {
            let at = u32::try_from(behind + long_values.len()).unwrap();
            long_values.append(&mut bytes);
            bytes.extend(at.to_le_bytes());
        }
        bytes.resize(4, 0);
        file.extend([&tag.to_le_bytes()[..], &kind.to_le_bytes()].concat());
        file.extend(u32::try_from(count).unwrap().to_le_bytes());
        file.extend(bytes);
    }
    file.extend([0; 4]);
    file.extend(long_values);
    file
}

enum Values<'a> {
    Bytes(&'a [u8]),
    Longs(&'a [u32]),
}

const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
const BITS: u16 = 258;
const COMPRESSION: u16 = 259;
const COLOR: u16 = 262;
const STRIP_OFFSETS: u16 = 273;
const SAMPLES: u16 = 277;
const ROWS_PER_STRIP: u16 = 278;
const STRIP_COUNTS: u16 = 279;
const COLOR_MAP: u16 = 320;
const TILE_WIDTH: u16 = 322;
const TILE_LENGTH: u16 = 323;
const TILE_OFFSETS: u16 = 324;
const TILE_COUNTS: u16 = 325;
const JPEG_AT: u16 = 513;
const JPEG_LENGTH: u16 = 514;

/// Returns a file with an 8-bit grey image and the additional tags `more`.
fn grey(width: u32, height: u32, compression: u32, more: Vec<(u16, Values<'_>)>, data: &[u8]) -> Vec<u8> {
    let sides = [[width], [height], [compression]];
    let mut tags = vec![
        (WIDTH, Values::Longs(&sides[0])),
        (HEIGHT, Values::Longs(&sides[1])),
        (BITS, Values::Longs(&[8])),
        (COMPRESSION, Values::Longs(&sides[2])),
        (COLOR, Values::Longs(&[1])),
        (SAMPLES, Values::Longs(&[1])),
    ];
    tags.extend(more);
    tiff(&tags, data)
}

/// Returns limits that are never exceeded.
fn no_limits() -> Limits {
    Limits { max_pixels: u64::MAX, max_decoded_bytes: u64::MAX, max_aspect_ratio: u32::MAX, ..Limits::default() }
}

/// Returns a file with an image of one pixel in a CCITT group 4 tile of the given width.
fn group_4_tile(width: u32) -> Vec<u8> {
    let tags = [
        (WIDTH, Values::Longs(&[1])),
        (HEIGHT, Values::Longs(&[1])),
        (BITS, Values::Longs(&[1])),
        (COMPRESSION, Values::Longs(&[4])),
        (COLOR, Values::Longs(&[0])),
        (SAMPLES, Values::Longs(&[1])),
        (TILE_WIDTH, Values::Longs(&[width])),
        (TILE_LENGTH, Values::Longs(&[1])),
        (TILE_OFFSETS, Values::Longs(&[8])),
        (TILE_COUNTS, Values::Longs(&[8])),
    ];
    tiff(&tags, &[0x80; 8])
}

#[test]
fn runs_of_a_ccitt_row_count_as_memory() {
    assert!(read(&group_4_tile(16), Alpha::White).is_ok());
    let (result, peak) = peak_memory(|| read(&group_4_tile(4_000_000_000), Alpha::White));
    let error = result.unwrap_err();
    assert!(matches!(error, ImageError::Decode { .. }) && error.to_string().contains("TileWidth"), "{error}");
    assert!(peak < 1 << 16, "{peak} bytes for an error");
    // 50 MB of pixels, but 6.4 GB of runs.
    let error = read(&group_4_tile(400_000_000), Alpha::White).unwrap_err();
    assert!(matches!(error, ImageError::Memory { needed: 6_400_000_000.., .. }), "{error}");

    // Without limits, the width of a row is still bounded by the number of runs that can be counted.
    for width in [1 << 30, u32::MAX] {
        let width = [width];
        let tags = [
            (WIDTH, Values::Longs(&width)),
            (HEIGHT, Values::Longs(&[1])),
            (COMPRESSION, Values::Longs(&[4])),
            (STRIP_OFFSETS, Values::Longs(&[8])),
            (STRIP_COUNTS, Values::Longs(&[8])),
        ];
        let error = decode(&tiff(&tags, &[0x80; 8]), "test", &no_limits(), Alpha::White).unwrap_err();
        assert!(matches!(error, ImageError::Decode { .. }) && error.to_string().contains("CCITT"), "{error}");
    }
}

#[test]
fn rejects_impossible_sizes_without_limits() {
    for compression in [1, 5, 8] {
        for side in [u32::MAX, 1 << 31] {
            let more = vec![(STRIP_OFFSETS, Values::Longs(&[8])), (STRIP_COUNTS, Values::Longs(&[8]))];
            let file = grey(side, side, compression, more, &[0; 8]);
            let error = decode(&file, "test", &no_limits(), Alpha::White).unwrap_err();
            assert!(matches!(error, ImageError::Memory { .. }), "{error}");
        }
    }
}

#[test]
fn does_not_copy_long_lists_of_values() {
    const OFFSETS: usize = 4 << 20;
    let offsets = vec![8; OFFSETS];
    let strips = || vec![(STRIP_OFFSETS, Values::Bytes(&offsets)), (ROWS_PER_STRIP, Values::Longs(&[1]))];
    let raw = grey(1, 2, 1, strips(), &[7]);
    let (image, peak) = peak_memory(|| read(&raw, Alpha::White));
    assert_eq!(image.unwrap().data(), [7; 6]);
    assert!(peak < 1 << 16, "{peak} bytes for 2 pixels");

    let counts = vec![2; OFFSETS];
    let counts = [(STRIP_COUNTS, Values::Bytes(&counts))];
    let packed = grey(1, 2, 32773, strips().into_iter().chain(counts).collect(), &[0, 9]);
    let (image, peak) = peak_memory(|| read(&packed, Alpha::White));
    assert_eq!(image.unwrap().data(), [9; 6]);
    assert!(peak < 1 << 16, "{peak} bytes for 2 pixels");

    // The values of other tags are not copied either.
    let map = [(COLOR, Values::Longs(&[3])), (COLOR_MAP, Values::Bytes(&offsets))];
    let file = grey(1, 2, 1, strips().into_iter().chain(map).collect(), &[7]);
    let (result, peak) = peak_memory(|| read(&file, Alpha::White));
    let error = result.unwrap_err();
    assert!(error.to_string().contains("ColorMap"), "{error}");
    assert!(peak < 1 << 16, "{peak} bytes for a colour map");
    let limits = Limits { max_pixels: 1, ..Limits::default() };
    let error = decode(&file, "test", &limits, Alpha::White).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "the size must be checked before the colours: {error}");
    for tag in [BITS, 338, 339, 530] {
        let file = grey(1, 2, 1, strips().into_iter().chain([(tag, Values::Bytes(&offsets))]).collect(), &[7]);
        let (_, peak) = peak_memory(|| read(&file, Alpha::White));
        assert!(peak < 1 << 16, "{peak} bytes for the tag {tag}");
    }
}

#[test]
fn largest_of_several_offsets_of_a_rectangle_wins() {
    let first_column = |image: RgbImage| image.data().iter().step_by(3).copied().collect::<Vec<u8>>();
    // The expected pixels are from Pillow 12.3.
    for (rows, offsets, expected) in [
        (1, &[8, 9][..], [0, 1]),
        (1, &[8, 9, 11, 10], [3, 2]),
        (1, &[11, 9, 8, 10, 9, 9], [3, 2]),
        (1, &[9], [1, 0]),
        // In these cases a rectangle covers the whole image, and the last offset in the list is used.
        (2, &[11, 9], [1, 2]),
        (3, &[11, 9], [3, 4]),
        (u32::MAX, &[11, 9], [3, 4]),
    ] {
        let rows = [rows];
        let more = vec![(STRIP_OFFSETS, Values::Longs(offsets)), (ROWS_PER_STRIP, Values::Longs(&rows))];
        let file = grey(1, 2, 1, more, &[0, 1, 2, 3, 4, 5]);
        assert_eq!(first_column(read(&file, Alpha::White).unwrap()), expected, "{rows:?} {offsets:?}");
    }
}

#[test]
fn many_offsets_are_not_all_decoded() {
    // Reading every offset would be 2 * 10^12 pixels.
    let offsets = vec![8; 500_000];
    let more = vec![(STRIP_OFFSETS, Values::Longs(&offsets)), (ROWS_PER_STRIP, Values::Longs(&[1999]))];
    let file = grey(2000, 2000, 1, more, &vec![5; 4_000_000]);
    assert!(read(&file, Alpha::White).unwrap().data().iter().all(|&value| value == 5));
}

#[test]
fn rejects_tiles_much_larger_than_the_image() {
    // 256 tiles of 100 MB each for an image of 4096x32. Damaged YCbCr data is not an error, so all tiles would be
    // filled.
    let (offsets, counts) = ([8; 256], [1; 256]);
    let tags = [
        (WIDTH, Values::Longs(&[4096])),
        (HEIGHT, Values::Longs(&[32])),
        (BITS, Values::Longs(&[8, 8, 8])),
        (COMPRESSION, Values::Longs(&[5])),
        (COLOR, Values::Longs(&[6])),
        (SAMPLES, Values::Longs(&[3])),
        (TILE_WIDTH, Values::Longs(&[16])),
        (TILE_LENGTH, Values::Longs(&[1 << 22])),
        (TILE_OFFSETS, Values::Longs(&offsets)),
        (TILE_COUNTS, Values::Longs(&counts)),
    ];
    let error = read(&tiff(&tags, &[0]), Alpha::White).unwrap_err();
    assert!(error.to_string().contains("much larger than the image"), "{error}");
}

#[test]
fn joined_old_jpeg_strips_count_as_memory() {
    // 60 strips that share the same megabyte of data.
    let (offsets, counts) = ([10; 60], [1 << 20; 60]);
    let tags = [
        (WIDTH, Values::Longs(&[16])),
        (HEIGHT, Values::Longs(&[960])),
        (BITS, Values::Longs(&[8, 8, 8])),
        (COMPRESSION, Values::Longs(&[6])),
        (COLOR, Values::Longs(&[6])),
        (STRIP_OFFSETS, Values::Longs(&offsets)),
        (SAMPLES, Values::Longs(&[3])),
        (ROWS_PER_STRIP, Values::Longs(&[16])),
        (STRIP_COUNTS, Values::Longs(&counts)),
        (JPEG_AT, Values::Longs(&[8])),
        (JPEG_LENGTH, Values::Longs(&[2])),
    ];
    let file = tiff(&tags, &[&[0xff, 0xd8][..], &[0; 1 << 20]].concat());
    let limits = Limits { max_decoded_bytes: 8 << 20, ..Limits::default() };
    let (result, peak) = peak_memory(|| decode(&file, "test", &limits, Alpha::White));
    let error = result.unwrap_err();
    assert!(matches!(error, ImageError::Memory { needed, .. } if needed == 60 << 20), "{error}");
    assert!(peak < 1 << 20, "{peak} bytes");
}

/// An allocator that counts the bytes that each thread holds.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is forwarded unchanged to the system allocator. The counters are cells without destructors, so
// they can be used at any time in the life of a thread and do not allocate.
#[allow(unsafe_code, reason = "an allocator is unsafe to implement")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller upholds the contract of `dealloc`, and the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `work`. Returns its result, and the peak number of bytes that this thread held in addition to the bytes held
/// before.
fn peak_memory<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get() - before)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damaged_file_gives_pixels_or_an_error(
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
