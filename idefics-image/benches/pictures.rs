//! Benchmarks of decoding and resizing. Run them with `cargo bench -p idefics-image`.

use std::hint::black_box;
use std::io::Cursor;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use idefics_image::{Alpha, Filter, Limits, RgbImage, decode, resize};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

const SIZES: [(u32, u32); 2] = [(1920, 1080), (4000, 3000)];

/// Returns an image of soft shapes with a little noise, so that its JPEG file is as large as the file of a photograph.
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
    RgbImage::new(width, height, data).expect("three bytes per pixel")
}

/// Returns an image of gradients with hard edges.
fn ramps(width: u32, height: u32) -> RgbImage {
    let pixel = |x: u32, y: u32| [1, 2, 3].map(|slope| ((x + y) * slope % 256) as u8);
    let data = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
    RgbImage::new(width, height, data).expect("three bytes per pixel")
}

/// Encodes an image with the most common settings: quality 90 and subsampled chroma.
fn jpeg(image: &RgbImage, is_progressive: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, 90);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.set_progressive(is_progressive);
    let (width, height) = (image.width() as u16, image.height() as u16);
    encoder.encode(image.data(), width, height, ColorType::Rgb).expect("encoding into memory cannot fail");
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
    .expect("encoding into memory cannot fail");
    file.into_inner()
}

/// Measures decoding. The throughput counts source pixels.
fn decoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.sample_size(20);
    for (width, height) in SIZES {
        group.throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        for (name, file) in [
            ("ramps", jpeg(&ramps(width, height), false)),
            ("photograph", jpeg(&photograph(width, height), false)),
            ("progressive", jpeg(&photograph(width, height), true)),
            ("png", png(&photograph(width, height))),
        ] {
            let id = BenchmarkId::new(name, format!("{width}x{height}"));
            let read = || decode(black_box(&file), name, &Limits::default(), Alpha::White).expect("a valid file");
            group.bench_function(id, |b| b.iter(read));
        }
    }
    group.finish();
}

/// Measures resizing. The throughput counts source pixels.
fn resizing(c: &mut Criterion) {
    let mut group = c.benchmark_group("resize");
    group.sample_size(20);
    for ((width, height), (out_width, out_height)) in SIZES.into_iter().zip([(980, 551), (980, 735)]) {
        let picture = photograph(width, height);
        group.throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let id = BenchmarkId::new(format!("{filter:?}"), format!("{width}x{height}_to_{out_width}x{out_height}"));
            group.bench_function(id, |b| b.iter(|| resize(black_box(&picture), out_width, out_height, filter)));
        }
    }
    group.finish();
}

/// Compares resizing with the crate `fast_image_resize`, whose pixels differ from Pillow's. Both use one thread.
fn resizing_beside(c: &mut Criterion) {
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread pool");
    let mut group = c.benchmark_group("resize_beside");
    group.sample_size(30);
    for ((width, height), (out_width, out_height)) in SIZES.into_iter().zip([(980, 551), (980, 735)]) {
        let picture = photograph(width, height);
        group.throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        for (filter, theirs) in [
            (Filter::Bilinear, FilterType::Bilinear),
            (Filter::Bicubic, FilterType::CatmullRom),
            (Filter::Lanczos, FilterType::Lanczos3),
        ] {
            let id = |who: &str| BenchmarkId::new(format!("{filter:?}/{who}"), format!("{width}x{height}"));
            group.bench_function(id("idefics-image"), |b| {
                one_thread.install(|| b.iter(|| resize(black_box(&picture), out_width, out_height, filter)));
            });
            let source = ImageRef::new(width, height, picture.data(), PixelType::U8x3).expect("three bytes per pixel");
            let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(theirs));
            group.bench_function(id("fast_image_resize"), |b| {
                let mut resizer = Resizer::new();
                b.iter(|| {
                    let mut out = Image::new(out_width, out_height, PixelType::U8x3);
                    resizer.resize(black_box(&source), &mut out, &options).expect("equal pixel types");
                    out
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decoding, resizing, resizing_beside);
criterion_main!(benches);
