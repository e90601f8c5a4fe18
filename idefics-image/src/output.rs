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
        Ok(RowSink { width: width as usize, flattening, resizers, gathered: Vec::new(), n_gathered: 0, n_written: 0 })
    }

    /// Takes a picture that its decoder only gives as a whole.
    pub(crate) fn put(self, raster: Raster, input: &Input<'_>) -> Result<RowSink, ImageError> {
        let Raster { width, height, pixels, keys, orientation } = raster;
        let mut rows = self.begin(Header { width, height, orientation, keys }, input)?;
        rows.push(&pixels);
        Ok(rows)
    }
}

/// Where a decoder writes rows of pixels, from the top.
pub(crate) trait RowSpace {
    /// Room for the next rows, `bytes` in all. What is in it beforehand means nothing.
    fn space(&mut self, bytes: usize) -> &mut [u8];

    /// Takes the rows that were written to the space.
    fn take(&mut self);
}

/// Hands rows on that a decoder writes.
pub(crate) struct Bands<F> {
    rows: Vec<u8>,
    n_written: usize,
    take: F,
}

impl<F: FnMut(&[u8])> Bands<F> {
    pub(crate) fn new(take: F) -> Self {
        Self { rows: Vec::new(), n_written: 0, take }
    }
}

impl<F: FnMut(&[u8])> RowSpace for Bands<F> {
    fn space(&mut self, bytes: usize) -> &mut [u8] {
        self.n_written = bytes;
        room(&mut self.rows, 0, bytes)
    }

    fn take(&mut self) {
        (self.take)(&self.rows[..self.n_written]);
    }
}

/// `bytes` bytes behind the first `start` ones.
fn room(buffer: &mut Vec<u8>, start: usize, bytes: usize) -> &mut [u8] {
    if buffer.len() < start + bytes {
        buffer.resize(start + bytes, 0);
    }
    &mut buffer[start..start + bytes]
}

/// A picture whose rows arrive, from the top.
#[derive(Debug)]
pub(crate) struct RowSink {
    width: usize,
    flattening: Flattening,
    resizers: Vec<RowResizer>,
    /// RGB rows that are too few to be resized by themselves; `n_gathered` bytes count.
    gathered: Vec<u8>,
    n_gathered: usize,
    /// Bytes of the space that was given out.
    n_written: usize,
}

/// RGB without a transparent color. A picture that is wanted as it is, is written where it stays.
impl RowSpace for RowSink {
    fn space(&mut self, bytes: usize) -> &mut [u8] {
        self.n_written = bytes;
        match &mut self.resizers[..] {
            [only] if only.is_copy(self.width) && self.n_gathered == 0 => only.space(bytes),
            _ => room(&mut self.gathered, self.n_gathered, bytes),
        }
    }

    fn take(&mut self) {
        match &mut self.resizers[..] {
            [only] if only.is_copy(self.width) && self.n_gathered == 0 => only.take(self.n_written),
            _ => {
                self.n_gathered += self.n_written;
                if self.n_gathered >= 3 * MIN_BAND_PIXELS {
                    self.resize_gathered();
                }
            }
        }
    }
}

/// Largest number of pixels that are brought to RGB together.
const BAND_PIXELS: usize = 64 << 10;

/// Fewer pixels than this wait for more.
const MIN_BAND_PIXELS: usize = 16 << 10;

impl RowSink {
    /// Whether the stored picture itself is what is wanted.
    pub(crate) fn is_copy(&self) -> bool {
        matches!(&self.resizers[..], [only] if only.is_copy(self.width))
    }

    /// Takes the next rows.
    pub(crate) fn push(&mut self, pixels: &Pixels) {
        let band = self.width * (BAND_PIXELS / self.width).max(1);
        for start in (0..pixels.len()).step_by(band) {
            let rgb = pixels.to_rgb(start..(start + band).min(pixels.len()), self.flattening);
            if self.n_gathered == 0 && rgb.len() >= 3 * MIN_BAND_PIXELS {
                self.resize(&rgb);
                continue;
            }
            room(&mut self.gathered, self.n_gathered, rgb.len()).copy_from_slice(&rgb);
            self.n_gathered += rgb.len();
            if self.n_gathered >= 3 * MIN_BAND_PIXELS {
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
        let gathered = std::mem::take(&mut self.gathered);
        self.resize(&gathered[..self.n_gathered]);
        (self.gathered, self.n_gathered) = (gathered, 0);
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
