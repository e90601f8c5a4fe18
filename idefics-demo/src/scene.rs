//! Scenes: a background and one to three shapes, generated so that questions about them are unambiguous.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::background::Background;
use crate::colour::Colour;
use crate::random::pick;
use crate::shape::{Kind, Shape};

/// Number of classes in [`Scene::patch_labels`]: the background, and each combination of kind and colour.
pub const N_PATCH_CLASSES: usize = 1 + Kind::ALL.len() * Colour::ALL.len();

/// Minimum horizontal distance between the centres of two shapes, as a fraction of the width.
const MIN_STEP: f32 = 0.15;
/// Minimum fraction of a shape's pixels that is not hidden by other shapes.
const MIN_VISIBLE: f32 = 0.85;
/// Minimum distance in pixels between the bounding circles of two shapes of the same colour, so that they do not
/// merge.
const MIN_GAP: f32 = 2.0;

/// The description of a picture: size, background and shapes.
///
/// A scene from [`Scene::random`] has one to three shapes, listed from left to right, with centres at least 0.15 of
/// the width apart horizontally. All shapes are entirely inside the picture, at least 85 % of each is visible, no two
/// have the same colour and kind, and shapes of the same colour do not touch. The questions of this crate rely on
/// this.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The background behind the shapes.
    pub background: Background,
    /// The shapes, from left to right. Later shapes are drawn over earlier ones.
    pub shapes: Vec<Shape>,
}

/// The content of a patch; see [`Scene::patch_labels`].
#[derive(Debug, Clone, PartialEq)]
pub struct PatchLabel {
    /// The class, less than [`N_PATCH_CLASSES`]. If shapes cover less than a quarter of the patch, it is 0 for the
    /// background. Otherwise, it is the [`Shape::class`] of the shape with the most visible pixels in the patch. If two
    /// shapes have the same number of visible pixels, the front shape counts.
    pub class: u8,
    /// For each pixel in row-major order, whether a shape covers its centre.
    pub covered: Vec<bool>,
    /// The shape with the most visible pixels; `None` for background.
    pub shape: Option<PatchShape>,
}

/// The shape that a patch mainly shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PatchShape {
    /// Index of the shape in the scene; 0 is the leftmost.
    pub number: usize,
    /// Vector from the centre of the patch to the centre of the shape (right, down), in patches.
    pub offset: [f32; 2],
    /// Radius of the shape's bounding circle, in patches.
    pub radius: f32,
    /// Centre of the shape relative to the centre of the picture (right, down), as fractions of width and height;
    /// within ±0.5.
    pub centre: [f32; 2],
    /// Position of the shape's centre in tenths of the picture, from the left and from the top: 0 to 9.
    pub tenths: [u8; 2],
    /// Size of the shape from 0 to 9, see [`Shape::grade`].
    pub grade: u8,
}

/// Returns a random width and height in pixels. Both are 64 to 128, so that no side is more than twice the other.
pub fn random_size(rng: &mut (impl Rng + ?Sized)) -> (u32, u32) {
    (rng.random_range(64..=128), rng.random_range(64..=128))
}

impl Scene {
    /// Creates a random scene of `width` by `height` pixels. It has one, two or three shapes with equal probability.
    ///
    /// # Panics
    /// If a side is less than 32 pixels, or more than twice the other side.
    pub fn random(rng: &mut (impl Rng + ?Sized), width: u32, height: u32) -> Self {
        assert!(width.min(height) >= 32, "each side must be at least 32 pixels");
        assert!(width.max(height) / 2 <= width.min(height), "no side may be more than twice the other");
        let background = Background::random(rng);
        let names = random_names(rng);
        loop {
            let mut shapes: Vec<_> =
                names.iter().map(|&(colour, kind)| Shape::random(rng, colour, kind, width, height)).collect();
            shapes.sort_by(|one, other| one.centre[0].total_cmp(&other.centre[0]));
            let scene = Self { width, height, background, shapes };
            if scene.is_clear() {
                return scene;
            }
        }
    }

    /// Creates a picture full of shapes, one in each cell of `cell` by `cell` pixels. A vision tower learns shapes
    /// faster from sheets than from ordinary scenes. Sheets are not suitable for questions.
    ///
    /// # Panics
    /// If `cell` is less than 16 pixels.
    pub fn sheet(rng: &mut (impl Rng + ?Sized), width: u32, height: u32, cell: u32) -> Self {
        assert!(cell >= 16, "a cell must have at least 16 pixels");
        let background = Background::random(rng);
        let cells = (0..height / cell).flat_map(|row| (0..width / cell).map(move |column| [column, row]));
        let shapes = cells
            .map(|place| {
                let (colour, kind) = (pick(rng, Colour::ALL), pick(rng, Kind::ALL));
                let mut shape = Shape::random(rng, colour, kind, width, height);
                shape.radius = rng.random_range(0.28..0.48) * cell as f32;
                let room = cell as f32 - 2.0 * shape.radius;
                shape.centre = place.map(|at| (at * cell) as f32 + shape.radius + rng.random_range(0.0..room));
                shape
            })
            .collect();
        Self { width, height, background, shapes }
    }

    /// Returns the number of visible pixels of each shape, in the order of `shapes`.
    pub fn visible_areas(&self) -> Vec<u32> {
        let front = self.front();
        (1..=self.shapes.len())
            .map(|number| front.iter().filter(|&&at| usize::from(at) == number).count() as u32)
            .collect()
    }

    /// Returns the labels of all complete patches of `patch` by `patch` pixels, in row-major order.
    ///
    /// # Panics
    /// If `patch` is 0.
    pub fn patch_labels(&self, patch: usize) -> Vec<PatchLabel> {
        let front = self.front();
        let [width, height] = [self.width as usize, self.height as usize];
        let corners = (0..height / patch).flat_map(|row| (0..width / patch).map(move |column| [column, row]));
        let label = |[column, row]: [usize; 2]| {
            let [left, top] = [column * patch, row * patch];
            let at: Vec<u8> = (top..top + patch).flat_map(|y| &front[y * width + left..][..patch]).copied().collect();
            let pixels_of = |number: usize| at.iter().filter(|&&at| usize::from(at) == number).count();
            let most = (1..).zip(&self.shapes).max_by_key(|&(number, _)| pixels_of(number));
            let shape = most.filter(|_| 4 * pixels_of(0) <= 3 * patch * patch);
            let middle = [left, top].map(|start| start as f32 + patch as f32 / 2.0);
            let sides = [width as f32, height as f32];
            PatchLabel {
                class: shape.map_or(0, |(_, shape)| shape.class()),
                covered: at.iter().map(|&at| at > 0).collect(),
                shape: shape.map(|(number, shape)| PatchShape {
                    number: number - 1,
                    offset: [0, 1].map(|axis| (shape.centre[axis] - middle[axis]) / patch as f32),
                    radius: shape.radius / patch as f32,
                    centre: [0, 1].map(|axis| shape.centre[axis] / sides[axis] - 0.5),
                    tenths: self.tenths(shape),
                    grade: shape.grade(self.width, self.height),
                }),
            }
        };
        corners.map(label).collect()
    }

    /// Returns the position of the centre of `shape` in tenths of the picture, from the left and from the top: 0 to 9.
    pub(crate) fn tenths(&self, shape: &Shape) -> [u8; 2] {
        let sides = [self.width as f32, self.height as f32];
        [0, 1].map(|axis| ((10.0 * shape.centre[axis] / sides[axis]) as u8).min(9))
    }

    /// Returns the number of the frontmost shape at the centre of each pixel, in row-major order: 0 for the background,
    /// 1 for the first shape.
    fn front(&self) -> Vec<u8> {
        let mut front = vec![0; (self.width * self.height) as usize];
        for (number, shape) in (1..).zip(&self.shapes) {
            for (x, y) in self.bounding_pixels(shape) {
                if shape.contains(x as f32 + 0.5, y as f32 + 0.5) {
                    front[(y * self.width + x) as usize] = number;
                }
            }
        }
        front
    }

    /// Returns whether the order, colours and kinds of the shapes are unambiguous.
    fn is_clear(&self) -> bool {
        let step = MIN_STEP * self.width as f32;
        if self.shapes.windows(2).any(|pair| pair[1].centre[0] - pair[0].centre[0] < step) {
            return false;
        }
        let pairs = self
            .shapes
            .iter()
            .enumerate()
            .flat_map(|(i, one)| self.shapes[i + 1..].iter().map(move |other| (one, other)));
        if pairs.clone().any(|(one, other)| one.colour == other.colour && one.is_near(other, MIN_GAP)) {
            return false;
        }
        if !pairs.clone().any(|(one, other)| one.is_near(other, 1.0)) {
            return true;
        }
        self.shapes.iter().zip(self.visible_areas()).all(|(shape, visible)| {
            let whole =
                self.bounding_pixels(shape).filter(|&(x, y)| shape.contains(x as f32 + 0.5, y as f32 + 0.5)).count();
            visible as f32 >= MIN_VISIBLE * whole as f32
        })
    }

    /// Returns the pixels in the bounding box of `shape`, clipped to the picture, in row-major order.
    pub(crate) fn bounding_pixels(&self, shape: &Shape) -> impl Iterator<Item = (u32, u32)> + use<> {
        let span = |axis: usize, side: u32| {
            let first = (shape.centre[axis] - shape.radius - 1.0).max(0.0) as u32;
            let end = (shape.centre[axis] + shape.radius + 2.0).max(0.0) as u32;
            first..end.min(side)
        };
        let columns = span(0, self.width);
        span(1, self.height).flat_map(move |y| columns.clone().map(move |x| (x, y)))
    }
}

/// Returns one to three different pairs of colour and kind. In a quarter of the scenes all kinds are the same, and in
/// another quarter all colours are the same.
fn random_names(rng: &mut (impl Rng + ?Sized)) -> Vec<(Colour, Kind)> {
    let n_shapes = rng.random_range(1..=3);
    let (mut colours, mut kinds) = (Colour::ALL, Kind::ALL);
    colours.shuffle(rng);
    kinds.shuffle(rng);
    match rng.random_range(0..4) {
        0 => kinds = [kinds[0]; 5],
        1 => colours = [colours[0]; 6],
        _ => {
            // The draws are independent, so a colour or a kind may occur twice by chance.
            let mut names = Vec::new();
            while names.len() < n_shapes {
                let name = (pick(rng, Colour::ALL), pick(rng, Kind::ALL));
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            return names;
        }
    }
    colours.into_iter().zip(kinds).take(n_shapes).collect()
}
