//! Frame and scan headers: size, components, sampling factors, scan parameters.

use super::JpegError;

/// Side of a block, in samples.
pub(super) const BLOCK: usize = 8;

/// Maximum number of blocks per unit (MCU) in an interleaved scan.
const MAX_BLOCKS_IN_UNIT: usize = 10;

/// How coefficients are distributed over scans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    /// A scan contains whole blocks (baseline and extended sequential).
    Sequential,
    /// Blocks are split over several scans, by frequencies and bits.
    Progressive,
}

/// One colour component.
#[derive(Debug, Clone)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Horizontal and vertical sampling factors: blocks per unit, 1 to 4.
    pub(super) h: usize,
    pub(super) v: usize,
    /// Slot of the quantisation table.
    pub(super) quantization: u8,
    /// Size in samples.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Number of blocks that contain samples of the image, horizontally and vertically.
    pub(super) blocks_across: usize,
    pub(super) blocks_down: usize,
    /// Number of blocks in a stored row of blocks. The row has whole units and is padded to an even number of blocks.
    pub(super) stride: usize,
}

/// The parsed frame header. A unit (MCU) is the smallest rectangle that consists of whole blocks of every component.
/// Sizes are in pixels.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) process: Process,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: Vec<Component>,
    /// Largest sampling factors: the sides of a unit, in blocks.
    pub(super) max_h: usize,
    pub(super) max_v: usize,
    pub(super) units_across: usize,
    pub(super) units_down: usize,
}

impl Frame {
    /// Parses the parameters of a start-of-frame marker.
    pub(super) fn parse(process: Process, data: &[u8]) -> Result<Self, JpegError> {
        let Some((&[precision, height0, height1, width0, width1, count], rest)) = data.split_first_chunk::<6>() else {
            return Err(JpegError::damaged("the frame header is too short"));
        };
        if precision != 8 {
            return Err(JpegError::Coding(format!("{precision} bits per sample").into()));
        }
        let (width, height) = (u16::from_be_bytes([width0, width1]), u16::from_be_bytes([height0, height1]));
        if !matches!(count, 1 | 3 | 4) {
            return Err(JpegError::Coding(format!("{count} colour components").into()));
        }
        if rest.len() != 3 * usize::from(count) {
            return Err(JpegError::damaged("the frame header has the wrong length"));
        }
        let (width, height) = (usize::from(width), usize::from(height));
        let factors = rest.chunks_exact(3).map(|entry| (usize::from(entry[1] >> 4), usize::from(entry[1] & 15)));
        if factors.clone().any(|(h, v)| !(1..=4).contains(&h) || !(1..=4).contains(&v)) {
            return Err(JpegError::damaged("a sampling factor is not in the range 1 to 4"));
        }
        // The sampling factors of a single component have no meaning.
        let factors = move || factors.clone().map(move |pair| if count == 1 { (1, 1) } else { pair });
        let max_h = factors().map(|(h, _)| h).max().unwrap_or(1);
        let max_v = factors().map(|(_, v)| v).max().unwrap_or(1);
        let units_across = width.div_ceil(max_h * BLOCK);
        let units_down = height.div_ceil(max_v * BLOCK);
        let component = |(entry, (h, v)): (&[u8], (usize, usize))| Component {
            id: entry[0],
            h,
            v,
            quantization: entry[2],
            width: (width * h).div_ceil(max_h),
            height: (height * v).div_ceil(max_v),
            blocks_across: (width * h).div_ceil(max_h * BLOCK),
            blocks_down: (height * v).div_ceil(max_v * BLOCK),
            stride: (units_across * h).next_multiple_of(2),
        };
        let components: Vec<Component> = rest.chunks_exact(3).zip(factors()).map(component).collect();
        if components.iter().any(|component| max_h % component.h != 0 || max_v % component.v != 0) {
            return Err(JpegError::Coding("fractional sampling factors".into()));
        }
        Ok(Self { process, width, height, components, max_h, max_v, units_across, units_down })
    }

    /// Returns the number of stored blocks of all components, including padding.
    pub(super) fn stored_blocks(&self) -> usize {
        self.components.iter().map(|component| component.stride * component.v).sum::<usize>() * self.units_down
    }
}

/// A component of a scan.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScanComponent {
    /// Index of the component in the frame.
    pub(super) index: usize,
    /// Slots of the Huffman tables.
    pub(super) dc_table: u8,
    pub(super) ac_table: u8,
}

/// The parsed header of a scan.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    pub(super) components: Vec<ScanComponent>,
    /// First and last coefficient, as zigzag positions.
    pub(super) first: u8,
    pub(super) last: u8,
    /// `low_bit` is the lowest coefficient bit that this scan codes. If this scan refines an earlier scan, `high_bit`
    /// is the lowest bit that the earlier scan codes; otherwise, it is 0.
    pub(super) high_bit: u8,
    pub(super) low_bit: u8,
}

impl Scan {
    /// Parses the parameters of a start-of-scan marker.
    pub(super) fn parse(frame: &Frame, data: &[u8]) -> Result<Self, JpegError> {
        let count = usize::from(*data.first().ok_or_else(wrong_length)?);
        if !(1..=4).contains(&count) || data.len() != 2 * count + 4 {
            return Err(wrong_length());
        }
        let (entries, last) = data[1..].split_at(2 * count);
        let mut components: Vec<ScanComponent> = Vec::with_capacity(count);
        for entry in entries.chunks_exact(2) {
            // A scan lists its components in the order of the frame. If several components have the same id, the next
            // unused one is taken.
            let is_it = |index: &usize| {
                frame.components[*index].id == entry[0] && components.iter().all(|other| other.index != *index)
            };
            let index = (components.len()..frame.components.len()).find(is_it);
            let index =
                index.ok_or_else(|| JpegError::damaged("a scan has a component that the frame does not have"))?;
            components.push(ScanComponent { index, dc_table: entry[1] >> 4, ac_table: entry[1] & 15 });
        }
        let blocks = |scan: &ScanComponent| frame.components[scan.index].h * frame.components[scan.index].v;
        if count > 1 && components.iter().map(blocks).sum::<usize>() > MAX_BLOCKS_IN_UNIT {
            return Err(JpegError::damaged("a scan has more than ten blocks in a unit"));
        }
        let scan = Self { components, first: last[0], last: last[1], high_bit: last[2] >> 4, low_bit: last[2] & 15 };
        if frame.process == Process::Progressive {
            scan.check_progression()?;
        }
        Ok(scan)
    }

    /// Returns whether the scan refines coefficients of an earlier scan.
    pub(super) fn is_refinement(&self) -> bool {
        self.high_bit > 0
    }

    fn check_progression(&self) -> Result<(), JpegError> {
        let Self { first, last, high_bit, low_bit, .. } = *self;
        let is_band = if first == 0 { last == 0 } else { first <= last && last < 64 && self.components.len() == 1 };
        if !is_band || self.is_refinement() && low_bit + 1 != high_bit || low_bit > 13 {
            return Err(JpegError::damaged("a scan has invalid parameters"));
        }
        Ok(())
    }
}

fn wrong_length() -> JpegError {
    JpegError::damaged("a scan header has the wrong length")
}
