//! The output side of every decoder: rows are converted to RGB in bands, and each band is passed to the resizer of
//! every requested image. The whole decoded image is kept only if the caller asks for it.

use image::metadata::Orientation;
use rayon::prelude::*;

use crate::decode::Input;
use crate::orientation::exchanges_axes;
use crate::raster::{Flattening, Keys, Pixels, Raster};
use crate::resize::{ResizeTarget, RowResizer};
use crate::rgb::RgbView;
use crate::{Alpha, ImageError, RgbImage};

/// What a decoder knows about an image before it decodes pixels.
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
    /// Creates the header of an upright image without transparent colours.
    pub(crate) fn new(width: u32, height: u32) -> Self {
        Self { width, height, orientation: Orientation::NoTransforms, keys: Keys::default() }
    }
}

/// A function that returns the images to produce, given the upright width and height in pixels.
pub(crate) type Plan<'a> = Box<dyn FnOnce(u32, u32) -> Vec<ResizeTarget> + Send + 'a>;

/// The requested output of one decode. A decoder either calls [`begin`](Self::begin) with the header and writes rows to
/// the returned [`RowSink`], or calls [`put`](Self::put) with a whole image.
pub(crate) struct Output<'a> {
    plan: Plan<'a>,
    alpha: Alpha,
}

impl<'a> Output<'a> {
    pub(crate) fn new(plan: Plan<'a>, alpha: Alpha) -> Self {
        Self { plan, alpha }
    }

    /// Asks the plan for the images to produce, checks their size and allocates them.
    ///
    /// # Errors
    /// If a target does not fit into the image, or if the memory limit or the available memory is exceeded.
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

    /// Processes an image whose decoder returns it as a whole.
    pub(crate) fn put(self, raster: Raster, input: &Input<'_>) -> Result<RowSink, ImageError> {
        let Raster { width, height, pixels, keys, orientation } = raster;
        let mut rows = self.begin(Header { width, height, orientation, keys }, input)?;
        rows.push(&pixels);
        Ok(rows)
    }
}

/// A destination for rows of pixels, from the top. A decoder calls [`space`](Self::space), writes rows to the returned
/// buffer, and then calls [`take`](Self::take).
pub(crate) trait RowSpace {
    /// Returns a buffer of `bytes` bytes for the next rows. Its initial contents are unspecified.
    fn space(&mut self, bytes: usize) -> &mut [u8];

    /// Consumes the rows in the buffer that [`space`](Self::space) last returned.
    fn take(&mut self);
}

/// A [`RowSpace`] that passes the written rows to the closure `take`.
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

/// Returns the `bytes` bytes of the buffer that begin at offset `start`. Grows the buffer if necessary.
fn room(buffer: &mut Vec<u8>, start: usize, bytes: usize) -> &mut [u8] {
    if buffer.len() < start + bytes {
        buffer.resize(start + bytes, 0);
    }
    &mut buffer[start..start + bytes]
}

/// Receives the rows of one image, from the top, and produces the requested images from these rows.
#[derive(Debug)]
pub(crate) struct RowSink {
    width: usize,
    flattening: Flattening,
    resizers: Vec<RowResizer>,
    /// RGB rows, collected until there is enough input to resize. Only the first `n_gathered` bytes are valid.
    gathered: Vec<u8>,
    n_gathered: usize,
    /// Length in bytes of the buffer that `space` last returned.
    n_written: usize,
}

/// This implementation is for decoders that write RGB without a transparent colour. If the caller wants only the whole
/// image without resizing, the decoder writes directly to the buffer of the returned image.
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

/// Maximum number of pixels that are converted to RGB at a time.
const BAND_PIXELS: usize = 64 << 10;

/// Minimum number of pixels that are resized at a time. Smaller bands are collected first.
const MIN_BAND_PIXELS: usize = 16 << 10;

impl RowSink {
    /// Returns whether the only output is the stored image, unchanged.
    pub(crate) fn is_copy(&self) -> bool {
        matches!(&self.resizers[..], [only] if only.is_copy(self.width))
    }

    /// Converts the next rows to RGB and passes them to the resizers.
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

    /// Returns the images in the order of the plan. Call it after all rows have been pushed.
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

/// Calls `read` until it returns `None`, and passes the pieces to `take` in order. While `take` processes a piece, the
/// next one is read on another thread.
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
