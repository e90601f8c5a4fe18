//! JPEG decoder that produces exactly the pixels of Pillow with libjpeg-turbo.
//!
//! It supports baseline, extended sequential and progressive files with Huffman coding and 8 bits per sample; grey,
//! RGB, YCbCr, CMYK and YCCK; and all integral sampling ratios. Other codings of the standard (arithmetic, lossless,
//! hierarchical, 12 bits) are rejected with an error that names them.
//!
//! Damaged files are rejected if Pillow rejects them, or if they have no end marker. Damaged files that Pillow
//! tolerates give the same pixels: if the data of a scan ends early, the rest is grey. There is one exception: a
//! progressive file with missing scans is not smoothed.
//!
//! Data flow: [`markers`] parses the headers. [`scan`] and [`blocks`] decode the coefficients, with [`bits`] and
//! [`huffman`]. [`render`] converts bands of coefficients to rows of pixels, with [`idct`], [`upsample`] and [`color`].
//! If a single scan has all components, some bands are rendered while the next ones are decoded, and only these bands
//! are held in memory. The scans of a progressive file are decoded in parallel, each one band behind the scan before
//! it, and rendered afterwards.
//!
//! Source: ITU-T T.81, and libjpeg-turbo 3.1 where the standard leaves a choice.

mod bits;
mod blocks;
mod color;
mod error;
mod frame;
mod huffman;
mod idct;
mod markers;
mod render;
mod scan;
mod tables;
mod upsample;

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use self::blocks::{Block, Plane};
pub(crate) use self::color::Color;
pub(crate) use self::error::JpegError;
use self::frame::{Frame, Process, Scan};
use self::huffman::standard;
use self::markers::{Markers, Stop};
use self::render::Renderer;
use self::scan::ScanReader;
pub(crate) use self::tables::Tables;
use crate::output::{RowSpace, read_ahead};

/// Maximum number of scans. Encoders write about ten; a file with thousands of empty scans is an attack.
const MAX_SCANS: usize = 500;

/// Maximum number of times that scans may visit each block, on average. Encoders need ten. Sending every bit of every
/// coefficient in its own scan would need 900, but no encoder does that.
const MAX_VISITS: usize = 30;

/// A file whose headers have been read, up to the first scan.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    file: &'a [u8],
    markers: Markers<'a>,
    frame: Frame,
    scan: Scan,
}

impl<'a> Decoder<'a> {
    /// Reads the headers.
    pub(crate) fn new(file: &'a [u8]) -> Result<Self, JpegError> {
        Self::with_tables(file, &Tables::default())
    }

    /// Reads the headers of a file that may rely on `tables` instead of tables of its own.
    pub(crate) fn with_tables(file: &'a [u8], tables: &Tables) -> Result<Self, JpegError> {
        let mut markers = Markers::new(file)?;
        tables.put(&mut markers);
        let Stop::Scan(scan) = markers.read()? else {
            return Err(JpegError::damaged("it ends before any image data"));
        };
        let frame = markers.frame.clone().ok_or_else(|| JpegError::damaged("it has no frame header"))?;
        Ok(Self { file, markers, frame, scan })
    }

    /// Returns the width and height in pixels. Each of them may be 0.
    pub(crate) fn size(&self) -> (u32, u32) {
        (self.frame.width as u32, self.frame.height as u32)
    }

    /// Returns the number of colour components.
    pub(crate) fn components(&self) -> usize {
        self.frame.components.len()
    }

    /// Returns the horizontal and vertical sampling factors of each component. A single component has the factors 1 and
    /// 1.
    pub(crate) fn sampling(&self) -> Vec<(usize, usize)> {
        self.frame.components.iter().map(|component| (component.h, component.v)).collect()
    }

    /// Returns the tables that are in effect at the first scan.
    pub(crate) fn tables(&self) -> Tables {
        Tables::from_markers(&self.markers)
    }

    /// Returns the EXIF block, which starts with its TIFF header.
    pub(crate) fn exif(&self) -> Option<&[u8]> {
        self.markers.exif.as_deref()
    }

    /// Returns the XMP packet.
    pub(crate) fn xmp(&self) -> Option<&'a [u8]> {
        self.markers.xmp
    }

    /// Decodes to RGB and writes the pixels to `out` in bands of whole rows, from the top: `[rows, width, 3]`. Width
    /// and height must be at least 1. A progressive file needs memory for all its coefficients, which may have at most
    /// `max_bytes` bytes.
    pub(crate) fn decode(self, max_bytes: u64, out: &mut (impl RowSpace + Send)) -> Result<(), JpegError> {
        let color = Color::detect(&self.markers, &self.frame.components);
        self.decode_as(color, max_bytes, out)
    }

    /// Like [`Self::decode`], but with the given colour space instead of the one that the file declares. `color` must
    /// have the same number of components as the file.
    pub(crate) fn decode_as(
        mut self,
        color: Color,
        max_bytes: u64,
        out: &mut (impl RowSpace + Send),
    ) -> Result<(), JpegError> {
        let is_sequential = self.frame.process == Process::Sequential;
        if is_sequential {
            for slot in 0..2 {
                self.markers.dc_tables[slot] = self.markers.dc_tables[slot].take().or_else(|| standard(true, slot));
                self.markers.ac_tables[slot] = self.markers.ac_tables[slot].take().or_else(|| standard(false, slot));
            }
        }
        if is_sequential && self.scan.components.len() == self.frame.components.len() {
            self.decode_single_scan(color, out)
        } else {
            self.decode_scans(color, max_bytes, out)
        }
    }

    /// Decodes a file with a single scan. Bands are rendered while the next bands are read.
    fn decode_single_scan(mut self, color: Color, out: &mut (impl RowSpace + Send)) -> Result<(), JpegError> {
        let mut divisors = vec![None; self.frame.components.len()];
        save_quantization(&self.markers, &self.frame, &self.scan, &mut divisors)?;
        let mut reader = ScanReader::new(self.file, &self.markers, &self.frame, &self.scan)?;
        let frame = &self.frame;
        let layout = render::Bands::new(frame);
        let mut renderer = Renderer::new(frame, layout, &divisors, color);
        // Number of bands per group. The thread that reads a group should finish early and help to render the previous
        // group.
        let group = 4 * rayon::current_num_threads();
        let mut groups = (0..layout.count).step_by(group);
        let spare: Mutex<Vec<Coefficients>> = Mutex::new(Vec::new());
        let spare = || spare.lock().unwrap_or_else(PoisonError::into_inner);
        let read_group = || {
            let Some(first) = groups.next() else { return Ok(None) };
            let bands = (first..layout.count.min(first + group)).map(|band| {
                let unused = spare().pop();
                let mut blocks = unused.unwrap_or_else(|| Coefficients::new(&layout.blocks(frame, 0)));
                reader.read_rows(layout.units(frame, band), &mut blocks.planes())?;
                Ok(blocks)
            });
            bands.collect::<Result<Vec<_>, JpegError>>().map(Some)
        };
        read_ahead(read_group, |mut bands| {
            renderer.render(&bands, out);
            bands.iter_mut().for_each(Coefficients::clear);
            spare().append(&mut bands);
        })?;
        match next_stop(&reader, &mut self.markers)? {
            Stop::End => Ok(()),
            Stop::Scan(_) => Err(JpegError::damaged("there is a second scan after the complete image")),
        }
    }

    /// Decodes a file with several scans. First all coefficients are read, then they are rendered.
    fn decode_scans(mut self, color: Color, max_bytes: u64, out: &mut (impl RowSpace + Send)) -> Result<(), JpegError> {
        let needed = (self.frame.stored_blocks() * (size_of::<Block>() + size_of::<u64>())) as u64;
        if needed > max_bytes {
            return Err(JpegError::Memory(needed));
        }
        // The coefficients are allocated band by band with infallible allocations, so check first that there is
        // enough memory for all of them.
        if Vec::<u8>::new().try_reserve_exact(needed as usize).is_err() {
            return Err(JpegError::OutOfMemory(needed));
        }
        let frame = &self.frame;
        let layout = render::Bands::new(frame);
        let mut bands: Vec<Coefficients> =
            (0..layout.count).map(|band| Coefficients::with_nonzero(&layout.blocks(frame, band))).collect();
        let mut divisors = vec![None; frame.components.len()];
        let (mut scans, mut visits) = (0, 0);
        let mut scan = self.scan;
        let mut readers: Vec<ScanReader<'_>> = Vec::new();
        loop {
            let component = |entry: &frame::ScanComponent| &frame.components[entry.index];
            scans += 1;
            visits += scan.components.iter().map(component).map(|c| c.stride * c.v * frame.units_down).sum::<usize>();
            if scans > MAX_SCANS || visits > MAX_VISITS * frame.stored_blocks() + (1 << 20) {
                return Err(JpegError::damaged("it has too many scans"));
            }
            save_quantization(&self.markers, frame, &scan, &mut divisors)?;
            let reader = ScanReader::new(self.file, &self.markers, frame, &scan)?;
            let has_restarts = reader.has_restarts();
            readers.push(reader);
            if has_restarts {
                // With restart markers, the end of the scan is only known after decoding it.
                read_scans(&mut readers, &mut bands, &layout, frame)?;
            }
            let stop = next_stop(&readers[readers.len() - 1], &mut self.markers)?;
            if has_restarts {
                readers.clear();
            }
            scan = match stop {
                Stop::Scan(scan) => scan,
                Stop::End => break,
            };
        }
        read_scans(&mut readers, &mut bands, &layout, frame)?;

        let mut renderer = Renderer::new(frame, layout, &divisors, color);
        let group = 2 * rayon::current_num_threads();
        let mut bands = bands.into_iter();
        loop {
            let bands: Vec<Coefficients> = bands.by_ref().take(group).collect();
            if bands.is_empty() {
                return Ok(());
            }
            renderer.render(&bands, out);
        }
    }
}

/// Reads scans in parallel, each one band behind the scan before it. This is possible because the decoding of a band
/// depends only on what earlier scans wrote to the same band.
fn read_scans(
    readers: &mut [ScanReader<'_>],
    bands: &mut [Coefficients],
    layout: &render::Bands,
    frame: &Frame,
) -> Result<(), JpegError> {
    let (scans, count) = (readers.len(), bands.len());
    let steps = if scans == 0 { 0 } else { scans + count - 1 };
    for step in 0..steps {
        // Scan `s` reads band `step - s`.
        let first = (step + 1).saturating_sub(count);
        let last = step.min(scans - 1);
        let readers = readers[first..=last].par_iter_mut();
        let bands = bands[step - last..=step - first].par_iter_mut().enumerate().rev();
        readers.zip(bands).with_max_len(1).try_for_each(|(reader, (band, coefficients))| {
            let rows = reader.rows_in(layout.units(frame, step - last + band), frame);
            reader.read_rows(rows, &mut coefficients.planes())
        })?;
    }
    Ok(())
}

/// The blocks of each component in a band. For files with several scans, also the masks of [`Plane::nonzero`].
#[derive(Debug)]
struct Coefficients {
    blocks: Vec<Vec<Block>>,
    nonzero: Vec<Vec<u64>>,
}

impl Coefficients {
    fn new(lengths: &[usize]) -> Self {
        let blocks = lengths.iter().map(|&length| vec![[0; 64]; length]).collect();
        Self { blocks, nonzero: vec![Vec::new(); lengths.len()] }
    }

    fn with_nonzero(lengths: &[usize]) -> Self {
        Self { nonzero: lengths.iter().map(|&length| vec![0; length]).collect(), ..Self::new(lengths) }
    }

    fn all(&self) -> Vec<&[Block]> {
        self.blocks.iter().map(Vec::as_slice).collect()
    }

    fn planes(&mut self) -> Vec<Plane<'_>> {
        let nonzero = self.nonzero.iter_mut();
        self.blocks.iter_mut().zip(nonzero).map(|(blocks, nonzero)| Plane { blocks, nonzero }).collect()
    }

    fn clear(&mut self) {
        for blocks in &mut self.blocks {
            blocks.fill([0; 64]);
        }
    }
}

/// Saves the quantisation table of each component at its first scan. Later changes of the table do not affect the
/// component.
fn save_quantization(
    markers: &Markers<'_>,
    frame: &Frame,
    scan: &Scan,
    divisors: &mut [Option<[u16; 64]>],
) -> Result<(), JpegError> {
    for entry in &scan.components {
        if divisors[entry.index].is_none() {
            let slot = usize::from(frame.components[entry.index].quantization);
            let table = markers.quantization.get(slot).copied().flatten();
            divisors[entry.index] = Some(table.ok_or_else(|| JpegError::damaged("a quantisation table is missing"))?);
        }
    }
    Ok(())
}

/// Reads the segments after the data of a scan, up to the next scan or the end of the image.
fn next_stop<'a>(reader: &ScanReader<'a>, markers: &mut Markers<'a>) -> Result<Stop, JpegError> {
    if let Some(marker) = reader.finish(markers)
        && let Some(stop) = markers.read_segment(marker)?
    {
        return Ok(stop);
    }
    markers.read()
}
