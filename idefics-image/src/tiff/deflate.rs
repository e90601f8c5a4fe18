//! Decompresses deflate data in a zlib wrapper.

use flate2::{Decompress, FlushDecompress, Status};

use super::TiffError;

/// Decompresses `data` until `out` is full, like libtiff with libdeflate. The data must be complete, including a
/// correct checksum, unless it decompresses to more than `out` holds.
pub(super) fn decode(data: &[u8], out: &mut [u8]) -> Result<(), TiffError> {
    let damaged = || TiffError::damaged("deflate data is damaged or ends early");
    let mut inflate = Decompress::new(true);
    let mut behind = [0];
    loop {
        let (taken, written) = (inflate.total_in() as usize, inflate.total_out() as usize);
        // Try to decompress one byte more than fits, to find out whether there is more data.
        let target = if written < out.len() { &mut out[written..] } else { &mut behind };
        let status = inflate.decompress(&data[taken..], target, FlushDecompress::None).map_err(|_| damaged())?;
        let total = inflate.total_out() as usize;
        match status {
            _ if total > out.len() => return Ok(()),
            Status::StreamEnd if total == out.len() => return Ok(()),
            Status::StreamEnd => return Err(damaged()),
            _ if total == written && inflate.total_in() as usize == taken => return Err(damaged()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn rejects_incomplete_data_and_ignores_excess() {
        let plain: Vec<u8> = (0..1000_u32).map(|value| ((value * value) >> 5) as u8).collect();
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&plain).unwrap();
        let data = encoder.finish().unwrap();
        let mut out = vec![0; 1000];
        decode(&data, &mut out).unwrap();
        assert_eq!(out, plain);
        decode(&data, &mut out[..700]).unwrap();
        assert!(decode(&data, &mut [0; 1001]).is_err());
        assert!(decode(&data[..data.len() - 5], &mut out).is_err());
        let mut wrong_sum = data.clone();
        *wrong_sum.last_mut().unwrap() ^= 1;
        assert!(decode(&wrong_sum, &mut out).is_err());
    }
}
