//! Decompresses the pixels of a PNG to packed rows, and decides which damage in the compressed data is tolerated.
//!
//! Source: `ImageFile.load` and `ZipDecode.c` of Pillow.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use super::{File, Frame, GREY, Header, PALETTE, SIGNATURE};
use crate::ImageError;
use crate::decode::Input;
use crate::output::read_ahead;

impl File<'_> {
    /// Returns the number of bytes that the compressed data decompresses to. Counting stops at about `limit` bytes.
    /// Returns `None` if the data is invalid. Data that ends early is valid.
    fn inflated_length(&self, limit: u64) -> Option<u64> {
        let mut counter = Counter::new();
        self.data.iter().try_for_each(|data| counter.read(data, limit))?;
        Some(counter.total)
    }

    /// Returns whether Pillow never reads the Adler-32 checksum, given that the pixels and filter bytes have `length`
    /// bytes in total. Pillow reads the data in pieces and ignores all pieces after the one with the last pixels. The
    /// checksum is not read if it is in an ignored piece.
    ///
    /// Source: `ImageFile.load` of Pillow, which passes at most 64 KiB of a chunk to its decoder at a time and stops
    /// after the last row.
    fn checksum_is_unread(&self, length: u64) -> bool {
        let mut counter = Counter::new();
        for data in self.data.iter().flat_map(|data| data.chunks(64 << 10)) {
            if counter.read(data, length + 1).is_none() {
                return false;
            }
            if counter.total >= length {
                return counter.total > length || !counter.decompressor.is_done();
            }
        }
        false
    }
}

/// A decompressor of the pixels. Each row is packed and padded to whole bytes.
pub(super) struct PackedPixels<'a> {
    reader: png::Reader<Parts<'a>>,
    file: &'a File<'a>,
    input: &'a Input<'a>,
    /// Number of bytes in a packed row, and number of rows.
    row: usize,
    height: usize,
    /// Number of bytes that the whole image needs, for the check of the memory limit.
    whole: u64,
    /// Number of rows of all passes, and number of bytes of these rows, including a filter byte per row.
    n_filtered: u64,
    filtered_bytes: u64,
    /// The start of a minimal PNG file, up to the compressed data. It is passed to the crate `png`.
    head: Vec<u8>,
    /// Whether the Adler-32 checksum is verified.
    checks_sum: bool,
}

/// Approximate number of bytes in a band of packed rows.
const BAND_BYTES: usize = 256 << 10;

/// The seven passes of an interlaced image: first column, first row, column step, row step.
const PASSES: [[u32; 4]; 7] =
    [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

/// Opens a minimal PNG file: `head`, then the compressed data of `file`.
fn open<'a>(
    head: &[u8],
    file: &'a File<'a>,
    input: &Input<'_>,
    checks_sum: bool,
) -> Result<png::Reader<Parts<'a>>, png::DecodingError> {
    let mut options = png::DecodeOptions::default();
    options.set_ignore_crc(true);
    options.set_ignore_adler32(!checks_sum);
    let mut decoder = png::Decoder::new_with_options(Parts::new(head.to_vec(), &file.data), options);
    decoder.set_limits(png::Limits { bytes: input.max_decoded_bytes() });
    decoder.read_info()
}

impl<'a> PackedPixels<'a> {
    pub(super) fn new(header: &Header, file: &'a File<'a>, input: &'a Input<'a>) -> Result<Self, ImageError> {
        let frame = file.frame.unwrap_or(Frame::whole(header));
        let channels = header.channels();
        let row = (u64::from(frame.width) * channels * u64::from(header.depth)).div_ceil(8);
        let needed = row.saturating_mul(frame.height.into());
        let samples = channels * u64::from(header.width) * u64::from(header.height);
        input.check_memory(row)?;
        // Unpacking enlarges samples of less than a byte to bytes, and a frame to the whole image.
        let whole = needed.max(samples);

        // Build a minimal PNG file with the same pixels. Indices are decoded as grey, so that no palette is needed.
        let color_type = if header.color_type == PALETTE { GREY } else { header.color_type };
        let length = file.data.iter().map(|data| data.len()).sum::<usize>();
        let mut head = SIGNATURE.to_vec();
        head.extend_from_slice(b"\0\0\0\x0dIHDR");
        head.extend(frame.width.to_be_bytes());
        head.extend(frame.height.to_be_bytes());
        head.extend([header.depth, color_type, 0, 0, header.is_interlaced.into(), 0, 0, 0, 0]);
        let chunk_length = u32::try_from(length).map_err(|_| input.coding("4 GB of compressed pixels or more"))?;
        head.extend(chunk_length.to_be_bytes());
        head.extend_from_slice(b"IDAT");
        let reader = open(&head, file, input, true).map_err(|error| png_error(error, needed, input))?;
        let info = reader.info();
        let passes = if info.interlaced { &PASSES[..] } else { &[[0, 0, 1, 1]] };
        let (mut n_filtered, mut filtered_bytes) = (0, 0);
        for &[left, top, across, down] in passes {
            let width = u64::from(info.width.saturating_sub(left).div_ceil(across));
            let height = u64::from(info.height.saturating_sub(top).div_ceil(down));
            if width > 0 {
                n_filtered += height;
                filtered_bytes += height * ((width * info.bits_per_pixel() as u64).div_ceil(8) + 1);
            }
        }
        let (row, height) = (row as usize, frame.height as usize);
        Ok(Self { reader, file, input, row, height, whole, n_filtered, filtered_bytes, head, checks_sum: true })
    }

    /// If the decoder's error may be a wrong checksum that Pillow does not read, restarts decompression without
    /// the checksum and returns `true`. A restart is needed because the decoder may report the error before it has
    /// returned the last rows.
    fn restart_without_checksum(&mut self) -> Result<bool, ImageError> {
        if !self.checks_sum || !self.file.checksum_is_unread(self.filtered_bytes) {
            return Ok(false);
        }
        self.checks_sum = false;
        self.reader = open(&self.head, self.file, self.input, false).map_err(|error| self.error(error))?;
        Ok(true)
    }

    /// Decompresses all rows.
    pub(super) fn read_whole(self) -> Result<Vec<u8>, ImageError> {
        self.input.check_memory(self.whole)?;
        let mut packed = self.input.zeroed(self.row * self.height)?;
        self.read_to(&mut packed)?;
        Ok(packed)
    }

    /// Writes all rows to `packed`, which must be zero. Missing rows stay zero.
    pub(super) fn read_to(mut self, packed: &mut [u8]) -> Result<(), ImageError> {
        if self.reader.info().interlaced { self.read_passes(packed) } else { self.read_rows(packed, 0).map(drop) }
    }

    /// Passes the rows to `take` in bands, from the top. While `take` processes a band, the next band is decompressed.
    pub(super) fn read_bands(mut self, take: impl FnMut(Vec<u8>) + Send) -> Result<(), ImageError> {
        let band = (BAND_BYTES / self.row).max(1);
        let (mut top, mut has_ended) = (0, false);
        let read = || {
            if top == self.height {
                return Ok(None);
            }
            let rows = band.min(self.height - top);
            let mut packed = vec![0; self.row * rows];
            if !has_ended {
                has_ended = self.read_rows(&mut packed, top)?;
            }
            top += rows;
            Ok(Some(packed))
        };
        read_ahead(read, take)
    }

    /// Fills `packed` with the rows from `top` on. If the data is valid but ends after a row, the remaining rows are
    /// left unchanged and the result is `true`.
    fn read_rows(&mut self, packed: &mut [u8], top: usize) -> Result<bool, ImageError> {
        for (row, line) in (top..).zip(packed.chunks_exact_mut(self.row)) {
            let Err(error) = self.reader.read_row(line) else { continue };
            let error = self.error(error);
            if self.ends_before(row) {
                return Ok(true);
            }
            if !self.restart_without_checksum()? {
                return Err(error);
            }
            for _ in 0..=row {
                self.reader.read_row(line).map_err(|error| self.error(error))?;
            }
        }
        if top + packed.len() / self.row == self.height {
            // The checksum is verified after the last row.
            if let Err(error) = self.reader.read_row(&mut vec![0; self.row])
                && !self.file.checksum_is_unread(self.filtered_bytes)
            {
                return Err(self.error(error));
            }
        }
        Ok(false)
    }

    /// Fills `packed` with the rows of an interlaced image, one pass after another.
    fn read_passes(&mut self, packed: &mut [u8]) -> Result<(), ImageError> {
        let bits = self.reader.info().bits_per_pixel() as u8;
        let mut n_read = 0;
        loop {
            let error = match self.reader.next_interlaced_row() {
                Ok(Some(row)) => {
                    if let png::InterlaceInfo::Adam7(pass) = row.interlace() {
                        png::expand_interlaced_row(packed, self.row, row.data(), pass, bits);
                    }
                    n_read += 1;
                    continue;
                }
                Ok(None) => return Ok(()),
                Err(error) => self.error(error),
            };
            // The checksum is verified after the last row.
            if n_read == self.n_filtered && self.file.checksum_is_unread(self.filtered_bytes) {
                return Ok(());
            }
            if !self.restart_without_checksum()? {
                return Err(error);
            }
            packed.fill(0);
            n_read = 0;
        }
    }

    /// Returns whether the data is valid and ends exactly before row `row`.
    fn ends_before(&self, row: usize) -> bool {
        let length = row as u64 * (self.row as u64 + 1);
        row > 0 && self.file.inflated_length(length + 1) == Some(length)
    }

    fn error(&self, error: png::DecodingError) -> ImageError {
        png_error(error, self.whole, self.input)
    }
}

fn png_error(error: png::DecodingError, needed: u64, input: &Input<'_>) -> ImageError {
    match error {
        png::DecodingError::LimitsExceeded => input.memory_error(needed),
        error => input.damaged(error.to_string()),
    }
}

/// A counter of decompressed bytes. It keeps only the bytes that back-references need.
struct Counter {
    decompressor: fdeflate::Decompressor,
    window: Vec<u8>,
    at: usize,
    total: u64,
}

impl Counter {
    /// Maximum distance of a back-reference in deflate data, in bytes.
    const MAX_DISTANCE: usize = 32 << 10;

    fn new() -> Self {
        let mut decompressor = fdeflate::Decompressor::new();
        decompressor.ignore_adler32();
        Self { decompressor, window: vec![0; 4 * Self::MAX_DISTANCE], at: 0, total: 0 }
    }

    /// Decompresses more data, until the total reaches `limit` bytes. Returns `None` if the data is invalid.
    fn read(&mut self, mut data: &[u8], limit: u64) -> Option<()> {
        while !data.is_empty() && !self.decompressor.is_done() && self.total < limit {
            if self.at > 3 * Self::MAX_DISTANCE {
                self.window.copy_within(self.at - Self::MAX_DISTANCE..self.at, 0);
                self.at = Self::MAX_DISTANCE;
            }
            let (read, written) = self.decompressor.read(data, &mut self.window, self.at, false).ok()?;
            data = &data[read..];
            (self.at, self.total) = (self.at + written, self.total + written as u64);
        }
        Some(())
    }
}

/// The bytes after the compressed pixels: the CRC of the IDAT chunk, which is all zeros because it is not verified, and
/// the IEND chunk.
const END: &[u8] = b"\0\0\0\0\0\0\0\0IEND\xae\x42\x60\x82";

/// A reader that joins several slices: the head, the compressed data, and [`END`].
struct Parts<'a> {
    head: Vec<u8>,
    data: &'a [&'a [u8]],
    /// Index of the current part, and number of bytes of this part that were read.
    part: usize,
    at: usize,
}

impl<'a> Parts<'a> {
    fn new(head: Vec<u8>, data: &'a [&'a [u8]]) -> Self {
        Self { head, data, part: 0, at: 0 }
    }

    fn part(&self, index: usize) -> Option<&[u8]> {
        match index {
            0 => Some(&self.head),
            _ if index <= self.data.len() => Some(self.data[index - 1]),
            _ if index == self.data.len() + 1 => Some(END),
            _ => None,
        }
    }

    /// Returns the number of bytes in the first `count` parts.
    fn len(&self, count: usize) -> u64 {
        (0..count).filter_map(|index| self.part(index)).map(|part| part.len() as u64).sum()
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut rest = self.fill_buf()?;
        let read = rest.read(out)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Parts<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.part(self.part).is_some_and(|part| part.len() == self.at) {
            (self.part, self.at) = (self.part + 1, 0);
        }
        Ok(self.part(self.part).map_or(&[], |part| &part[self.at..]))
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

/// The decoder requires this trait, but it never seeks.
impl Seek for Parts<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let all = self.len(self.data.len() + 2);
        let here = self.len(self.part) + self.at as u64;
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::Current(offset) => here.checked_add_signed(offset),
            SeekFrom::End(offset) => all.checked_add_signed(offset),
        };
        let place = place.ok_or(io::ErrorKind::InvalidInput)?.min(all);
        let mut rest = place;
        self.part = 0;
        while let Some(length) = self.part(self.part).map(|part| part.len() as u64).filter(|&length| length <= rest) {
            rest -= length;
            self.part += 1;
        }
        self.at = rest as usize;
        Ok(place)
    }
}
