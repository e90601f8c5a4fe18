use burn::tensor::{DType, Device, Tensor};
use idefics_nn::{RopeScaling, RotaryEmbedding};

use crate::EXACT;
use crate::common::{assert_close, assert_values_close, numbers, part, random, values};

const LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
};

/// Rotates the pairs `(j, j + half)` by `position · theta^(-2j / head_dim)`, in f64.
fn rotated(head: &[f32], position: usize, theta: f64) -> Vec<f32> {
    let half = head.len() / 2;
    let mut result = vec![0.0; head.len()];
    for j in 0..half {
        let (sin, cos) = (position as f64 * theta.powf(-(2.0 * j as f64) / head.len() as f64)).sin_cos();
        let (first, second) = (f64::from(head[j]), f64::from(head[j + half]));
        result[j] = (first * cos - second * sin) as f32;
        result[j + half] = (second * cos + first * sin) as f32;
    }
    result
}

#[test]
fn rotates_halves_of_a_head() {
    let device = Device::flex();
    for (head_dim, theta) in [(2, 10_000.0), (8, 700.0), (12, 10_000.0), (128, 1_000_000.0)] {
        let positions = [0, 1, 5, 3, 2, 17]; // two rows of three
        let states = random([2, 2, 3, head_dim].iter().sum::<usize>() as u64, [2, 2, 3, head_dim], &device);
        let expected: Vec<f32> = values(states.clone())
            .chunks(head_dim)
            .enumerate()
            .flat_map(|(index, head)| rotated(head, positions[index / 6 * 3 + index % 3], theta))
            .collect();
        let angles = RotaryEmbedding::new(head_dim, theta, &RopeScaling::None).at(&positions, 2, DType::F32, &device);
        assert_values_close("rotated", &values(angles.rotate(states)), &expected, EXACT);
    }
}

/// Returns the cosines and sines at a position, by rotating a head that has ones in its first half and zeros in its
/// second.
fn cos_sin(rotary: &RotaryEmbedding, head_dim: usize, position: usize) -> (Vec<f32>, Vec<f32>) {
    let half = head_dim / 2;
    let ones: Vec<f32> = (0..head_dim).map(|j| if j < half { 1.0 } else { 0.0 }).collect();
    let device = Device::flex();
    let states = Tensor::<1>::from_floats(ones.as_slice(), &device).reshape([1, 1, 1, head_dim]);
    let turned = values(rotary.at(&[position], 1, DType::F32, &device).rotate(states));
    (turned[..half].to_vec(), turned[half..].to_vec())
}

#[test]
fn matches_transformers_at_large_positions() {
    // Expected values: MistralRotaryEmbedding(MistralConfig(head_dim=8))(zeros(1, 1, 8), tensor([[4095, 30000]])), with
    // Transformers 5.23.0.
    let rotary = RotaryEmbedding::new(8, 10_000.0, &RopeScaling::None);
    for (position, cos, sin) in [
        (
            4095,
            [-0.065_975_994, 0.459_863_33, -0.994_033_1, -0.578_907],
            [-0.997_821_2, 0.887_989_7, -0.109_078_795, -0.815_392_9],
        ),
        (
            30_000,
            [-0.596_429_5, -0.975_682_2, -0.022_096_619, 0.154_253_33],
            [-0.802_665_4, 0.219_189_97, -0.999_755_86, -0.988_031_3],
        ),
    ] {
        let (actual_cos, actual_sin) = cos_sin(&rotary, 8, position);
        assert_values_close("cos", &actual_cos, &cos, EXACT);
        assert_values_close("sin", &actual_sin, &sin, EXACT);
    }
}

#[test]
fn llama3_scaling_matches_transformers() {
    // Expected values: ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(head_dim=32, rope_parameters={"rope_type": "llama3",
    //   "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    //   "original_max_position_embeddings": 8192}), "cpu"), Transformers 5.23.0
    let expected = [
        1.0,
        0.440_366_63,
        0.193_922_76,
        0.085_397_1,
        0.037_606_03,
        0.016_560_44,
        0.007_292_665,
        0.003_211_446,
        0.000_524_846,
        7.784_655e-5,
        3.428_102_4e-5,
        1.509_621_8e-5,
        6.647_87e-6,
        2.927_499_7e-6,
        1.289_173_2e-6,
        5.677_088e-7,
    ];
    let (cos, sin) = cos_sin(&RotaryEmbedding::new(32, 500_000.0, &LLAMA3), 32, 1);
    for (index, expected) in expected.into_iter().enumerate() {
        let angle = sin[index].atan2(cos[index]); // at position 1 the angle equals the frequency
        assert!((angle / expected - 1.0).abs() < 1e-6, "frequency {index} is {angle}; expected {expected}");
    }
}

#[test]
fn scores_depend_only_on_distance() {
    let device = Device::flex();
    let rotary = RotaryEmbedding::new(16, 10_000.0, &RopeScaling::None);
    let [query, key] = [1, 2].map(|seed| random(seed, [1, 1, 1, 16], &device));
    let score = |query_at: usize, key_at: usize| {
        let turn = |states: &Tensor<4>, position| rotary.at(&[position], 1, DType::F32, &device).rotate(states.clone());
        turn(&query, query_at).matmul(turn(&key, key_at).swap_dims(2, 3))
    };
    for offset in [1, 7, 32, 333] {
        assert_close("score", &score(9 + offset, 4 + offset), &score(9, 4), 10.0 * EXACT);
    }
}

#[test]
fn row_of_positions_matches_single_positions() {
    let device = Device::flex();
    let rotary = RotaryEmbedding::new(8, 10_000.0, &LLAMA3);
    let states = Tensor::<1>::from_floats(numbers(3, 40).as_slice(), &device).reshape([1, 1, 5, 8]);
    let together = rotary.at(&[3, 4, 5, 6, 7], 1, DType::F32, &device).rotate(states.clone());
    for i in 0..5 {
        let alone = rotary.at(&[3 + i], 1, DType::F32, &device).rotate(part(&states, 2, i, i + 1));
        assert_close("one position", &alone, &part(&together, 2, i, i + 1), 0.0);
    }
}
