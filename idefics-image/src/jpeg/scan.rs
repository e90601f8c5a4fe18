//! The blocks of a scan in their order, with restarts.

use std::ops::Range;

use super::JpegError;
use super::bits::{Bits, Position, Segments};
use super::blocks::{self, Band, Partial, Plane};
use super::frame::{Frame, Process, Scan};
use super::huffman::{Codes, Table};
use super::markers::Markers;

/// A scan that is being read.
#[derive(Debug)]
pub(super) struct ScanReader<'a> {
    segments: Segments<'a>,
    position: Position,
    kind: Kind,
    parts: Vec<Part>,
    /// The blocks of one unit, in their order.
    places: Vec<Place>,
    units_across: usize,
    /// Rows of units.
    pub(super) rows: usize,
    restart_interval: usize,
    state: State,
}

/// What a scan has of each block.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Sequential,
    DcFirst { low_bit: u8 },
    DcRefined { low_bit: u8 },
    AcFirst(Band),
    AcRefined(Band),
}

/// One component's part in a scan.
#[derive(Debug)]
struct Part {
    /// Which of the frame's components.
    component: usize,
    /// The tables; those that the scan does not use are empty.
    dc: Table,
    ac: Table,
    /// Blocks from one row of blocks to the next.
    stride: usize,
    /// Blocks of a unit, across and down.
    across: usize,
    down: usize,
}

/// Where a block of a unit goes.
#[derive(Debug, Clone, Copy)]
struct Place {
    part: usize,
    /// Blocks from the first of the unit.
    offset: usize,
}

/// What goes on from block to block up to a restart.
#[derive(Debug, Default)]
struct State {
    /// The last DC coefficient of each part.
    last_dc: [i32; 4],
    /// Blocks that have nothing more in a progressive scan.
    empty_blocks: u32,
    /// The segment has ended too early: units stay as they are up to the next restart.
    is_exhausted: bool,
    units_to_restart: usize,
    next_restart: u8,
}

impl<'a> ScanReader<'a> {
    /// Prepares the tables and reads the first segment.
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

    /// Whether the scan has restart markers. The end of a scan without any is known before it is read.
    pub(super) fn has_restarts(&self) -> bool {
        self.restart_interval > 0
    }

    /// The rows of units that lie in rows `units` of the frame: those of the scan's only component are its own blocks.
    pub(super) fn rows_in(&self, units: Range<usize>, frame: &Frame) -> Range<usize> {
        let rows_per_unit = match self.parts[..] {
            [ref only] => frame.components[only.component].v,
            _ => 1,
        };
        units.start * rows_per_unit..(units.end * rows_per_unit).min(self.rows)
    }

    /// Reads rows of units. `out` has the blocks of each component of the frame, from the first of these rows on.
    pub(super) fn read_rows(&mut self, rows: Range<usize>, out: &mut [Plane<'_>]) -> Result<(), JpegError> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2") {
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
            Kind::AcFirst(band) => self.each_block(rows, out, |bits, part, _, empty_blocks, plane, at| {
                let block = Partial { block: &mut plane.blocks[at], nonzero: &mut plane.nonzero[at] };
                blocks::ac_first(bits, &part.ac, band, empty_blocks, block);
            }),
            Kind::AcRefined(band) => self.each_block(rows, out, |bits, part, _, empty_blocks, plane, at| {
                let block = Partial { block: &mut plane.blocks[at], nonzero: &mut plane.nonzero[at] };
                blocks::ac_refined(bits, &part.ac, band, empty_blocks, block);
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
                    decode(&mut bits, part, &mut state.last_dc[place.part], &mut state.empty_blocks, plane, at);
                }
                state.is_exhausted = bits.is_overrun();
            }
        }
        self.position = bits.position();
        Ok(())
    }

    /// Goes back to the markers, behind the data of the scan. Returns the marker that ended it.
    pub(super) fn finish(&self, markers: &mut Markers<'_>) -> Option<u8> {
        markers.at = self.segments.at;
        self.segments.marker
    }
}

impl State {
    fn restart(&mut self, segments: &mut Segments<'_>, interval: usize) -> Result<(), JpegError> {
        let is_there = segments.restart(0xd0 + self.next_restart)?;
        *self = Self {
            // In front of another marker the data stays exhausted.
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

/// Shifts by a variable number of bits are the inner loop; BMI2 has cheaper ones. Unsafe is the call of a function that
/// needs it.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod bmi {
    use super::*;

    /// [`ScanReader::read_rows_plain`], compiled with BMI.
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
        // SAFETY: the machine has both, asserted on the line above.
        unsafe { compiled(scan, rows, out) }
    }
}
