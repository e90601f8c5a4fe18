//! Positions of a grid that the table was not trained for: weights of its entries, made on the host.

use burn::tensor::TensorData;

/// The cubic kernel's parameter in `torch.nn.functional.interpolate`.
const CUBIC: f64 = -0.75;

/// Weights that turn `side` trained positions along one axis into `n_places`: `[n_places, side]`.
///
/// Source: `IdeficsVisionEmbeddings.interpolate_pos_encoding`: bicubic, `align_corners=False`, and a scale of
/// `(n_places + 0.1) / side`.
pub(super) fn interpolation(side: usize, n_places: usize) -> TensorData {
    let scale = (n_places as f64 + 0.1) / side as f64;
    let mut weights = vec![0.0_f32; n_places * side];
    for (place, weights) in weights.chunks_mut(side).enumerate() {
        let at = (place as f64 + 0.5) / scale - 0.5;
        let first = at.floor();
        for tap in -1..=2_i64 {
            let index = (first as i64 + tap).clamp(0, side as i64 - 1);
            weights[index as usize] += cubic((at - first - tap as f64).abs()) as f32;
        }
    }
    TensorData::new(weights, [n_places, side])
}

/// The kernel at a distance of at most 2.
fn cubic(distance: f64) -> f64 {
    match distance <= 1.0 {
        true => ((CUBIC + 2.0) * distance - (CUBIC + 3.0)) * distance * distance + 1.0,
        false => ((distance - 5.0) * distance + 8.0) * distance * CUBIC - 4.0 * CUBIC,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_a_place_sum_to_one() {
        for (side, n_places) in [(16, 24), (16, 7), (3, 3), (1, 4)] {
            let weights = interpolation(side, n_places).try_into_vec::<f32>().unwrap();
            for place in weights.chunks(side) {
                assert!((place.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{side} {n_places}");
            }
        }
    }
}
