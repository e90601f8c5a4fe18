//! Interprets and validates the tags of a page before pixels are decoded.
//!
//! Source: `TiffImageFile._setup` of Pillow's `TiffImagePlugin.py`, `TIFFReadDirectory` of libtiff 4.7.

use super::TiffError;
use super::directory::{ByteOrder, Directory, bad_value, missing};
use super::mode::{Key, Mode, Samples};
use super::tag::Tag;

/// Maximum number of samples per pixel, as in Pillow.
const MAX_SAMPLES: u64 = 6;
/// Maximum number of values that are read from a tag with one value per sample. It is twice [`MAX_SAMPLES`], because
/// extra samples that are ignored have values too.
const MAX_VALUES: usize = 12;

/// How strips and tiles are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    /// CCITT modified Huffman coding. Rows start at byte boundaries, or at 16-bit boundaries.
    HuffmanRows {
        is_word_aligned: bool,
    },
    Group3,
    Group4,
    Lzw,
    OldJpeg,
    Jpeg,
    Deflate,
    PackBits,
    ThunderScan,
}

impl Compression {
    fn from_number(number: u64) -> Result<Self, TiffError> {
        let other = match number {
            1 => return Ok(Self::None),
            2 => return Ok(Self::HuffmanRows { is_word_aligned: false }),
            3 => return Ok(Self::Group3),
            4 => return Ok(Self::Group4),
            5 => return Ok(Self::Lzw),
            6 => return Ok(Self::OldJpeg),
            7 => return Ok(Self::Jpeg),
            8 | 32946 => return Ok(Self::Deflate),
            32771 => return Ok(Self::HuffmanRows { is_word_aligned: true }),
            32773 => return Ok(Self::PackBits),
            32809 => return Ok(Self::ThunderScan),
            32766 => "NeXT",
            34661 => "JBIG",
            34676 | 34677 => "SGI LogLuv",
            34712 | 33003 | 33005 => "JPEG 2000",
            34887 => "LERC",
            34925 => "LZMA",
            50000 => "Zstandard",
            50001 | 34927 => "WebP",
            50002 | 52546 => "JPEG XL",
            _ => "unknown",
        };
        Err(TiffError::coding(format!("the compression {number} ({other}, tag Compression)")))
    }

    fn is_fax(self) -> bool {
        matches!(self, Self::HuffmanRows { .. } | Self::Group3 | Self::Group4)
    }
}

/// The grid of rectangles (strips or tiles) into which the image is divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) is_tiled: bool,
    /// Width and height of a rectangle, in pixels.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Number of rectangles horizontally and vertically.
    pub(super) across: usize,
    pub(super) down: usize,
}

/// The properties of one page.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) tags: Directory<'a>,
    /// Size of the stored image, in pixels.
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) compression: Compression,
    pub(super) photometric: u64,
    pub(super) mode: Mode,
    pub(super) samples: Samples,
    /// Whether the lowest bit of a byte is first (FillOrder 2).
    pub(super) is_reversed: bool,
    /// Whether each sample of a pixel is stored in a separate plane (PlanarConfiguration 2).
    pub(super) is_planar: bool,
    /// The value of SamplesPerPixel, which includes unused samples.
    pub(super) stored_samples: usize,
    /// The value of BitsPerSample for the first sample.
    pub(super) bits: u16,
    pub(super) sample_format: u16,
    /// The values of ExtraSamples: the kinds of the samples after the colours.
    pub(super) extra: Vec<u16>,
    /// Number of luma samples per chroma sample of YCbCr, horizontally and vertically.
    pub(super) chroma: [usize; 2],
    pub(super) cut: Cut,
}

impl<'a> Page<'a> {
    pub(super) fn new(tags: Directory<'a>) -> Result<Self, TiffError> {
        let compression = Compression::from_number(tags.value(Tag::COMPRESSION)?.unwrap_or(1))?;
        let is_old_jpeg = compression == Compression::OldJpeg;
        let photometric = match tags.value(Tag::PHOTOMETRIC_INTERPRETATION)? {
            _ if is_old_jpeg => 6,
            photometric => photometric.unwrap_or(0),
        };
        let is_planar = tags.value(Tag::PLANAR_CONFIGURATION)?.unwrap_or(1) == 2;
        let is_reversed = match tags.value(Tag::FILL_ORDER)?.unwrap_or(1) {
            1 => false,
            2 => true,
            other => return Err(bad_value(Tag::FILL_ORDER, other)),
        };
        let side = |tag| -> Result<u32, TiffError> {
            let value = tags.value(tag)?.ok_or_else(|| missing(tag))?;
            u32::try_from(value).map_err(|_| bad_value(tag, value))
        };
        let (width, height) = (side(Tag::IMAGE_WIDTH)?, side(Tag::IMAGE_LENGTH)?);

        let default_samples = if is_old_jpeg { 3 } else { 1 };
        let stored_samples = tags.value(Tag::SAMPLES_PER_PIXEL)?.unwrap_or(default_samples);
        if stored_samples == 0 || stored_samples > MAX_SAMPLES {
            return Err(TiffError::coding(format!("{stored_samples} samples per pixel (tag SamplesPerPixel)")));
        }
        let stored_samples = stored_samples as usize;
        let mut formats = tags.shorts(Tag::SAMPLE_FORMAT, MAX_VALUES)?.unwrap_or_else(|| vec![1]);
        formats.dedup();
        let (mut bits, all_extra) = (
            tags.shorts(Tag::BITS_PER_SAMPLE, MAX_VALUES)?.unwrap_or_else(|| vec![if is_old_jpeg { 8 } else { 1 }]),
            tags.shorts(Tag::EXTRA_SAMPLES, MAX_VALUES)?.unwrap_or_default(),
        );
        let first_bits = bits[0];
        let (mut extra, mut samples) = (all_extra.clone(), stored_samples);
        if is_planar && !extra.is_empty() && extra.iter().all(|&kind| kind == 0) {
            // Planes of unspecified kind are ignored.
            bits.truncate(bits.len().saturating_sub(extra.len()));
            samples = samples.saturating_sub(extra.len());
            extra.clear();
        }
        if bits.len() == 1 {
            bits.resize(samples, bits[0]);
        }
        bits.truncate(samples);
        let organization = || {
            TiffError::coding(format!(
                "samples of {bits:?} bits, {samples} per pixel, format {formats:?}, extra samples {extra:?}, colour \
                 {photometric} (tags BitsPerSample, SamplesPerPixel, SampleFormat, ExtraSamples, \
                 PhotometricInterpretation)"
            ))
        };
        if bits.len() != samples || formats.len() != 1 {
            return Err(organization());
        }
        let key =
            Key { order: tags.order, photometric, sample_format: formats[0], is_reversed, bits: &bits, extra: &extra };
        let (mode, samples) = key.open().ok_or_else(organization)?;
        let (mode, samples) = match compression {
            Compression::None => (mode, samples),
            // The decoders of compressed data return bits in normal order.
            _ => Key { is_reversed: false, ..key }.open().ok_or_else(organization)?,
        };
        if compression.is_fax() && (first_bits != 1 || stored_samples != 1) {
            return Err(TiffError::coding("CCITT compression of samples with more than one bit"));
        }
        // In JPEG, the subsampling is given by the JPEG headers.
        let chroma = chroma(&tags, photometric == 6 && compression != Compression::Jpeg)?;
        let cut = Cut::new(&tags, compression, width, height)?;
        Ok(Self {
            width,
            height,
            compression,
            photometric,
            mode,
            samples,
            is_reversed,
            is_planar,
            stored_samples,
            bits: first_bits,
            sample_format: formats[0],
            extra: all_extra,
            chroma,
            cut,
            tags,
        })
    }

    pub(super) fn order(&self) -> ByteOrder {
        self.tags.order
    }

    /// Returns whether libtiff converts YCbCr to RGB. For interleaved JPEG, libjpeg converts it instead.
    pub(super) fn is_ycbcr(&self) -> bool {
        self.photometric == 6 && self.mode == Mode::Rgb && (self.compression != Compression::Jpeg || self.is_planar)
    }

    /// Returns the number of interleaved samples per pixel in a strip or tile.
    pub(super) fn interleaved_samples(&self) -> usize {
        if self.is_planar { 1 } else { self.stored_samples }
    }

    /// Returns the number of bits per pixel in the file, summed over all planes that are used.
    pub(super) fn bits_per_pixel(&self) -> usize {
        match self.samples {
            _ if self.is_planar => usize::from(self.bits) * self.mode.bands(),
            samples => samples.bits(),
        }
    }

    /// Returns the number of planes that are used.
    pub(super) fn planes(&self) -> usize {
        if self.is_planar { self.mode.bands() } else { 1 }
    }

    /// Returns the number of bytes per decoded strip or tile.
    pub(super) fn decoded_bytes(&self) -> usize {
        self.stored_row().saturating_mul(self.cut.height)
    }

    /// Returns the number of bytes per stored row of a strip or tile.
    pub(super) fn stored_row(&self) -> usize {
        self.cut.width.saturating_mul(self.interleaved_samples()).saturating_mul(usize::from(self.bits)).div_ceil(8)
    }
}

/// Reads the tag YCbCrSubSampling. If `counts` is false, the tag has no effect and invalid values are ignored.
fn chroma(tags: &Directory<'_>, counts: bool) -> Result<[usize; 2], TiffError> {
    let factors = match tags.shorts(Tag::Y_CB_CR_SUB_SAMPLING, 2) {
        Ok(factors) => factors.unwrap_or_else(|| vec![2, 2]),
        Err(error) if counts => return Err(error),
        Err(_) => vec![2, 2],
    };
    match factors[..] {
        [across @ (1 | 2 | 4), down @ (1 | 2 | 4)] if down <= across || across == 1 && down == 2 => {
            Ok([usize::from(across), usize::from(down)])
        }
        _ if counts => Err(TiffError::coding(format!("chroma subsampling {factors:?} (tag YCbCrSubSampling)"))),
        _ => Ok([2, 2]),
    }
}

impl Cut {
    fn new(tags: &Directory<'_>, compression: Compression, width: u32, height: u32) -> Result<Self, TiffError> {
        let side = |tag, most: u64| -> Result<Option<usize>, TiffError> {
            match tags.value(tag)? {
                Some(0) => Err(bad_value(tag, 0)),
                Some(value) => Ok(Some(value.min(most) as usize)),
                None => Ok(None),
            }
        };
        let (width, height) = (width as usize, height as usize);
        // For uncompressed data, Pillow looks for the tags of offsets. For compressed data, libtiff looks for the size
        // of tiles.
        let is_tiled = match compression {
            Compression::None => !tags.contains(Tag::STRIP_OFFSETS) && tags.contains(Tag::TILE_OFFSETS),
            _ => tags.contains(Tag::TILE_WIDTH) && tags.contains(Tag::TILE_LENGTH),
        };
        let is_raw = compression == Compression::None;
        // Pillow passes sides to libtiff as 32-bit signed integers.
        let is_too_large = |side: usize| i32::try_from(side).is_err();
        let too_large = |tag: Tag, side| {
            let (name, number, most) = (tag.name(), tag.0, i32::MAX);
            TiffError::damaged(format!("the tag {name} ({number}) has the value {side}; expected at most {most}"))
        };
        // Tiles may reach beyond the edges. Strips end at the bottom edge, so their height is clipped. Uncompressed
        // strips are not clipped, because the offsets that Pillow uses depend on whether they are exactly as high as
        // the image.
        let (is_tiled, cut_width, cut_height) = if !is_tiled {
            let rows = match side(Tag::ROWS_PER_STRIP, u64::from(u32::MAX))? {
                None => height,
                Some(rows) if is_raw => rows,
                // The largest 32-bit number means all rows.
                Some(rows) if is_too_large(rows) && rows as u64 != u64::from(u32::MAX) => {
                    return Err(too_large(Tag::ROWS_PER_STRIP, rows));
                }
                Some(rows) => rows.min(height.max(1)),
            };
            (false, width, rows)
        } else {
            let side = |tag| match side(tag, u64::from(u32::MAX))?.ok_or_else(|| missing(tag))? {
                side if !is_raw && is_too_large(side) => Err(too_large(tag, side)),
                side => Ok(side),
            };
            (true, side(Tag::TILE_WIDTH)?, side(Tag::TILE_LENGTH)?)
        };
        Ok(Self {
            is_tiled,
            width: cut_width,
            height: cut_height,
            across: width.div_ceil(cut_width.max(1)),
            down: height.div_ceil(cut_height.max(1)),
        })
    }

    /// Returns the number of rectangles per plane.
    pub(super) fn count(&self) -> usize {
        self.across * self.down
    }
}
