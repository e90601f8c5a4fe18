//! The TIFF tags that decoding needs.

/// A TIFF tag, given by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag(pub(super) u16);

macro_rules! tags {
    ($($name:ident = $number:literal $text:literal),* $(,)?) => {
        impl Tag {
            $(pub(super) const $name: Self = Self($number);)*

            /// Returns whether decoding needs the tag. Other tags of a directory are not stored.
            pub(super) fn is_known(self) -> bool {
                matches!(self.0, $($number)|*)
            }

            /// Returns the name of the tag in the specification, for messages.
            pub(super) fn name(self) -> &'static str {
                match self.0 {
                    $($number => $text,)*
                    _ => "unknown",
                }
            }
        }
    };
}

tags! {
    IMAGE_WIDTH = 256 "ImageWidth",
    IMAGE_LENGTH = 257 "ImageLength",
    BITS_PER_SAMPLE = 258 "BitsPerSample",
    COMPRESSION = 259 "Compression",
    PHOTOMETRIC_INTERPRETATION = 262 "PhotometricInterpretation",
    FILL_ORDER = 266 "FillOrder",
    STRIP_OFFSETS = 273 "StripOffsets",
    ORIENTATION = 274 "Orientation",
    SAMPLES_PER_PIXEL = 277 "SamplesPerPixel",
    ROWS_PER_STRIP = 278 "RowsPerStrip",
    STRIP_BYTE_COUNTS = 279 "StripByteCounts",
    PLANAR_CONFIGURATION = 284 "PlanarConfiguration",
    T4_OPTIONS = 292 "T4Options",
    PREDICTOR = 317 "Predictor",
    COLOR_MAP = 320 "ColorMap",
    TILE_WIDTH = 322 "TileWidth",
    TILE_LENGTH = 323 "TileLength",
    TILE_OFFSETS = 324 "TileOffsets",
    TILE_BYTE_COUNTS = 325 "TileByteCounts",
    EXTRA_SAMPLES = 338 "ExtraSamples",
    SAMPLE_FORMAT = 339 "SampleFormat",
    JPEG_TABLES = 347 "JPEGTables",
    JPEG_INTERCHANGE_FORMAT = 513 "JPEGInterchangeFormat",
    JPEG_INTERCHANGE_FORMAT_LENGTH = 514 "JPEGInterchangeFormatLength",
    JPEG_Q_TABLES = 519 "JPEGQTables",
    JPEG_DC_TABLES = 520 "JPEGDCTables",
    JPEG_AC_TABLES = 521 "JPEGACTables",
    Y_CB_CR_COEFFICIENTS = 529 "YCbCrCoefficients",
    Y_CB_CR_SUB_SAMPLING = 530 "YCbCrSubSampling",
    REFERENCE_BLACK_WHITE = 532 "ReferenceBlackWhite",
    XMP = 700 "XMP",
}
