//! Converts coefficients to rows of the image, band by band.
//!
//! A band consists of a fixed number of rows of units (MCUs). Upsampling needs one row of samples beyond the edge of a
//! band. Therefore, the output rows of a band are shifted up by one row: they are computed from this band and the band
//! above.

use std::ops::Range;

use rayon::prelude::*;

use super::Coefficients;
use super::blocks::Block;
use super::color::Color;
use super::frame::{BLOCK, Component, Frame};
use super::idct;
use super::upsample::{Upsampler, Upsampling};
use crate::output::RowSpace;

/// Target size of the coefficients in a band, in bytes. Such a band takes up only a part of a core's cache.
const BAND_BYTES: usize = 256 << 10;

/// How a frame is divided into bands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bands {
    /// Number of unit rows in a band. The last band may have fewer.
    units: usize,
    /// Number of bands.
    pub(super) count: usize,
}

impl Bands {
    pub(super) fn new(frame: &Frame) -> Self {
        let unit_row: usize = frame.components.iter().map(|component| component.v * component.stride).sum();
        let units = (BAND_BYTES / (unit_row * size_of::<Block>())).clamp(1, frame.units_down);
        Self { units, count: frame.units_down.div_ceil(units) }
    }

    /// Returns the range of unit (MCU) rows in a band.
    pub(super) fn units(self, frame: &Frame, band: usize) -> Range<usize> {
        let start = band * self.units;
        start..(start + self.units).min(frame.units_down)
    }

    /// Returns the number of blocks of each component in a band.
    pub(super) fn blocks(self, frame: &Frame, band: usize) -> Vec<usize> {
        let rows = self.units(frame, band).len();
        frame.components.iter().map(|component| component.stride * component.v * rows).collect()
    }
}

/// The samples of each component in one band.
type Planes = Vec<Vec<u8>>;

/// Converts bands of coefficients to rows of the image, from the top.
#[derive(Debug)]
pub(super) struct Renderer<'a> {
    frame: &'a Frame,
    /// Quantisation table of each component; zeros for a component that no scan contains.
    divisors: Vec<[i16; 64]>,
    upsampling: Vec<Upsampling>,
    color: Color,
    layout: Bands,
    /// Number of finished bands, and the samples of the last finished band.
    done: usize,
    last: Option<Planes>,
}

impl<'a> Renderer<'a> {
    pub(super) fn new(frame: &'a Frame, layout: Bands, divisors: &[Option<[u16; 64]>], color: Color) -> Self {
        // Quantisation values above 15 bits wrap around, as in the SIMD code of libjpeg-turbo.
        let wrapped = |table: &Option<[u16; 64]>| table.map_or([0; 64], |table| table.map(|divisor| divisor as i16));
        Self {
            frame,
            divisors: divisors.iter().map(wrapped).collect(),
            upsampling: frame.components.iter().map(|component| color.upsampling(frame, component)).collect(),
            color,
            layout,
            done: 0,
            last: None,
        }
    }

    /// Renders the next bands and writes the finished rows to `out`: `[rows, width, pixel]`.
    pub(super) fn render(&mut self, bands: &[Coefficients], out: &mut impl RowSpace) {
        let mut planes: Vec<Planes> =
            bands.par_iter().with_max_len(1).map(|band| self.transform(&band.all())).collect();
        let stride = self.color.pixel_bytes() * self.frame.width;
        let rows = |index: usize| self.rows(self.done + index);
        let mut rest = out.space(stride * (0..planes.len()).map(|index| rows(index).len()).sum::<usize>());
        let mut outs = Vec::with_capacity(planes.len());
        for index in 0..planes.len() {
            let (these, below) = rest.split_at_mut(stride * rows(index).len());
            outs.push(these);
            rest = below;
        }
        outs.into_par_iter().with_max_len(1).enumerate().for_each(|(index, out)| {
            let above = if index == 0 { self.last.as_ref() } else { Some(&planes[index - 1]) };
            self.finish(self.done + index, above, &planes[index], out);
        });
        self.done += planes.len();
        self.last = planes.pop().or_else(|| self.last.take());
        out.take();
    }

    /// Returns the rows of the image that a band finishes. They start at the last row of the band above and end before
    /// the band's own last row. The last band of the image also finishes its own last row.
    fn rows(&self, band: usize) -> Range<usize> {
        let band_rows = self.layout.units * self.frame.max_v * BLOCK;
        let end = if band + 1 == self.layout.count { self.frame.height } else { (band + 1) * band_rows - 1 };
        (band * band_rows).saturating_sub(1)..end
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

    /// Computes the pixels of the rows that a band finishes. `above` is the band above.
    fn finish(&self, band: usize, above: Option<&Planes>, planes: &Planes, out: &mut [u8]) {
        let width = self.frame.width;
        let length = width.next_multiple_of(2 * BLOCK);
        let components = &self.frame.components;
        let mut upsamplers: Vec<Upsampler> = components.iter().map(|_| Upsampler::default()).collect();
        for (y, out) in self.rows(band).zip(out.chunks_exact_mut(self.color.pixel_bytes() * width)) {
            let mut rows: [&[u8]; 4] = [&[]; 4];
            for (index, (component, upsampler)) in components.iter().zip(&mut upsamplers).enumerate() {
                // Number of sample rows of this component in a band, and number of samples in a row.
                let (height, stride) = (self.layout.units * component.v * BLOCK, component.stride * BLOCK);
                let source = |y: usize| {
                    let planes = match above {
                        Some(above) if y / height < band => above,
                        _ => planes,
                    };
                    &planes[index][y % height * stride..][..stride]
                };
                rows[index] = upsampler.row(self.upsampling[index], component, y, length, source);
            }
            self.color.convert(&rows[..components.len()], out);
        }
    }
}
