//! Resizes an image while its rows arrive from top to bottom, in bands of any height.
//!
//! An image may be stored rotated or mirrored. Pillow turns it upright and then resizes it. Here it is resized first,
//! so that only the small output has to be turned. For this, the weights of a mirrored axis are mirrored, and the order
//! of the passes is exchanged if the axes are exchanged. The result is the same, because all sums are sums of integers.

use std::collections::TryReserveError;
use std::ops::Range;

use image::metadata::Orientation;
use rayon::prelude::*;

use super::block::{interleave, merge, separate};
use super::{Columns, Crop, Filter, ROWS, ResizeTarget, Rows, axis_taps, plain, window};
use crate::RgbImage;
use crate::orientation::{exchanges_axes, upright};
use crate::rgb::RgbView;

/// A resizer that computes one [`ResizeTarget`] from the rows of an image. It keeps only the rows that later output
/// rows need.
#[derive(Debug)]
pub(crate) struct RowResizer {
    /// The rectangle of the stored image that is read, as a range of columns and a range of rows.
    columns: Range<usize>,
    rows: Range<usize>,
    orientation: Orientation,
    /// The vertical pass; `None` if the height does not change.
    down: Option<Rows>,
    /// Whether every output pixel is a copy of an input pixel (nearest filter).
    is_nearest: bool,
    is_down_first: bool,
    /// Ranges of columns that are processed in parallel.
    parts: Vec<Part>,
    /// Number of input rows received so far.
    rows_seen: usize,
    /// Number of output rows computed so far.
    rows_made: usize,
    /// Size of the output before it is turned upright, in pixels.
    width: usize,
    height: usize,
    /// Pixels of the output, `[height, width, 3]`.
    out: Vec<u8>,
}

/// A range of columns of the output.
///
/// Between the passes, rows are stored in blocks, see [`block`](super::block). Row `y` of the rectangle is in block `y
/// / ROWS`.
#[derive(Debug)]
struct Part {
    /// Columns that are read, counted from the left side of the rectangle.
    inputs: Range<usize>,
    /// Number of output columns.
    outputs: usize,
    /// The horizontal pass; `None` if the width does not change.
    across: Option<Columns>,
    /// Ring buffer of `slots` blocks with the input rows of the vertical pass. Block `n` is in slot `n % slots`.
    window: Vec<u8>,
    slots: usize,
    /// Scratch buffer for one block.
    block: Vec<u8>,
    /// Rows between the two passes, if the vertical pass comes first.
    between: Vec<u8>,
}

/// Minimum number of columns of a part. Parts should not be small, because neighbouring parts read some of the same
/// columns.
const MIN_PART: usize = 128;

impl RowResizer {
    /// Returns the memory that resizing needs, in bytes: for the output, the rows between the passes, and the weights.
    pub(crate) fn needed_bytes((width, height): (u32, u32), orientation: Orientation, target: ResizeTarget) -> u64 {
        let Crop { left, top, right, bottom } = target.crop;
        let inputs =
            [right.saturating_sub(left).min(width.max(height)), bottom.saturating_sub(top).min(width.max(height))];
        let outputs = [target.width, target.height];
        let windows: [u64; 2] = std::array::from_fn(|axis| {
            let (inputs, outputs) = (inputs[axis] as usize, outputs[axis].max(1) as usize);
            if inputs == outputs { 0 } else { window(inputs, outputs, target.filter) as u64 }
        });
        // Indices of the upright axes that are stored horizontally (`across`) and vertically (`down`). If the stored
        // vertical axis is resized first, the window holds input rows of full width.
        let (across, down) = if exchanges_axes(orientation) { (1, 0) } else { (0, 1) };
        let is_down_first = is_down_first(orientation, &target);
        let row = if is_down_first { inputs[across].max(outputs[across]) } else { outputs[across] };
        let rows = match (windows[across], windows[down]) {
            (0, 0) => 0,
            (_, 0) => ROWS as u64,
            (_, window) => window + 4 * ROWS as u64,
        };
        let weights = [0, 1].map(|axis| windows[axis].saturating_mul(4 * u64::from(outputs[axis])));
        let out = (3 * u64::from(target.width)).saturating_mul(target.height.into());
        let window = rows.saturating_mul(3 * u64::from(row));
        [window, weights[0], weights[1]].into_iter().fold(out, u64::saturating_add)
    }

    /// Creates a resizer for an image of `width` × `height` stored pixels. `target` applies to the upright image.
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

        let is_down_first = is_down_first(orientation, &target);
        let slots = down.as_ref().map_or(0, |taps| taps.window().div_ceil(ROWS) + 1);
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
            let window = zeroed(slots * ROWS * row)?;
            let is_copy = across.is_none() && down.is_none();
            let block = if is_copy { Vec::new() } else { zeroed(ROWS * row.max(3 * outputs.len()))? };
            let between = if is_down_first && has_both { zeroed(ROWS * row)? } else { Vec::new() };
            parts.push(Part { inputs, outputs: outputs.len(), across, window, slots, block, between });
        }
        let least_row = parts.iter().map(|part| 3 * part.inputs.len().min(part.outputs)).min().unwrap_or(0);
        let down = down.map(|taps| Rows::new(taps, least_row));
        let out = zeroed(3 * width * height)?;
        let (rows_seen, rows_made) = (0, 0);
        let is_nearest = filter == Filter::Nearest;
        Ok(Self {
            columns,
            rows,
            orientation,
            down,
            is_nearest,
            is_down_first,
            parts,
            rows_seen,
            rows_made,
            width,
            height,
            out,
        })
    }

    /// Processes the next rows of the image. The band must have the full width of the image.
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
        let (is_nearest, is_down_first) = (self.is_nearest, self.is_down_first);
        self.parts.par_iter_mut().zip(targets).for_each(|(part, mut outs)| {
            let source = view.crop(part.inputs.start, 0, part.inputs.end, view.height);
            match down {
                _ if is_nearest => part.pick(source, first, down, made.start, &mut outs),
                None => part.horizontal(source, &mut outs),
                Some(down) if is_down_first => {
                    part.vertical_then_horizontal(source, first, down, made.start, &mut outs)
                }
                Some(down) => part.horizontal_then_vertical(source, first, down, made.start, &mut outs),
            }
        });
    }

    /// Returns whether the output is an unchanged copy of the stored image, which is `width` pixels wide.
    pub(crate) fn is_copy(&self, width: usize) -> bool {
        let is_unchanged = self.down.is_none() && self.parts.iter().all(|part| part.across.is_none());
        is_unchanged && self.columns == (0..width) && self.rows.start == 0
    }

    /// Returns a buffer of `bytes` bytes for the next rows of an unchanged copy.
    pub(crate) fn space(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.out[3 * self.width * self.rows_made..][..bytes]
    }

    /// Counts the rows in the first `bytes` bytes of the buffer from [`Self::space`] as written.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.rows_made += bytes / (3 * self.width);
        self.rows_seen = self.rows_made;
    }

    /// Returns the number of output rows that can be computed from the first `count` rows of the rectangle.
    fn rows_made_of(&self, count: usize) -> usize {
        let Some(down) = &self.down else { return count };
        (self.rows_made..self.height).find(|&row| down.taps.inputs(row).end > count).unwrap_or(self.height)
    }

    /// Returns the resized image, turned upright. All rows must have been pushed before.
    pub(crate) fn finish(self) -> RgbImage {
        assert_eq!(self.rows_made, self.height, "expected all rows of the image before the end");
        let (width, height) = (self.width as u32, self.height as u32);
        let picture = RgbImage::new(width, height, self.out).expect("the output has three bytes per pixel");
        upright(picture, self.orientation)
    }
}

impl Part {
    /// Runs both passes for the nearest filter, which only copies pixels. `source` holds the rows of the rectangle from
    /// row `first` on. `outs` are the output rows that these rows complete, from output row `made` on.
    fn pick(&self, source: RgbView<'_>, first: usize, down: Option<&Rows>, made: usize, outs: &mut [&mut [u8]]) {
        for (position, out) in (made..).zip(outs) {
            let y = down.map_or(position, |down| down.taps.inputs(position).start);
            let row = source.row(y - first);
            match &self.across {
                Some(columns) => plain::pick(row, &columns.taps, out),
                None => out.copy_from_slice(row),
            }
        }
    }

    /// Runs only the horizontal pass, over all rows of `source`.
    fn horizontal(&mut self, source: RgbView<'_>, outs: &mut [&mut [u8]]) {
        let Some(across) = &self.across else {
            return outs.iter_mut().enumerate().for_each(|(y, out)| out.copy_from_slice(source.row(y)));
        };
        for (index, outs) in outs.chunks_mut(ROWS).enumerate() {
            // Rows beyond the end repeat the last row.
            let rows = std::array::from_fn(|row| source.row((ROWS * index + row).min(source.height - 1)));
            let block = &mut self.block[..3 * ROWS * self.outputs];
            across.horizontal(rows, 0..outs.len(), block);
            separate(block, outs);
        }
    }

    /// Runs the horizontal pass and then the vertical pass. The arguments are the same as for [`Self::pick`].
    fn horizontal_then_vertical(
        &mut self,
        source: RgbView<'_>,
        first: usize,
        down: &Rows,
        made: usize,
        outs: &mut [&mut [u8]],
    ) {
        let (mut next, mut y) = (0, 0);
        while y < source.height && made + next < down.taps.len() {
            y += self.load(source, first, y, |part, rows, used, block| match &part.across {
                Some(columns) => columns.horizontal(rows, used, block),
                None => interleave(rows, block),
            });
            while next < outs.len() && down.taps.inputs(made + next).end <= first + y {
                down.vertical(|group| self.group(group), made + next, outs[next]);
                next += 1;
            }
        }
    }

    /// Runs the vertical pass and then the horizontal pass. The arguments are the same as for [`Self::pick`].
    fn vertical_then_horizontal(
        &mut self,
        source: RgbView<'_>,
        first: usize,
        down: &Rows,
        made: usize,
        outs: &mut [&mut [u8]],
    ) {
        let stride = 3 * self.inputs.len();
        let mut between = std::mem::take(&mut self.between);
        let (mut next, mut y) = (0, 0);
        while y < source.height && made + next < down.taps.len() {
            y += self.load(source, first, y, |_, rows, _, block| interleave(rows, block));
            while next < outs.len() && down.taps.inputs(made + next).end <= first + y {
                let group = |group: usize| self.group(group);
                if self.across.is_none() {
                    down.vertical(group, made + next, outs[next]);
                } else {
                    down.vertical(group, made + next, &mut between[next % ROWS * stride..][..stride]);
                }
                next += 1;
                if self.across.is_some() && (next % ROWS == 0 || next == outs.len()) {
                    let begin = (next - 1) / ROWS * ROWS;
                    let rows =
                        RgbView::of_rows(&between, self.inputs.len()).crop(0, 0, self.inputs.len(), next - begin);
                    self.horizontal(rows, &mut outs[begin..next]);
                }
            }
        }
        self.between = between;
    }

    /// Writes rows of `source` into the window, from row `y` on, until the block of row `y` is full or `source` ends.
    /// Returns the number of rows written. `write` computes a block of [`ROWS`] rows, of which only the rows in the
    /// given range are kept.
    fn load(
        &mut self,
        source: RgbView<'_>,
        first: usize,
        y: usize,
        write: impl Fn(&Self, [&[u8]; ROWS], Range<usize>, &mut [u8]),
    ) -> usize {
        let before = (first + y) % ROWS;
        let count = (ROWS - before).min(source.height - y);
        // Rows of the block that are not written now repeat other rows. Their results are discarded.
        let rows = std::array::from_fn(|row| source.row((y + row).saturating_sub(before).clamp(y, y + count - 1)));
        let used = before..before + count;
        let size = self.window.len() / self.slots;
        let slot = (first + y) / ROWS % self.slots * size;
        let mut window = std::mem::take(&mut self.window);
        if count == ROWS {
            write(self, rows, used, &mut window[slot..][..size]);
        } else {
            let mut block = std::mem::take(&mut self.block);
            write(self, rows, used.clone(), &mut block[..size]);
            merge(&block[..size], used, &mut window[slot..][..size]);
            self.block = block;
        }
        self.window = window;
        count
    }

    /// Returns an interleaved group of the window, which starts at row `LANES * group`.
    fn group(&self, group: usize) -> &[u8] {
        let size = self.window.len() / (2 * self.slots);
        &self.window[(group / 2 % self.slots * 2 + group % 2) * size..][..size]
    }
}

/// Returns whether the pass along the stored y axis comes first.
///
/// Pillow resizes along the upright x axis first, unless the height is more than 100 times the width and is reduced.
///
/// Source: `Image.resize` of Pillow 12.3.
fn is_down_first(orientation: Orientation, target: &ResizeTarget) -> bool {
    let (width, height) = (target.crop.width(), target.crop.height());
    let is_y_first = u64::from(height) > 100 * u64::from(width) && target.height < height;
    is_y_first != exchanges_axes(orientation)
}

/// How the axes of a stored image map to the axes of the upright image.
struct Axes {
    /// Whether stored columns are upright rows.
    are_exchanged: bool,
    is_x_mirrored: bool,
    is_y_mirrored: bool,
}

impl Axes {
    fn of(orientation: Orientation) -> Self {
        let (is_x_mirrored, is_y_mirrored) = match orientation {
            Orientation::NoTransforms | Orientation::Rotate90FlipH => (false, false),
            Orientation::FlipHorizontal | Orientation::Rotate270 => (true, false),
            Orientation::FlipVertical | Orientation::Rotate90 => (false, true),
            Orientation::Rotate180 | Orientation::Rotate270FlipH => (true, true),
        };
        Self { are_exchanged: exchanges_axes(orientation), is_x_mirrored, is_y_mirrored }
    }
}

/// Returns a buffer of zeros, or an error if there is not enough memory. A trial allocation, which is freed
/// immediately, detects the error. The buffer itself is allocated with `vec!`, because `vec!` can obtain pages that are
/// already zero.
pub(crate) fn zeroed(length: usize) -> Result<Vec<u8>, TryReserveError> {
    Vec::<u8>::new().try_reserve_exact(length)?;
    Ok(vec![0; length])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::taps::tests::values;
    use super::super::{resize_view, target::Crop};
    use super::*;
    use crate::Filter;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// For bands of any height, every orientation and several parts, the result equals resizing the upright image.
        #[test]
        fn rows_in_bands_become_the_resized_upright_picture(
            (width, height) in prop_oneof![(1..30_u32, 1..30_u32), (1..400_u32, 1..120_u32), (1..120_u32, 1..400_u32)],
            orientation in 1..=8_u8,
            corners in any::<[u32; 4]>(),
            (out_width, out_height) in prop_oneof![(1..40_u32, 1..40_u32), (1..500_u32, 1..60_u32), (1..60_u32, 1..500_u32)],
            filter in prop::sample::select(Filter::ALL.to_vec()),
            bands in prop::collection::vec(1..40_usize, 1..8),
            threads in prop::sample::select(vec![1_usize, 3]),
        ) {
            let orientation = Orientation::from_exif(orientation).unwrap();
            let stored = RgbImage::new(width, height, values((3 * width * height) as usize)).unwrap();
            let shown = upright(stored.clone(), orientation);
            let range = |side: u32, a: u32, b: u32| ((a % side).min(b % side), (a % side).max(b % side) + 1);
            let (left, right) = range(shown.width(), corners[0], corners[1]);
            let (top, bottom) = range(shown.height(), corners[2], corners[3]);
            let target =
                ResizeTarget { crop: Crop { left, top, right, bottom }, width: out_width, height: out_height, filter };
            let view = shown.view().crop(left as usize, top as usize, right as usize, bottom as usize);
            let expected = resize_view(view, out_width, out_height, filter);

            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let resized = pool.install(|| {
                let mut resizer = RowResizer::new((width, height), orientation, target).unwrap();
                let mut rows = stored.data().chunks_exact(3 * width as usize);
                for count in bands.into_iter().cycle() {
                    let band: Vec<u8> = rows.by_ref().take(count).flatten().copied().collect();
                    if band.is_empty() {
                        break;
                    }
                    resizer.push(RgbView::of_rows(&band, width as usize));
                }
                resizer.finish()
            });
            prop_assert!(resized == expected);
        }
    }
}
