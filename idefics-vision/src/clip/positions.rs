//! Interpolation of position embeddings for grids that differ in size from the trained one. Weights are computed on the
//! host.

use burn::tensor::TensorData;

/// Parameter of the cubic convolution kernel in `torch.nn.functional.interpolate`.
const CUBIC: f64 = -0.75;

/// Computes weights that interpolate `side` trained positions along one axis to `n_positions` positions:
/// `[n_positions, side]`.
///
/// Source: `IdeficsVisionEmbeddings.interpolate_pos_encoding`, which uses bicubic interpolation with
/// `align_corners=False` and a scale of `(n_positions + 0.1) / side`.
pub(super) fn interpolation(side: usize, n_positions: usize) -> TensorData {
    let scale = (n_positions as f64 + 0.1) / side as f64;
    let mut weights = vec![0.0_f32; n_positions * side];
    for (position, weights) in weights.chunks_mut(side).enumerate() {
        let at = (position as f64 + 0.5) / scale - 0.5;
        let first = at.floor();
        for tap in -1..=2_i64 {
            let index = (first as i64 + tap).clamp(0, side as i64 - 1);
            weights[index as usize] += cubic((at - first - tap as f64).abs()) as f32;
        }
    }
    TensorData::new(weights, [n_positions, side])
}

/// Evaluates the cubic convolution kernel at a distance from 0 to 2.
fn cubic(distance: f64) -> f64 {
    match distance <= 1.0 {
        true => ((CUBIC + 2.0) * distance - (CUBIC + 3.0)) * distance * distance + 1.0,
        false => ((distance - 5.0) * distance + 8.0) * distance * CUBIC - 4.0 * CUBIC,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: `torch.nn.functional.interpolate(table, scale_factor=(5.1 / 3, 4.1 / 3), mode="bicubic")`.
    #[test]
    fn interpolation_matches_torch() {
        let table: Vec<f32> = (0..9).map(|index| (index as f32).powf(1.5)).collect();
        let expected = [
            [-0.568_158_45, -0.186_585_58, 0.936_660_6, 2.083_573],
            [1.150_811_9, 1.999_37, 3.746_756_3, 5.221_843],
            [4.673_995, 6.213_921_5, 8.898_848, 10.879_145],
            [10.732_072, 12.736_629, 16.102_57, 18.495_392],
            [15.164_735, 17.387_98, 21.096_28, 23.714_542],
        ];
        let [down, across] = [5, 4].map(|n_positions| interpolation(3, n_positions).try_into_vec::<f32>().unwrap());
        for (row, expected) in expected.iter().enumerate() {
            for (column, expected) in expected.iter().enumerate() {
                let weight = |index: usize| down[3 * row + index / 3] * across[3 * column + index % 3];
                let value: f32 = (0..9).map(|index| weight(index) * table[index]).sum();
                assert!((value - expected).abs() < 1e-4, "{row} {column}: {value}");
            }
        }
    }

    #[test]
    fn weights_of_each_position_sum_to_one() {
        for (side, n_positions) in [(16, 24), (16, 7), (3, 3), (1, 4)] {
            let weights = interpolation(side, n_positions).try_into_vec::<f32>().unwrap();
            for position in weights.chunks(side) {
                assert!((position.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{side} {n_positions}");
            }
        }
    }
}
