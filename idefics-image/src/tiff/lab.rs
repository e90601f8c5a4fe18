//! Converts CIELAB to sRGB, bit for bit like Pillow's colour management (`ImageCms`, Little CMS 2).
//!
//! Little CMS computes the conversion at 33 × 33 × 33 grid points in 16 bits and interpolates between them (tetrahedral
//! interpolation). Near the edge of the sRGB gamut, the results differ from the exact conversion by up to 50 levels.
//!
//! Source: `cmsopt.c` (sampling), `cmsintrp.c` (`TetrahedralInterp16`), `cmsvirt.c` (the sRGB profile) of Little CMS 2.

/// Number of grid points along each axis.
const POINTS: usize = 33;

/// The white point of the profile connection space (D50), in XYZ.
const WHITE: [f64; 3] = [0.9642, 1.0, 0.8249];
/// The matrix from XYZ (D50) to linear sRGB, with the white point of sRGB (D65) adapted to D50.
const TO_LINEAR: [[f64; 3]; 3] = [
    [3.13418636423682, -1.6172089589982757, -0.49069406400638427],
    [-0.9787485041906939, 1.9161300967735868, 0.03343339915999556],
    [0.07196392780224675, -0.22899387345320327, 1.4057537328964445],
];

/// The RGB colours at the grid points, indexed by lightness, `a` and `b`.
pub(super) struct Converter {
    table: Vec<[u16; 3]>,
}

impl Converter {
    pub(super) fn new() -> Self {
        // Returns the 16-bit value of a grid point. For `a` and `b`, one level is 257, and the offset is 128 levels.
        let value = |point: usize| (point as f64 * 65535.0 / (POINTS - 1) as f64 + 0.5).floor();
        let mut table = Vec::with_capacity(POINTS * POINTS * POINTS);
        for lightness in (0..POINTS).map(|point| value(point) * 100.0 / 65535.0) {
            for a in (0..POINTS).map(|point| value(point) / 257.0 - 128.0) {
                for b in (0..POINTS).map(|point| value(point) / 257.0 - 128.0) {
                    table.push(exact(lightness, a, b).map(|value| (value * 65535.0 + 0.5).floor() as u16));
                }
            }
        }
        Self { table }
    }

    /// Converts a pixel to RGB. `a` and `b` have an offset of 128.
    pub(super) fn rgb(&self, lab: [u8; 3]) -> [u8; 3] {
        const STEPS: [usize; 3] = [POINTS * POINTS, POINTS, 1];
        // Positions in the grid, in units of 1/65536 of the distance between points.
        let places = lab.map(|value| {
            let scaled = u32::from(value) * 257 * (POINTS as u32 - 1);
            scaled + (scaled + 0x7fff) / 0xffff
        });
        let mut axes = [0, 1, 2].map(|axis| (places[axis] & 0xffff, axis));
        axes.sort_by_key(|&(rest, axis)| (std::cmp::Reverse(rest), axis));
        let mut at: usize = (0..3).map(|axis| (places[axis] >> 16) as usize * STEPS[axis]).sum();
        let first = self.table[at];
        let (mut last, mut sums) = (first, [0x8001_i64; 3]);
        for (rest, axis) in axes {
            if rest > 0 {
                at += STEPS[axis];
                let next = self.table[at];
                for ((sum, next), last) in sums.iter_mut().zip(next).zip(last) {
                    *sum += (i64::from(next) - i64::from(last)) * i64::from(rest);
                }
                last = next;
            }
        }
        let mut rgb = [0; 3];
        for ((out, sum), first) in rgb.iter_mut().zip(sums).zip(first) {
            let wide = i64::from(first) + ((sum + (sum >> 16)) >> 16);
            *out = ((wide * 65281 + 8_388_608) >> 24) as u8;
        }
        rgb
    }
}

/// Converts a colour to RGB without interpolation. `lightness` is in the range 0 to 100, and the results are in 0 to 1.
fn exact(lightness: f64, a: f64, b: f64) -> [f64; 3] {
    let y = (lightness + 16.0) / 116.0;
    let linear = |t: f64| if t > 24.0 / 116.0 { t * t * t } else { (108.0 / 841.0) * (t - 16.0 / 116.0) };
    let xyz = [linear(y + a / 500.0) * WHITE[0], linear(y) * WHITE[1], linear(y - b / 200.0) * WHITE[2]];
    TO_LINEAR.map(|row| {
        let value: f64 = row.iter().zip(xyz).map(|(factor, part)| factor * part).sum();
        let encoded = if value >= 0.04045 / 12.92 { 1.055 * value.powf(1.0 / 2.4) - 0.055 } else { 12.92 * value };
        encoded.clamp(0.0, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_colors_like_pillow() {
        let converter = Converter::new();
        assert_eq!(converter.rgb([95, 120, 134]), [77, 91, 78]);
        assert_eq!(converter.rgb([217, 127, 117]), [202, 214, 233]);
        assert_eq!(converter.rgb([131, 133, 180]), [147, 118, 20]);
        assert_eq!(converter.rgb([212, 0, 13]), [0, 255, 255]);
        assert_eq!(converter.rgb([48, 31, 10]), [0, 77, 233]);
        assert_eq!(converter.rgb([44, 63, 104]), [0, 60, 76]);
        assert_eq!(converter.rgb([47, 114, 102]), [0, 52, 83]);
        assert_eq!(converter.rgb([18, 216, 205]), [112, 0, 0]);
    }
}
