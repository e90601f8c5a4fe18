//! Whether a JPEG file is all there, and how near its pixels are to the reference's.
//!
//! The decoder is zune-jpeg, through the image crate: pure Rust, and maintained. It fills what is missing of a
//! truncated file with grey; we refuse the file before that, because half a picture would be described as a whole one.
//!
//! Pixels against Pillow 12.3 (libjpeg-turbo) on eight photographs at qualities 75 to 95, sizes even and odd, largest
//! and mean difference in levels of 255: grey 1 and 0.008; CMYK 1 and 0.007; 4:4:4 3 and 0.013; 4:2:2 7 and 0.153;
//! 4:2:0 7 and 0.314, baseline and progressive. The differences come from how chroma is interpolated: libjpeg-turbo
//! rounds once for both directions, the decoder once for each. The jpeg-decoder crate measures 1 and 0.027, (CMYK left
//! to the caller), 3 and 0.062, 5 and 0.190, 3 and 0.117 at 1.3 to 1.6 times the time, and receives fixes only.

/// Whether the stream of markers runs to the end-of-image marker. What follows that marker does not matter.
pub(crate) fn is_complete(bytes: &[u8]) -> bool {
    const START_OF_IMAGE: u8 = 0xd8;
    const END_OF_IMAGE: u8 = 0xd9;

    let mut rest = bytes;
    loop {
        // The next marker: 0xff and a byte that is neither stuffing (0x00) nor fill (0xff).
        let Some(at) = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff)) else {
            return false;
        };
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match marker {
            END_OF_IMAGE => return true,
            // Markers without a length: start of image, restarts, TEM. Scan data is skipped by the search above.
            START_OF_IMAGE | 0xd0..=0xd7 | 0x01 => {}
            _ => {
                let Some(&[high, low]) = rest.first_chunk::<2>() else { return false };
                let length = usize::from(u16::from_be_bytes([high, low]));
                let Some(after) = rest.get(length.max(2)..) else { return false };
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_complete;

    #[test]
    fn the_end_marker_counts_only_outside_segments() {
        // Start of image, a comment holding an end marker, a scan with a stuffed byte, end of image, trailing data.
        let file = [0xff, 0xd8, 0xff, 0xfe, 0, 4, 0xff, 0xd9, 0xff, 0xda, 0, 2, 1, 0xff, 0, 2, 0xff, 0xd9, 7];
        assert!(is_complete(&file));
        assert!(is_complete(&file[..file.len() - 1]));
        for end in 0..file.len() - 1 {
            assert!(!is_complete(&file[..end]), "{end} bytes");
        }
    }
}
