//! Decodes the blocks of a scan in order, and handles restart markers.

use std::ops::Range;

use super::JpegError;
use super::bits::{Bits, Position, Segments};
use super::blocks::{self, Band, Plane, ProgressiveBlock};
use super::frame::{Frame, Process, Scan};
use super::huffman::{Codes, Table};
use super::markers::Markers;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;

/// A scan that is being decoded.
#[derive(Debug)]
pub(super) struct ScanReader<'a> {
    segments: Segments<'a>,
    position: Position,
    kind: Kind,
    parts: Vec<Part>,
    /// The blocks of one unit, in coding order.
    places: Vec<Place>,
    units_across: usize,
    /// Number of unit rows.
    pub(super) rows: usize,
    restart_interval: usize,
    state: State,
}

/// The part of each block that a scan codes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Sequential,
    DcFirst { low_bit: u8 },
    DcRefined { low_bit: u8 },
    AcFirst(Band),
    AcRefined(Band),
}

/// A component of a scan, with its tables.
#[derive(Debug)]
struct Part {
    /// Index of the component in the frame.
    component: usize,
    /// The Huffman tables. Tables that the scan does not use are empty.
    dc: Table,
    ac: Table,
    /// Number of stored blocks in a row of blocks.
    stride: usize,
    /// Number of blocks per unit, horizontally and vertically.
    across: usize,
    down: usize,
}

/// A block of a unit.
#[derive(Debug, Clone, Copy)]
struct Place {
    part: usize,
    /// Offset of this block from the component's first block in the unit, in stored blocks.
    offset: usize,
}

/// State that is carried from block to block and reset at a restart.
#[derive(Debug, Default)]
struct State {
    /// The last DC coefficient of each part.
    last_dc: [i32; 4],
    /// Number of blocks from here on that have no more coefficients in the band of a progressive scan.
    eob_run: u32,
    /// Whether the segment ended early. The remaining units up to the next restart are left unchanged.
    is_exhausted: bool,
    units_to_restart: usize,
    next_restart: u8,
}

impl<'a> ScanReader<'a> {
    /// Builds the tables and reads the first segment.
    pub(super) fn new(file: &'a [u8], markers: &Markers<'_>, frame: &Frame, scan: &Scan) -> Result<Self, JpegError> {
        let kind = kind(frame.process, scan);
        let is_interleaved = scan.components.len() > 1;
        let mut parts = Vec::with_capacity(scan.components.len());
        let mut places = Vec::new();
        for (part, entry) in scan.components.iter().enumerate() {
            let component = &frame.components[entry.index];
            let (across, down) = if is_interleaved { (component.h, component.v) } else { (1, 1) };
            parts.push(Part {
                component: entry.index,
                dc: table(kind.needs_dc(), &markers.dc_tables, entry.dc_table, true)?,
                ac: table(kind.needs_ac(), &markers.ac_tables, entry.ac_table, false)?,
                stride: component.stride,
                across,
                down,
            });
            let offsets = (0..down).flat_map(|y| (0..across).map(move |x| y * component.stride + x));
            places.extend(offsets.map(|offset| Place { part, offset }));
        }
        let (units_across, rows) = match scan.components[..] {
            [only] => (frame.components[only.index].blocks_across, frame.components[only.index].blocks_down),
            _ => (frame.units_across, frame.units_down),
        };
        let mut segments = Segments::new(file, markers.at);
        segments.read()?;
        let restart_interval = markers.restart_interval;
        let state = State { units_to_restart: restart_interval, ..State::default() };
        let position = Position::default();
        Ok(Self { segments, position, kind, parts, places, units_across, rows, restart_interval, state })
    }

    /// Returns whether the scan has restart markers. Without them, the scan is a single segment, and its end is known
    /// before it is decoded.
    pub(super) fn has_restarts(&self) -> bool {
        self.restart_interval > 0
    }

    /// Converts a range of unit rows of the frame to unit rows of the scan. The two differ if the scan has a single
    /// component, because each of its units is a single block.
    pub(super) fn rows_in(&self, units: Range<usize>, frame: &Frame) -> Range<usize> {
        let rows_per_unit = match self.parts[..] {
            [ref only] => frame.components[only.component].v,
            _ => 1,
        };
        units.start * rows_per_unit..(units.end * rows_per_unit).min(self.rows)
    }

    /// Decodes unit rows of the scan. `out` has the blocks of each component of the frame, starting at the first of
    /// these rows.
    pub(super) fn read_rows(&mut self, rows: Range<usize>, out: &mut [Plane<'_>]) -> Result<(), JpegError> {
        #[cfg(target_arch = "x86_64")]
        if Isa::Avx2.is_allowed() && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2") {
            return bmi::read_rows(self, rows, out);
        }
        self.read_rows_plain(rows, out)
    }

    #[inline(always)]
    fn read_rows_plain(&mut self, rows: Range<usize>, out: &mut [Plane<'_>]) -> Result<(), JpegError> {
        match self.kind {
            Kind::Sequential => self.each_block(rows, out, |bits, part, last_dc, _, plane, at| {
                blocks::sequential(bits, &part.dc, &part.ac, last_dc, &mut plane.blocks[at]);
            }),
            Kind::DcFirst { low_bit } => self.each_block(rows, out, |bits, part, last_dc, _, plane, at| {
                blocks::dc_first(bits, &part.dc, last_dc, low_bit, &mut plane.blocks[at]);
            }),
            Kind::DcRefined { low_bit } => self.each_block(rows, out, |bits, _, _, _, plane, at| {
                blocks::dc_refined(bits, low_bit, &mut plane.blocks[at]);
            }),
            Kind::AcFirst(band) => self.each_block(rows, out, |bits, part, _, eob_run, plane, at| {
                let block = ProgressiveBlock { block: &mut plane.blocks[at], nonzero: &mut plane.nonzero[at] };
                blocks::ac_first(bits, &part.ac, band, eob_run, block);
            }),
            Kind::AcRefined(band) => self.each_block(rows, out, |bits, part, _, eob_run, plane, at| {
                let block = ProgressiveBlock { block: &mut plane.blocks[at], nonzero: &mut plane.nonzero[at] };
                blocks::ac_refined(bits, &part.ac, band, eob_run, block);
            }),
        }
    }

    #[inline(always)]
    fn each_block(
        &mut self,
        rows: Range<usize>,
        out: &mut [Plane<'_>],
        decode: impl Fn(&mut Bits<'_>, &Part, &mut i32, &mut u32, &mut Plane<'_>, usize),
    ) -> Result<(), JpegError> {
        let Self { segments, state, .. } = self;
        let mut bits = segments.bits(self.position);
        for row in 0..rows.len() {
            for unit in 0..self.units_across {
                if self.restart_interval > 0 {
                    if state.units_to_restart == 0 {
                        state.restart(segments, self.restart_interval)?;
                        bits = segments.bits(Position::default());
                    }
                    state.units_to_restart -= 1;
                }
                if state.is_exhausted {
                    continue;
                }
                for place in &self.places {
                    let part = &self.parts[place.part];
                    let at = row * part.down * part.stride + unit * part.across + place.offset;
                    let plane = &mut out[part.component];
                    decode(&mut bits, part, &mut state.last_dc[place.part], &mut state.eob_run, plane, at);
                }
                state.is_exhausted = bits.is_overrun();
            }
        }
        self.position = bits.position();
        Ok(())
    }

    /// Sets the position of `markers` to the end of the scan's data. Returns the marker that ended the data, if it has
    /// not been consumed.
    pub(super) fn finish(&self, markers: &mut Markers<'_>) -> Option<u8> {
        markers.at = self.segments.at;
        self.segments.marker
    }
}

impl State {
    fn restart(&mut self, segments: &mut Segments<'_>, interval: usize) -> Result<(), JpegError> {
        let is_there = segments.restart(0xd0 + self.next_restart)?;
        *self = Self {
            // If the expected restart marker is missing, the data stays exhausted.
            is_exhausted: self.is_exhausted && !is_there,
            units_to_restart: interval,
            next_restart: (self.next_restart + 1) & 7,
            ..Self::default()
        };
        Ok(())
    }
}

impl Kind {
    fn needs_dc(self) -> bool {
        matches!(self, Self::Sequential | Self::DcFirst { .. })
    }

    fn needs_ac(self) -> bool {
        matches!(self, Self::Sequential | Self::AcFirst(_) | Self::AcRefined(_))
    }
}

fn kind(process: Process, scan: &Scan) -> Kind {
    let &Scan { first, last, low_bit, .. } = scan;
    let band = Band { first, last, low_bit };
    match (process, first, scan.is_refinement()) {
        (Process::Sequential, ..) => Kind::Sequential,
        (Process::Progressive, 0, false) => Kind::DcFirst { low_bit },
        (Process::Progressive, 0, true) => Kind::DcRefined { low_bit },
        (Process::Progressive, _, false) => Kind::AcFirst(band),
        (Process::Progressive, _, true) => Kind::AcRefined(band),
    }
}

fn table(is_needed: bool, tables: &[Option<Codes>; 4], slot: u8, is_dc: bool) -> Result<Table, JpegError> {
    if !is_needed {
        return Ok(Table::empty());
    }
    let codes = tables.get(usize::from(slot)).and_then(Option::as_ref);
    Table::new(codes.ok_or_else(|| JpegError::damaged("a Huffman table is missing"))?, is_dc)
}

/// The decoding loop, compiled for BMI1 and BMI2. It often shifts by variable numbers of bits, and BMI2 has faster
/// instructions for such shifts.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "calls a function that needs BMI")]
mod bmi {
    use super::*;

    /// Runs [`ScanReader::read_rows_plain`], compiled for BMI1 and BMI2.
    pub(super) fn read_rows(
        scan: &mut ScanReader<'_>,
        rows: Range<usize>,
        out: &mut [Plane<'_>],
    ) -> Result<(), JpegError> {
        #[target_feature(enable = "bmi1,bmi2")]
        fn compiled(scan: &mut ScanReader<'_>, rows: Range<usize>, out: &mut [Plane<'_>]) -> Result<(), JpegError> {
            scan.read_rows_plain(rows, out)
        }
        assert!(is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2"));
        // SAFETY: the assertion above checks that the CPU has BMI1 and BMI2.
        unsafe { compiled(scan, rows, out) }
    }
}
