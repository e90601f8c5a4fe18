//! Tables that several JPEG streams share, as in TIFF files.

use super::JpegError;
use super::huffman::Codes;
use super::markers::{Markers, Stop};

/// Quantisation and Huffman tables, indexed by slot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    quantization: [Option<[u16; 64]>; 4],
    dc: [Option<Codes>; 4],
    ac: [Option<Codes>; 4],
}

impl Tables {
    /// Reads a JPEG stream that contains only tables.
    pub(crate) fn read(file: &[u8]) -> Result<Self, JpegError> {
        let mut markers = Markers::new(file)?;
        match markers.read()? {
            Stop::End => Ok(Self::from_markers(&markers)),
            Stop::Scan(_) => Err(JpegError::damaged("a scan begins where only tables are expected")),
        }
    }

    pub(super) fn from_markers(markers: &Markers<'_>) -> Self {
        Self { quantization: markers.quantization, dc: markers.dc_tables.clone(), ac: markers.ac_tables.clone() }
    }

    pub(super) fn put(&self, markers: &mut Markers<'_>) {
        markers.quantization = self.quantization;
        markers.dc_tables = self.dc.clone();
        markers.ac_tables = self.ac.clone();
    }
}
