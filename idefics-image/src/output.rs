//! Where a decoder's pixels go: band by band to RGB, and from there to each picture that is made of them. No whole picture
//! is kept, unless it is what the caller asks for.

use image::metadata::Orientation;
use rayon::prelude::*;

use crate::decode::Input;
use crate::orientation::exchanges_axes;
use crate::raster::{Flattening, Keys, Pixels, Raster};
use crate::resize::{ResizeTarget, RowResizer};
use crate::rgb::RgbView;
use crate::{Alpha, ImageError, RgbImage};

/// What a decoder knows of a picture before its pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    /// Width as stored, in pixels.
    pub(crate) width: u32,
    /// Height as stored, in pixels.
    pub(crate) height: u32,
    pub(crate) orientation: Orientation,
    pub(crate) keys: Keys,
}

impl Header {
    /// An upright picture without transparent colors.
    pub(crate) fn new(width: u32, height: u32) -> Self {
        Self { width, height, orientation: Orientation::NoTransforms, keys: Keys::default() }
    }
}

/// Which pictures to make, given the upright size.
pub(crate) type Plan<'a> = Box<dyn FnOnce(u32, u32) -> Vec<ResizeTarget> + Send + 'a>;

/// Takes the pixels of one picture: first [`begin`](Self::begin), then its rows.
pub(crate) struct Output<'a> {
    plan: Plan<'a>,
    alpha: Alpha,
}

impl<'a> Output<'a> {
    pub(crate) fn new(plan: Plan<'a>, alpha: Alpha) -> Self {
        Self { plan, alpha }
    }

    /// Makes room for the pictures.
    pub(crate) fn begin(self, header: Header, input: &Input<'_>) -> Result<RowSink, ImageError> {
        let Header { width, height, orientation, keys } = header;
        let (upright_width, upright_height) = upright_size(width, height, orientation);
        let targets = (self.plan)(upright_width, upright_height);
        let bytes = |&target: &ResizeTarget| RowResizer::needed_bytes((width, height), orientation, target);
        let needed = targets.iter().map(bytes).fold(0, u64::saturating_add);
        input.check_memory(needed)?;
        let resizer = |target: ResizeTarget| {
            if !target.crop.is_inside(upright_width, upright_height) || target.width == 0 || target.height == 0 {
                return Err(input.bad_target(target, upright_width, upright_height));
            }
            RowResizer::new((width, height), orientation, target).map_err(|_| input.no_memory(needed))
        };
        let resizers = targets.into_iter().map(resizer).collect::<Result<_, _>>()?;
        let flattening = Flattening::new(self.alpha, keys);
        Ok(RowSink { width: width as usize, flattening, resizers, gathered: Vec::new() })
    }

    /// Takes a picture that its decoder only gives as a whole.
    pub(crate) fn put(self, raster: Raster, input: &Input<'_>) -> Result<RowSink, ImageError> {
        let Raster { width, height, pixels, keys, orientation } = raster;
        let mut rows = self.begin(Header { width, height, orientation, keys }, input)?;
        rows.push(&pixels);
        Ok(rows)
    }
}

/// A picture whose rows arrive, from the top.
#[derive(Debug)]
pub(crate) struct RowSink {
    width: usize,
    flattening: Flattening,
    resizers: Vec<RowResizer>,
    /// RGB rows that are too few to be resized by themselves.
    gathered: Vec<u8>,
}

/// Largest number of pixels that are brought to RGB together.
const BAND_PIXELS: usize = 64 << 10;

/// Fewer pixels than this wait for more.
const MIN_BAND_PIXELS: usize = 16 << 10;

impl RowSink {
    /// Takes the next rows.
    pub(crate) fn push(&mut self, pixels: &Pixels) {
        let band = self.width * (BAND_PIXELS / self.width).max(1);
        for start in (0..pixels.len()).step_by(band) {
            let rgb = pixels.to_rgb(start..(start + band).min(pixels.len()), self.flattening);
            if self.gathered.is_empty() && rgb.len() >= 3 * MIN_BAND_PIXELS {
                self.resize(&rgb);
                continue;
            }
            self.gathered.extend_from_slice(&rgb);
            if self.gathered.len() >= 3 * MIN_BAND_PIXELS {
                self.resize_gathered();
            }
        }
    }

    /// The pictures, in the order of the plan, once all rows have come.
    pub(crate) fn finish(mut self) -> Vec<RgbImage> {
        self.resize_gathered();
        self.resizers.into_par_iter().map(RowResizer::finish).collect()
    }

    fn resize(&mut self, rgb: &[u8]) {
        let rows = RgbView::of_rows(rgb, self.width);
        self.resizers.par_iter_mut().for_each(|resizer| resizer.push(rows));
    }

    fn resize_gathered(&mut self) {
        let mut gathered = std::mem::take(&mut self.gathered);
        self.resize(&gathered);
        gathered.clear();
        self.gathered = gathered;
    }
}

fn upright_size(width: u32, height: u32, orientation: Orientation) -> (u32, u32) {
    if exchanges_axes(orientation) { (height, width) } else { (width, height) }
}

/// Reads pieces in turn, each while the one before it is used.
pub(crate) fn read_ahead<T: Send, E: Send>(
    mut read: impl FnMut() -> Result<Option<T>, E> + Send,
    mut take: impl FnMut(T) + Send,
) -> Result<(), E> {
    let mut next = read()?;
    while let Some(piece) = next {
        let (following, ()) = rayon::join(&mut read, || take(piece));
        next = following?;
    }
    Ok(())
}
