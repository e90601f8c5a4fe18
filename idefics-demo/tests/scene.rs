//! Checks the guarantees of random scenes, pixel by pixel.

use idefics_demo::{Colour, Example, N_PATCH_CLASSES, PatchShape, Purpose, Scene, random_size, rng};
use proptest::prelude::*;

use crate::common::{pixels, seed_and_size, visible_pixels};

fn scene(seed: u64, width: u32, height: u32) -> Scene {
    Scene::random(&mut rng(Purpose::Evaluation, seed, 0), width, height)
}

fn distance(one: [u8; 3], other: [u8; 3]) -> f32 {
    one.iter().zip(other).map(|(&a, b)| (f32::from(a) - f32::from(b)).powi(2)).sum::<f32>().sqrt()
}

/// Returns the hue of a colour in degrees, 0 to 360.
fn hue([red, green, blue]: [u8; 3]) -> f32 {
    let [red, green, blue] = [red, green, blue].map(f32::from);
    f32::atan2(3.0_f32.sqrt() * (green - blue), 2.0 * red - green - blue).to_degrees().rem_euclid(360.0)
}

proptest! {
    #[test]
    fn shapes_are_inside_ordered_and_separated((seed, width, height) in seed_and_size()) {
        let scene = scene(seed, width, height);
        prop_assert!((1..=3).contains(&scene.shapes.len()));
        for shape in &scene.shapes {
            for (centre, side) in shape.centre.into_iter().zip([width, height]) {
                prop_assert!(centre - shape.radius >= 0.0 && centre + shape.radius <= side as f32);
            }
            let shorter = width.min(height) as f32;
            prop_assert!((0.11..0.34).contains(&(shape.radius / shorter)));
        }
        for (i, one) in scene.shapes.iter().enumerate() {
            for other in &scene.shapes[i + 1..] {
                prop_assert!(other.centre[0] - one.centre[0] >= 0.12 * width as f32);
                prop_assert!(one.name() != other.name());
                let [dx, dy] = [0, 1].map(|axis| other.centre[axis] - one.centre[axis]);
                prop_assert!(one.colour != other.colour || dx.hypot(dy) > one.radius + other.radius);
            }
        }
    }

    #[test]
    fn shapes_are_mostly_visible((seed, width, height) in seed_and_size()) {
        let scene = scene(seed, width, height);
        for (i, shape) in scene.shapes.iter().enumerate() {
            let [whole, visible] = [pixels(&scene, shape).len(), visible_pixels(&scene, i).len()];
            prop_assert!(100 * visible >= 85 * whole);
            prop_assert_eq!(scene.visible_areas()[i] as usize, visible);
            prop_assert!((whole as f32 - shape.area()).abs() <= 0.1 * shape.area() + 4.0, "{} {}", whole, shape.area());
        }
    }

    #[test]
    fn colours_are_distinguishable((seed, width, height) in seed_and_size()) {
        let scene = scene(seed, width, height);
        let picture = scene.render();
        let behind = Scene { shapes: Vec::new(), ..scene.clone() }.render();
        let middles = [0.0, 29.0, 54.0, 124.0, 220.0, 278.0];
        for (i, shape) in scene.shapes.iter().enumerate() {
            let off = |middle: f32| (hue(shape.shade) - middle + 180.0).rem_euclid(360.0) - 180.0;
            let nearest = (0..6).min_by(|&a, &b| off(middles[a]).abs().total_cmp(&off(middles[b]).abs())).unwrap();
            prop_assert_eq!(Colour::ALL[nearest], shape.colour);
            prop_assert!(behind.pixels().all(|pixel| distance(pixel.0, shape.shade) > 80.0), "{:?}", scene);
            let visible = visible_pixels(&scene, i);
            let painted = visible.iter().filter(|&&(x, y)| picture.get_pixel(x, y).0 == shape.shade).count();
            prop_assert!(2 * painted > visible.len(), "most pixels of a shape must have its exact colour");
        }
    }

    #[test]
    fn patch_labels_match_visible_pixels((seed, width, height) in seed_and_size(), patch in 1_usize..20) {
        let scene = scene(seed, width, height);
        let labels = scene.patch_labels(patch);
        let columns = width as usize / patch;
        prop_assert_eq!(labels.len(), columns * (height as usize / patch));
        let visible: Vec<_> = (0..scene.shapes.len()).map(|i| visible_pixels(&scene, i)).collect();
        for (i, label) in labels.iter().enumerate() {
            let is_inside = |&&(x, y): &&(u32, u32)| x as usize / patch == i % columns && y as usize / patch == i / columns;
            let counts: Vec<_> = visible.iter().map(|pixels| pixels.iter().filter(is_inside).count()).collect();
            let covered = counts.iter().sum::<usize>();
            prop_assert_eq!(label.class == 0, 4 * covered < patch * patch);
            prop_assert_eq!(label.covered.iter().filter(|&&covered| covered).count(), covered);
            prop_assert_eq!(label.shape.is_some(), label.class > 0);
            if let Some(PatchShape { number, offset, radius, centre, tenths, grade }) = label.shape {
                let shape = &scene.shapes[number];
                let middle = [i % columns, i / columns].map(|at| (at as f32 + 0.5) * patch as f32);
                let found = [0, 1].map(|axis| middle[axis] + offset[axis] * patch as f32);
                let sides = [width as f32, height as f32];
                let again = [0, 1].map(|axis| (centre[axis] + 0.5) * sides[axis]);
                let near = |one: f32, other: f32| (one - other).abs() < 1e-3;
                prop_assert!((0..2).all(|axis| near(found[axis], shape.centre[axis])));
                prop_assert!((0..2).all(|axis| near(again[axis], shape.centre[axis])));
                prop_assert!(near(radius * patch as f32, shape.radius));
                let tenth = |axis: usize| (shape.centre[axis] / sides[axis] * 10.0).floor() as u8;
                prop_assert_eq!(tenths, [tenth(0), tenth(1)]);
                prop_assert_eq!(grade, shape.grade(width, height));
                prop_assert_eq!(shape.class(), label.class);
                prop_assert_eq!(counts[number], counts.iter().copied().max().unwrap());
            }
            prop_assert!(usize::from(label.class) < N_PATCH_CLASSES);
        }
    }

    #[test]
    fn grade_does_not_decrease_with_area((seed, width, height) in seed_and_size()) {
        let mut shapes = scene(seed, width, height).shapes;
        shapes.sort_by(|one, other| one.area().total_cmp(&other.area()));
        let grades: Vec<_> = shapes.iter().map(|shape| shape.grade(width, height)).collect();
        prop_assert!(grades.is_sorted() && grades.iter().all(|&grade| grade < 10));
    }

    #[test]
    fn random_size_is_in_range(seed: u64) {
        let (width, height) = random_size(&mut rng(Purpose::Training, seed, 0));
        prop_assert!((64..=128).contains(&width) && (64..=128).contains(&height));
    }
}

#[test]
fn generates_small_and_narrow_scenes() {
    for seed in 0..200 {
        for (width, height) in [(32, 32), (32, 65), (65, 32), (64, 128), (128, 64)] {
            assert_eq!(scene(seed, width, height).render().dimensions(), (width, height));
        }
    }
}

#[test]
#[should_panic(expected = "twice the other")]
fn rejects_very_narrow_pictures() {
    scene(0, 64, 130);
}

#[test]
fn pictures_and_texts_match_golden_hash() {
    // The hash is FNV-1a with 64 bits.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for index in 0..32 {
        let example = Example::random(&mut rng(Purpose::Evaluation, 1, index));
        let pictures = example.scenes.iter().flat_map(|scene| scene.render().into_raw());
        for byte in pictures.chain(example.text().into_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    assert_eq!(format!("{hash:016x}"), "f489b4bd5ecc7d2f", "if the hash changes, older results are not comparable");
}
