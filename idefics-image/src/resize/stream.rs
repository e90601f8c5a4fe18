//! Resizing while the rows of a picture arrive, from the top, in bands of any height.
//!
//! A picture may lie on its side. Pillow turns it first and resizes then; here it is the other way around, so that only
//! the small picture is turned: weights along a mirrored axis are mirrored, and where the axes are exchanged the pass
//! along y comes first. All sums are of integers, so the values are the same.

use std::collections::TryReserveError;
use std::ops::Range;

use image::metadata::Orientation;
use rayon::prelude::*;

use super::{Columns, ROWS, ResizeTarget, Rows, axis_taps};
use crate::RgbImage;
use crate::orientation::upright;
use crate::rgb::RgbView;

/// Makes one [`ResizeTarget`] of the rows of a picture. Of these it keeps only the window that the next output row reads.
#[derive(Debug)]
pub(crate) struct RowResizer {
    /// Rectangle of the stored picture that is read.
    columns: Range<usize>,
    rows: Range<usize>,
    orientation: Orientation,
    /// The pass along y; `None` if the height stays.
    down: Option<Rows>,
    is_down_first: bool,
    /// Ranges of columns that are worked on at the same time.
    parts: Vec<Part>,
    /// Rows of the picture that have come.
    rows_seen: usize,
    /// Output rows that are made.
    rows_made: usize,
    /// Size of the output as it is stored, in pixels.
    width: usize,
    height: usize,
    /// `[height, width, 3]`.
    out: Vec<u8>,
}

/// Some columns of the output.
#[derive(Debug)]
struct Part {
    /// Columns that are read, from the left side of the rectangle on.
    inputs: Range<usize>,
    /// Number of columns that are made.
    outputs: usize,
    /// The pass along x; `None` if the width stays.
    across: Option<Columns>,
    /// Input rows of the pass along y, each at its number modulo `slots`.
    window: Vec<u8>,
    slots: usize,
    /// Rows between the two passes, if that along y is the first.
    shortened: Vec<u8>,
}

/// Least columns of a part: parts read some columns twice.
const MIN_PART: usize = 128;

impl RowResizer {
    /// For a picture of `width` × `height` pixels as it is stored, of which `target` is a part once it is turned upright.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(crate) fn new(
        (width, height): (u32, u32),
        orientation: Orientation,
        target: ResizeTarget,
    ) -> Result<Self, TryReserveError> {
        let axes = Axes::of(orientation);
        let ResizeTarget { crop, filter, .. } = target;
        let (upright_x, upright_y) = ((crop.left, crop.right, target.width), (crop.top, crop.bottom, target.height));
        let (x, y) = if axes.are_exchanged { (upright_y, upright_x) } else { (upright_x, upright_y) };
        let stored = |(start, end, _): (u32, u32, u32), side: u32, is_mirrored| {
            let (start, end) = if is_mirrored { (side - end, side - start) } else { (start, end) };
            start as usize..end as usize
        };
        let (columns, rows) = (stored(x, width, axes.is_x_mirrored), stored(y, height, axes.is_y_mirrored));
        let (width, height) = (x.2 as usize, y.2 as usize);
        let taps = |inputs: &Range<usize>, outputs: usize, is_mirrored: bool| {
            let taps = (inputs.len() != outputs).then(|| axis_taps(inputs.len(), outputs, filter))?;
            Some(if is_mirrored { taps.mirrored(inputs.len()) } else { taps })
        };
        let (across, down) = (taps(&columns, width, axes.is_x_mirrored), taps(&rows, height, axes.is_y_mirrored));

        let is_down_first = axes.are_exchanged;
        let slots = down.as_ref().map_or(0, |taps| taps.window() + ROWS);
        let has_both = across.is_some() && down.is_some();
        let count = match (&across, &down) {
            (None, None) => 1,
            _ => rayon::current_num_threads().min(width / MIN_PART).max(1),
        };
        let ends: Vec<usize> = (0..=count).map(|part| part * width / count).collect();
        let mut parts = Vec::with_capacity(count);
        for ends in ends.windows(2) {
            let outputs = ends[0]..ends[1];
            let (inputs, across) = match &across {
                Some(taps) => {
                    let (inputs, taps) = taps.slice(outputs.clone());
                    (inputs, Some(Columns::new(taps)))
                }
                None => (outputs.clone(), None),
            };
            let row = 3 * if is_down_first { inputs.len() } else { outputs.len() };
            let window = zeroed(slots * row)?;
            let shortened = if is_down_first && has_both { zeroed(ROWS * row)? } else { Vec::new() };
            parts.push(Part { inputs, outputs: outputs.len(), across, window, slots, shortened });
        }
        let least_row = parts.iter().map(|part| 3 * part.inputs.len().min(part.outputs)).min().unwrap_or(0);
        let down = down.map(|taps| Rows::new(taps, least_row));
        let out = zeroed(3 * width * height)?;
        let (rows_seen, rows_made) = (0, 0);
        Ok(Self { columns, rows, orientation, down, is_down_first, parts, rows_seen, rows_made, width, height, out })
    }

    /// Takes the next rows of the picture, whole ones.
    pub(crate) fn push(&mut self, band: RgbView<'_>) {
        let band_rows = self.rows_seen..self.rows_seen + band.height;
        self.rows_seen = band_rows.end;
        let (start, end) = (band_rows.start.max(self.rows.start), band_rows.end.min(self.rows.end));
        if start >= end {
            return;
        }
        let view = band.crop(self.columns.start, start - band_rows.start, self.columns.end, end - band_rows.start);
        let first = start - self.rows.start;
        let rows_made = self.rows_made_of(first + view.height);
        let made = self.rows_made..rows_made;
        self.rows_made = rows_made;

        let stride = 3 * self.width;
        let mut targets: Vec<Vec<&mut [u8]>> = self.parts.iter().map(|_| Vec::with_capacity(made.len())).collect();
        for row in self.out[made.start * stride..made.end * stride].chunks_exact_mut(stride) {
            let mut rest = row;
            for (part, targets) in self.parts.iter().zip(&mut targets) {
                let (target, others) = rest.split_at_mut(3 * part.outputs);
                targets.push(target);
                rest = others;
            }
        }
        let down = self.down.as_ref();
        let is_down_first = self.is_down_first;
        self.parts.par_iter_mut().zip(targets).for_each(|(part, mut outs)| {
            let source = view.crop(part.inputs.start, 0, part.inputs.end, view.height);
            match down {
                None => part.narrow(source, &mut outs),
                Some(down) if is_down_first => part.shorten_and_narrow(source, first, down, made.start, &mut outs),
                Some(down) => part.narrow_and_shorten(source, first, down, made.start, &mut outs),
            }
        });
    }

    /// How many output rows the first `count` rows of the rectangle make.
    fn rows_made_of(&self, count: usize) -> usize {
        let Some(down) = &self.down else { return count };
        (self.rows_made..self.height).find(|&row| down.taps.inputs(row).end > count).unwrap_or(self.height)
    }

    /// The new picture, upright, once all rows have come.
    pub(crate) fn finish(self) -> RgbImage {
        assert_eq!(self.rows_made, self.height, "every row of the picture came");
        let (width, height) = (self.width as u32, self.height as u32);
        let picture = RgbImage::new(width, height, self.out).expect("there are three bytes for each pixel");
        upright(picture, self.orientation)
    }
}

impl Part {
    /// The pass along x alone, of all rows of `source`.
    fn narrow(&self, source: RgbView<'_>, outs: &mut [&mut [u8]]) {
        for (group, outs) in outs.chunks_mut(ROWS).enumerate() {
            self.across(source, ROWS * group, outs);
        }
    }

    /// The pass along x, then that along y. `source` are the rows of the rectangle from `first` on, and `outs` the output
    /// rows that they let finish, of which the first is `made`.
    fn narrow_and_shorten(
        &mut self,
        source: RgbView<'_>,
        first: usize,
        down: &Rows,
        made: usize,
        outs: &mut [&mut [u8]],
    ) {
        let stride = 3 * self.outputs;
        let mut window = std::mem::take(&mut self.window);
        let (mut next, mut y) = (0, 0);
        while made + next < down.taps.len() {
            // Rows between those of two outputs are not looked at.
            y = y.max(down.taps.inputs(made + next).start.saturating_sub(first));
            if y >= source.height {
                break;
            }
            let slot = (first + y) % self.slots;
            let count = ROWS.min(source.height - y).min(self.slots - slot);
            let mut group: Vec<&mut [u8]> = window[slot * stride..].chunks_exact_mut(stride).take(count).collect();
            self.across(source, y, &mut group);
            y += count;
            while next < outs.len() && down.taps.inputs(made + next).end <= first + y {
                let row = |row: usize| &window[row % self.slots * stride..][..stride];
                down.shorten(row, made + next, outs[next]);
                next += 1;
            }
        }
        self.window = window;
    }

    /// As [`Self::narrow_and_shorten`], the pass along y first.
    fn shorten_and_narrow(
        &mut self,
        source: RgbView<'_>,
        first: usize,
        down: &Rows,
        made: usize,
        outs: &mut [&mut [u8]],
    ) {
        let stride = 3 * self.inputs.len();
        let (mut window, mut shortened) = (std::mem::take(&mut self.window), std::mem::take(&mut self.shortened));
        let mut next = 0;
        for y in 0..source.height {
            let slot = (first + y) % self.slots;
            window[slot * stride..][..stride].copy_from_slice(source.row(y));
            let group_start = |next: usize| next / ROWS * ROWS;
            while next < outs.len() && down.taps.inputs(made + next).end <= first + y + 1 {
                let row = |row: usize| &window[row % self.slots * stride..][..stride];
                match &self.across {
                    None => down.shorten(row, made + next, outs[next]),
                    Some(_) => down.shorten(row, made + next, &mut shortened[next % ROWS * stride..][..stride]),
                }
                next += 1;
                if self.across.is_some() && (next % ROWS == 0 || next == outs.len()) {
                    let rows = RgbView::of_rows(&shortened, self.inputs.len());
                    self.across(rows, 0, &mut outs[group_start(next - 1)..next]);
                }
            }
        }
        (self.window, self.shortened) = (window, shortened);
    }

    /// The rows of `source` from `first` on along x, into as many of `outs`, at most [`ROWS`].
    fn across(&self, source: RgbView<'_>, first: usize, outs: &mut [&mut [u8]]) {
        match &self.across {
            Some(columns) => columns.narrow(source, first, outs),
            None => outs.iter_mut().zip(first..).for_each(|(out, y)| out.copy_from_slice(source.row(y))),
        }
    }
}

/// How the axes of a stored picture become those of the upright one.
struct Axes {
    /// Whether stored columns are upright rows.
    are_exchanged: bool,
    is_x_mirrored: bool,
    is_y_mirrored: bool,
}

impl Axes {
    fn of(orientation: Orientation) -> Self {
        let (are_exchanged, is_x_mirrored, is_y_mirrored) = match orientation {
            Orientation::NoTransforms => (false, false, false),
            Orientation::FlipHorizontal => (false, true, false),
            Orientation::Rotate180 => (false, true, true),
            Orientation::FlipVertical => (false, false, true),
            Orientation::Rotate90FlipH => (true, false, false),
            Orientation::Rotate90 => (true, false, true),
            Orientation::Rotate270FlipH => (true, true, true),
            Orientation::Rotate270 => (true, true, false),
        };
        Self { are_exchanged, is_x_mirrored, is_y_mirrored }
    }
}

/// Zeros, or an error where the system has no room for them. The trial allocation is given back at once, since only
/// `vec!` gets pages that are zero already.
pub(crate) fn zeroed(length: usize) -> Result<Vec<u8>, TryReserveError> {
    Vec::<u8>::new().try_reserve_exact(length)?;
    Ok(vec![0; length])
}
