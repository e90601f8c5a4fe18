//! Preprocessing of encoded photographs to pixel values: `cargo bench -p idefics-processor`.

use std::hint::black_box;
use std::io::Cursor;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use idefics_processor::MAX_TILES;
use idefics_processor::families::Idefics2;
use idefics_processor::image::{
    Alpha, ImageProcessor, ImageProcessorConfig, ImageSource, Limits, ReadOptions, RgbImage, decode,
};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

const SIZES: [(u32, u32); 2] = [(1920, 1080), (4000, 3000)];

/// Draws smooth shapes with a little noise, so that the JPEG file is about as large as that of a photograph.
fn photograph(width: u32, height: u32) -> RgbImage {
    let mut data = Vec::with_capacity((3 * width * height) as usize);
    let mut noise = 1_u32;
    for y in 0..height {
        for x in 0..width {
            let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let grain = (noise >> 28) as f32;
            for frequency in [9.0, 14.0, 23.0] {
                data.push((120.0 + 100.0 * (frequency * u).sin() * (frequency * 0.7 * v).cos() + grain) as u8);
            }
        }
    }
    RgbImage::new(width, height, data).expect("data has three bytes per pixel")
}

/// Draws colour ramps with hard edges.
fn ramps(width: u32, height: u32) -> RgbImage {
    let pixel = |x: u32, y: u32| [1, 2, 3].map(|slope| ((x + y) * slope % 256) as u8);
    let data = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
    RgbImage::new(width, height, data).expect("data has three bytes per pixel")
}

/// Encodes a picture with the most common settings: quality 90, 4:2:0 chroma subsampling.
fn jpeg(image: &RgbImage, is_progressive: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, 90);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.set_progressive(is_progressive);
    let (width, height) = (image.width() as u16, image.height() as u16);
    encoder.encode(image.data(), width, height, ColorType::Rgb).expect("encoding to memory succeeds");
    file
}

fn png(picture: &RgbImage) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let (width, height) = (picture.width(), picture.height());
    image::write_buffer_with_format(
        &mut file,
        picture.data(),
        width,
        height,
        image::ExtendedColorType::Rgb8,
        image::ImageFormat::Png,
    )
    .expect("encoding to memory succeeds");
    file.into_inner()
}

/// Benchmarks decoding, cutting into tiles, and both together. Throughput is in pixels of the source picture.
fn preprocess(c: &mut Criterion) {
    let mut group = c.benchmark_group("preprocess/idefics2");
    group.sample_size(20);
    for (width, height) in SIZES {
        group.throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        for (name, file) in [
            ("ramps", jpeg(&ramps(width, height), false)),
            ("photograph", jpeg(&photograph(width, height), false)),
            ("progressive", jpeg(&photograph(width, height), true)),
            ("png", png(&photograph(width, height))),
        ] {
            let id = |what: &str| BenchmarkId::new(what, format!("{name}/{width}x{height}"));
            let read = || decode(black_box(&file), name, &Limits::default(), Alpha::White).expect("a valid file");
            group.bench_function(id("decode"), |b| b.iter(read));
            for (what, do_image_splitting) in [("whole", false), ("split", true)] {
                let config = ImageProcessorConfig { do_image_splitting, ..Default::default() };
                let processor = ImageProcessor::new(&Idefics2, config).expect("the defaults are valid");
                let source = ImageSource::from(file.clone());
                let load =
                    || processor.load(black_box(&source), &ReadOptions::default(), Alpha::White.into(), MAX_TILES);
                group.bench_function(id(&format!("decode_and_tiles_{what}")), |b| {
                    b.iter(|| load().expect("a valid file"));
                });
            }
        }
        let picture = photograph(width, height);
        for (what, do_image_splitting) in [("whole", false), ("split", true)] {
            let config = ImageProcessorConfig { do_image_splitting, ..Default::default() };
            let processor = ImageProcessor::new(&Idefics2, config).expect("the defaults are valid");
            let id = BenchmarkId::new(format!("tiles_{what}"), format!("{width}x{height}"));
            group.bench_function(id, |b| b.iter(|| processor.process(black_box(&picture))));
        }
    }
    group.finish();
}

criterion_group!(benches, preprocess);
criterion_main!(benches);
