//! Parses marker segments: tables, headers, application data.

use super::JpegError;
use super::bits::next_marker;
use super::frame::{Frame, Process, Scan};
use super::huffman::Codes;

/// Zigzag order: the row-major index of each zigzag position. Damaged data can reach positions beyond 63. These
/// positions map to the last index.
pub(super) const ZIGZAG: [u8; 80] = {
    let mut order = [63; 80];
    let (mut at, mut x, mut y) = (0, 0_usize, 0_usize);
    while at < 64 {
        order[at] = (8 * y + x) as u8;
        at += 1;
        // Even diagonals go up, odd diagonals go down.
        if (x + y) % 2 == 0 {
            match (x, y) {
                (7, _) => y += 1,
                (_, 0) => x += 1,
                _ => (x, y) = (x + 1, y - 1),
            }
        } else {
            match (x, y) {
                (_, 7) => x += 1,
                (0, _) => y += 1,
                _ => (x, y) = (x - 1, y + 1),
            }
        }
    }
    order
};

const START_OF_IMAGE: u8 = 0xd8;
const END_OF_IMAGE: u8 = 0xd9;

/// Why reading segments stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// A scan starts.
    Scan(Scan),
    /// The image ends.
    End,
}

/// A reader of segments that stores everything they have declared so far.
#[derive(Debug, Default)]
pub(super) struct Markers<'a> {
    file: &'a [u8],
    /// Position in the file from which the next marker is searched.
    pub(super) at: usize,
    pub(super) frame: Option<Frame>,
    /// Quantisation tables, in row-major order.
    pub(super) quantization: [Option<[u16; 64]>; 4],
    pub(super) dc_tables: [Option<Codes>; 4],
    pub(super) ac_tables: [Option<Codes>; 4],
    /// Number of units between restart markers; 0 means no restarts.
    pub(super) restart_interval: usize,
    pub(super) has_jfif: bool,
    /// The colour transform declared by an Adobe segment.
    pub(super) adobe: Option<u8>,
    /// The EXIF segments read so far, without their identifiers, joined.
    pub(super) exif: Option<Vec<u8>>,
    /// The last XMP packet read so far.
    pub(super) xmp: Option<&'a [u8]>,
}

impl<'a> Markers<'a> {
    pub(super) fn new(file: &'a [u8]) -> Result<Self, JpegError> {
        if !file.starts_with(&[0xff, START_OF_IMAGE]) {
            return Err(JpegError::damaged("it does not begin with a start-of-image marker"));
        }
        Ok(Self { file, at: 2, ..Self::default() })
    }

    /// Reads segments up to the data of the next scan, or to the end of the image.
    pub(super) fn read(&mut self) -> Result<Stop, JpegError> {
        loop {
            let (marker, at) = next_marker(self.file, self.at)?;
            self.at = at;
            if let Some(stop) = self.read_segment(marker)? {
                return Ok(stop);
            }
        }
    }

    /// Reads the segment of a marker that has already been consumed. Returns `None` if reading continues.
    pub(super) fn read_segment(&mut self, marker: u8) -> Result<Option<Stop>, JpegError> {
        match marker {
            END_OF_IMAGE => return Ok(Some(Stop::End)),
            // Markers without parameters: unexpected restarts, and the marker TEM of arithmetic coding.
            0xd0..=0xd7 | 0x01 => return Ok(None),
            START_OF_IMAGE => return Err(JpegError::damaged("a second image begins inside the first")),
            0xc0..=0xcf | 0xda..=0xdd | 0xe0..=0xef | 0xfe => {}
            _ => return Err(JpegError::damaged(format!("the marker {marker:02x} is unknown"))),
        }
        let data = self.parameters()?;
        match marker {
            0xc0 | 0xc1 => self.start_frame(Process::Sequential, data)?,
            0xc2 => self.start_frame(Process::Progressive, data)?,
            0xc4 => self.read_huffman(data)?,
            0xcc => {} // conditioning of arithmetic coding
            0xc3 | 0xc5..=0xcf => return Err(JpegError::Coding(process_name(marker).into())),
            0xda => {
                let frame = self.frame.as_ref().ok_or_else(|| JpegError::damaged("a scan comes before the frame"))?;
                return Scan::parse(frame, data).map(|scan| Some(Stop::Scan(scan)));
            }
            0xdb => self.read_quantization(data)?,
            0xdd => {
                let &[high, low] = data else {
                    return Err(JpegError::damaged("the restart interval has the wrong length"));
                };
                self.restart_interval = usize::from(u16::from_be_bytes([high, low]));
            }
            0xe0 => self.has_jfif |= data.len() >= 14 && data.starts_with(b"JFIF\0"),
            0xe1 => {
                if let Some(block) = data.strip_prefix(b"Exif\0\0") {
                    self.exif.get_or_insert_default().extend_from_slice(block);
                } else if let Some(packet) = data.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                    self.xmp = Some(packet);
                }
            }
            0xee if data.len() >= 12 && data.starts_with(b"Adobe") => self.adobe = Some(data[11]),
            _ => {} // other application data, comments
        }
        Ok(None)
    }

    /// Consumes and returns the parameters of a marker, without the length field.
    fn parameters(&mut self) -> Result<&'a [u8], JpegError> {
        let rest = self.file.get(self.at..).ok_or(JpegError::ENDS_EARLY)?;
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk().ok_or(JpegError::ENDS_EARLY)?)).max(2);
        self.at += length;
        rest.get(2..length).ok_or(JpegError::ENDS_EARLY)
    }

    fn start_frame(&mut self, process: Process, data: &[u8]) -> Result<(), JpegError> {
        if self.frame.is_some() {
            return Err(JpegError::damaged("there are two frames"));
        }
        self.frame = Some(Frame::parse(process, data)?);
        Ok(())
    }

    fn read_huffman(&mut self, mut data: &[u8]) -> Result<(), JpegError> {
        let bad = || JpegError::damaged("a Huffman table is incomplete");
        while !data.is_empty() {
            let (&[head], rest) = data.split_first_chunk().ok_or_else(bad)?;
            let (&counts, rest) = rest.split_first_chunk::<16>().ok_or_else(bad)?;
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let (values, rest) = rest.split_at_checked(total).filter(|_| total <= 256).ok_or_else(bad)?;
            let tables = if head & 0x10 == 0 { &mut self.dc_tables } else { &mut self.ac_tables };
            let slot = tables.get_mut(usize::from(head & 0xef)).ok_or_else(bad)?;
            let mut symbols = [0; 256];
            symbols[..total].copy_from_slice(values);
            *slot = Some(Codes { counts, symbols });
            data = rest;
        }
        Ok(())
    }

    fn read_quantization(&mut self, mut data: &[u8]) -> Result<(), JpegError> {
        let bad = || JpegError::damaged("a quantisation table is incomplete");
        while let Some((&head, rest)) = data.split_first() {
            let is_wide = head >> 4 != 0;
            let slot = self.quantization.get_mut(usize::from(head & 15)).ok_or_else(bad)?;
            let (values, rest) = rest.split_at_checked(if is_wide { 128 } else { 64 }).ok_or_else(bad)?;
            let mut table = [0; 64];
            for (at, &place) in ZIGZAG[..64].iter().enumerate() {
                table[usize::from(place)] = if is_wide {
                    u16::from_be_bytes([values[2 * at], values[2 * at + 1]])
                } else {
                    u16::from(values[at])
                };
            }
            *slot = Some(table);
            data = rest;
        }
        Ok(())
    }
}

/// Returns the name of an unsupported coding process.
fn process_name(marker: u8) -> &'static str {
    match marker {
        0xc3 => "lossless coding",
        0xc5..=0xc7 => "hierarchical coding",
        0xc9 | 0xca => "arithmetic coding",
        0xcb => "lossless arithmetic coding",
        0xcd..=0xcf => "hierarchical arithmetic coding",
        _ => "a reserved coding process",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zigzag_visits_every_index_once() {
        assert_eq!(ZIGZAG[..10], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]);
        assert_eq!(ZIGZAG[58..66], [61, 54, 47, 55, 62, 63, 63, 63]);
        let mut places = ZIGZAG[..64].to_vec();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..64));
    }
}
