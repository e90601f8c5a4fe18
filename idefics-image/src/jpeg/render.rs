//! From coefficients to the picture, band by band on any thread.
//!
//! A band is some rows of units. Interpolation looks one row of samples over the edge of a band, so the rows of the
//! picture that a band lets finish are shifted up by one: they need that band and the one above. Whichever of the two
//! is transformed last finishes them; what they become does not depend on it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::blocks::Block;
use super::color::Color;
use super::frame::{BLOCK, Component, Frame};
use super::idct;
use super::upsample::{Upsampler, Upsampling};

/// Bytes of coefficients in a band: a part of a core's own cache.
const BAND_BYTES: usize = 256 << 10;

/// How a frame is cut in bands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bands {
    /// Rows of units in a band; the last one may have fewer.
    units: usize,
    /// Number of bands.
    pub(super) count: usize,
}

impl Bands {
    pub(super) fn of(frame: &Frame) -> Self {
        let unit_row: usize = frame.components.iter().map(|component| component.v * component.stride).sum();
        let units = (BAND_BYTES / (unit_row * size_of::<Block>())).clamp(1, frame.units_down);
        Self { units, count: frame.units_down.div_ceil(units) }
    }

    /// The rows of units of a band.
    pub(super) fn units(self, frame: &Frame, band: usize) -> Range<usize> {
        let start = band * self.units;
        start..(start + self.units).min(frame.units_down)
    }

    /// How many blocks of each component a band has.
    pub(super) fn blocks(self, frame: &Frame, band: usize) -> Vec<usize> {
        let rows = self.units(frame, band).len();
        frame.components.iter().map(|component| component.stride * component.v * rows).collect()
    }
}

/// The samples of each component in one band.
type Planes = Vec<Vec<u8>>;

/// Turns bands of coefficients into a picture.
#[derive(Debug)]
pub(super) struct Renderer<'a> {
    frame: &'a Frame,
    /// Divisors of each component; zeros for one that no scan has shown.
    divisors: Vec<[i16; 64]>,
    upsampling: Vec<Upsampling>,
    color: Color,
    layout: Bands,
    shared: Mutex<Shared<'a>>,
}

#[derive(Debug)]
struct Shared<'a> {
    /// The bands that are transformed and still needed.
    planes: Vec<Option<Arc<Planes>>>,
    /// The rows of the picture that each band lets finish, until somebody does.
    rows: Vec<Option<&'a mut [u8]>>,
}

/// Rows of the picture to finish, with the bands that they lie in.
struct Job<'a> {
    band: usize,
    above: Option<Arc<Planes>>,
    planes: Arc<Planes>,
    rows: &'a mut [u8],
}

impl<'a> Renderer<'a> {
    /// `picture` is `[height, width, pixel]` with as many bytes a pixel as `color` has.
    pub(super) fn new(
        frame: &'a Frame,
        layout: Bands,
        divisors: &[Option<[u16; 64]>],
        color: Color,
        picture: &'a mut [u8],
    ) -> Self {
        let bands = layout.count;
        let band_rows = layout.units * frame.max_v * BLOCK;
        let mut rows = Vec::with_capacity(bands);
        let mut rest = picture;
        for band in 0..bands {
            let end = if band + 1 == bands { frame.height } else { (band + 1) * band_rows - 1 };
            let start = (band * band_rows).saturating_sub(1);
            let (these, below) = rest.split_at_mut(color.pixel_bytes() * frame.width * (end - start));
            rows.push(Some(these));
            rest = below;
        }
        // Divisors above 15 bits wrap, as in the vector code of libjpeg-turbo.
        let wrapped = |table: &Option<[u16; 64]>| table.map_or([0; 64], |table| table.map(|divisor| divisor as i16));
        Self {
            frame,
            divisors: divisors.iter().map(wrapped).collect(),
            upsampling: frame.components.iter().map(|component| color.upsampling(frame, component)).collect(),
            color,
            layout,
            shared: Mutex::new(Shared { planes: vec![None; bands], rows }),
        }
    }

    /// Takes the coefficients of a band, and finishes what can be finished. Every band comes once, in any order.
    pub(super) fn render(&self, band: usize, blocks: &[&[Block]]) {
        let planes = Arc::new(self.transform(blocks));
        for job in self.jobs(band, planes).into_iter().flatten() {
            self.finish(job);
        }
    }

    fn transform(&self, blocks: &[&[Block]]) -> Planes {
        let plane = |((component, divisors), blocks): ((&Component, &[i16; 64]), &&[Block])| {
            let mut plane = vec![0; blocks.len() * BLOCK * BLOCK];
            let rows = plane.chunks_exact_mut(component.stride * BLOCK * BLOCK);
            for (out, blocks) in rows.zip(blocks.chunks_exact(component.stride)) {
                idct::transform(blocks, divisors, out);
            }
            plane
        };
        self.frame.components.iter().zip(&self.divisors).zip(blocks).map(plane).collect()
    }

    /// What can be finished now that `band` is there: its rows, and those of the band below.
    fn jobs(&self, band: usize, planes: Arc<Planes>) -> [Option<Job<'a>>; 2] {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.planes[band] = Some(planes);
        let jobs = [band, band + 1].map(|band| {
            let planes = shared.planes.get(band)?.clone()?;
            let above = match band {
                0 => None,
                _ => Some(shared.planes[band - 1].clone()?),
            };
            Some(Job { band, above, planes, rows: shared.rows[band].take()? })
        });
        for band in band.saturating_sub(1)..=band + 1 {
            let is_taken = |band: usize| shared.rows.get(band).is_none_or(Option::is_none);
            if band < self.layout.count && is_taken(band) && is_taken(band + 1) {
                shared.planes[band] = None;
            }
        }
        jobs
    }

    fn finish(&self, job: Job<'_>) {
        let Frame { width, max_v, .. } = *self.frame;
        let band_rows = self.layout.units * max_v * BLOCK;
        let first = (job.band * band_rows).saturating_sub(1);
        let length = width.next_multiple_of(2 * BLOCK);
        let components = &self.frame.components;
        let mut upsamplers: Vec<Upsampler> = components.iter().map(|_| Upsampler::default()).collect();
        for (y, out) in (first..).zip(job.rows.chunks_exact_mut(self.color.pixel_bytes() * width)) {
            let mut rows: [&[u8]; 4] = [&[]; 4];
            for (index, (component, upsampler)) in components.iter().zip(&mut upsamplers).enumerate() {
                // Rows of this component in a band, and in a row.
                let (height, stride) = (self.layout.units * component.v * BLOCK, component.stride * BLOCK);
                let source = |y: usize| {
                    let planes = match &job.above {
                        Some(above) if y / height < job.band => above,
                        _ => &job.planes,
                    };
                    &planes[index][y % height * stride..][..stride]
                };
                rows[index] = upsampler.row(self.upsampling[index], component, y, length, source);
            }
            self.color.convert(&rows[..components.len()], out);
        }
    }
}
