//! Decompresses PackBits data, which consists of runs (one byte, repeated) and literals (bytes to copy).
//!
//! Source: TIFF 6.0 section 9. For damaged or excess data, `tif_packbits.c` of libtiff 4.7.

use super::TiffError;

/// Decompresses `data` until `out` is full. Excess data is ignored.
pub(super) fn decode(mut data: &[u8], mut out: &mut [u8]) -> Result<(), TiffError> {
    while !out.is_empty() {
        let Some((&head, rest)) = data.split_first() else { break };
        data = rest;
        match head.cast_signed() {
            -128 => {}
            repeats @ ..0 => {
                let Some((&value, rest)) = data.split_first() else { break };
                data = rest;
                let length = (1 + usize::from(repeats.unsigned_abs())).min(out.len());
                let (run, behind) = out.split_at_mut(length);
                run.fill(value);
                out = behind;
            }
            literals => {
                let length = (1 + usize::from(literals.unsigned_abs())).min(out.len());
                let Some((literal, rest)) = data.split_at_checked(length) else { break };
                data = rest;
                let (target, behind) = out.split_at_mut(length);
                target.copy_from_slice(literal);
                out = behind;
            }
        }
    }
    if out.is_empty() { Ok(()) } else { Err(TiffError::damaged("PackBits data ends early")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_example_of_specification() {
        let data = [0xfe, 0xaa, 0x02, 0x80, 0x00, 0x2a, 0xfd, 0xaa, 0x03, 0x80, 0x00, 0x2a, 0x22, 0xf7, 0xaa];
        let mut out = [0; 24];
        decode(&data, &mut out).unwrap();
        let expected = [&[0xaa; 3][..], &[0x80, 0, 0x2a], &[0xaa; 4], &[0x80, 0, 0x2a, 0x22], &[0xaa; 10]].concat();
        assert_eq!(out[..], expected);
        assert!(decode(&data, &mut [0; 25]).is_err());
        assert!(decode(&data[..14], &mut out).is_err());
        decode(&data, &mut out[..2]).unwrap();
    }
}
