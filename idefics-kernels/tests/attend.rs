//! Attention of many queries, layer norm and GELU: every instruction set and unaligned shapes, compared with f64.

use idefics_kernels::Activations;
use idefics_kernels::{Attention, Isa, StridedView, attend_on, gelu_on, gelu_tanh_on, layer_norm_on};
use proptest::prelude::*;

use crate::common::{assert_close, isas, normal};

/// Tolerance with rounded activations. Weights and values are rounded to one bf16 each, with a relative error of at
/// most 2⁻⁸; the error of queries and keys is negligible.
const ROUNDED: f64 = 8e-3;

/// Returns a view of `[tokens, heads, head_dim]`, the layout that a projection produces.
fn heads_in_tokens(values: &[f32], tokens: usize, heads: usize, head_dim: usize) -> StridedView<'_> {
    StridedView { values, strides: [tokens * heads * head_dim, head_dim, heads * head_dim] }
}

#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    heads: usize,
    group: usize,
    queries: usize,
    len: usize,
    head_dim: usize,
    /// Which keys are hidden.
    mask: Mask,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mask {
    None,
    Causal,
    Holes,
}

impl Case {
    fn mask(&self) -> Option<Vec<bool>> {
        let is_hidden = |query: usize, key: usize| match self.mask {
            Mask::None => false,
            Mask::Causal => key + self.queries > query + self.len,
            Mask::Holes => (query * 7 + key * 3) % 5 < 3 || query % 11 == 4,
        };
        let all = (0..self.batch).flat_map(|_| (0..self.queries).flat_map(|q| (0..self.len).map(move |k| (q, k))));
        (self.mask != Mask::None).then(|| all.map(|(query, key)| is_hidden(query, key)).collect())
    }

    fn check(&self) {
        let Self { batch, heads, group, queries, len, head_dim, .. } = *self;
        let kv_heads = heads / group;
        let query = normal(batch * queries * heads * head_dim, 1, false);
        let keys = normal(batch * len * kv_heads * head_dim, 2, false);
        let values = normal(batch * len * kv_heads * head_dim, 3, true);
        let mask = self.mask();
        let scale = (head_dim as f32).powf(-0.5);
        let (mut expected, mut sizes) = (Vec::new(), Vec::new());
        for (index, query) in query.chunks_exact(head_dim).enumerate() {
            let (row, at, head) = (index / heads / queries, index / heads % queries, index % heads);
            let start = |slot: usize| ((row * len + slot) * kv_heads + head / group) * head_dim;
            let is_hidden = |slot: &usize| mask.as_ref().is_some_and(|m| m[(row * queries + at) * len + slot]);
            let seen: Vec<usize> = (0..len).filter(|slot| !is_hidden(slot)).collect();
            let score = |slot: &usize| {
                let key = &keys[start(*slot)..][..head_dim];
                query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * f64::from(scale)
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            for j in 0..head_dim {
                let terms = seen.iter().zip(&weights).map(|(slot, w)| w * f64::from(values[start(*slot) + j]) / total);
                expected.push(terms.clone().sum::<f64>());
                sizes.push(terms.map(f64::abs).sum::<f64>() + 1e-30);
            }
        }
        let attention = Attention {
            query: heads_in_tokens(&query, queries, heads, head_dim),
            keys: heads_in_tokens(&keys, len, kv_heads, head_dim),
            values: heads_in_tokens(&values, len, kv_heads, head_dim),
            batch,
            heads,
            kv_heads,
            queries,
            len,
            head_dim,
            mask: mask.as_deref(),
            scale,
            activations: Activations::F32,
        };
        for isa in isas() {
            let on = |n_threads: usize, activations: Activations| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                let mut out = vec![f32::NAN; query.len()];
                pool.install(|| attend_on(isa, &Attention { activations, ..attention }, &mut out));
                out
            };
            for (activations, tolerance) in [(Activations::F32, 5e-6), (Activations::Int8, ROUNDED)] {
                let out = on(2, activations);
                let tolerance = if isa == Isa::Amx { tolerance } else { 5e-6 };
                assert_close(&format!("{isa:?} {activations:?} {self:?}"), &out, &expected, &sizes, tolerance);
                assert_eq!(out, on(1, activations), "{isa:?} {activations:?} {self:?}");
            }
        }
    }
}

#[test]
fn attention_matches_the_formula() {
    for (heads, group, head_dim) in
        [(1, 1, 1), (4, 1, 72), (2, 1, 80), (8, 4, 128), (3, 3, 20), (2, 2, 33), (1, 1, 203)]
    {
        for (queries, len) in [(1, 1), (2, 40), (31, 31), (33, 65), (100, 100), (40, 129), (40, 300)] {
            for mask in [Mask::None, Mask::Causal, Mask::Holes] {
                Case { batch: 2, heads, group, queries, len, head_dim, mask }.check();
            }
        }
    }
}

#[test]
fn attention_over_several_blocks_of_keys_matches_the_formula() {
    for mask in [Mask::None, Mask::Causal, Mask::Holes] {
        Case { batch: 1, heads: 2, group: 2, queries: 600, len: 700, head_dim: 24, mask }.check();
    }
}

#[test]
fn a_larger_score_in_a_later_block_rescales_earlier_sums() {
    let (queries, len, head_dim) = (70, 1000, 72);
    let query = vec![1.0; queries * head_dim];
    // Scores rise from −50 to 50. The value of a key is its index.
    let keys: Vec<f32> = (0..len * head_dim).map(|i| (i / head_dim) as f32 / 10.0 - 50.0).collect();
    let values: Vec<f32> = (0..len * head_dim).map(|i| (i / head_dim) as f32).collect();
    let attention = Attention {
        query: heads_in_tokens(&query, queries, 1, head_dim),
        keys: heads_in_tokens(&keys, len, 1, head_dim),
        values: heads_in_tokens(&values, len, 1, head_dim),
        batch: 1,
        heads: 1,
        kv_heads: 1,
        queries,
        len,
        head_dim,
        mask: None,
        scale: 1.0 / head_dim as f32,
        activations: Activations::F32,
    };
    // The weights form a geometric series whose last term is the largest. The expected output is the weighted mean of
    // the indices.
    let ratio = (-0.1f64).exp();
    let expected = (len - 1) as f64 - ratio / (1.0 - ratio);
    for isa in isas() {
        for (activations, tolerance) in [(Activations::F32, 5e-6), (Activations::Int8, ROUNDED)] {
            let mut out = vec![f32::NAN; query.len()];
            attend_on(isa, &Attention { activations, ..attention }, &mut out);
            let n = out.len();
            assert_close(&format!("{isa:?} {activations:?}"), &out, &vec![expected; n], &vec![expected; n], tolerance);
        }
    }
}

#[test]
fn nan_inputs_give_nan_outputs() {
    let (queries, len, head_dim) = (33, 40, 20);
    for place in 0..3 {
        let mut states = [queries, len, len].map(|n| normal(n * head_dim, 7, false));
        states[place][5 * head_dim + 3] = f32::NAN;
        let attention = Attention {
            query: heads_in_tokens(&states[0], queries, 1, head_dim),
            keys: heads_in_tokens(&states[1], len, 1, head_dim),
            values: heads_in_tokens(&states[2], len, 1, head_dim),
            batch: 1,
            heads: 1,
            kv_heads: 1,
            queries,
            len,
            head_dim,
            mask: None,
            scale: 0.2,
            activations: Activations::F32,
        };
        for isa in isas() {
            for activations in [Activations::F32, Activations::Int8] {
                let mut out = vec![0.0; queries * head_dim];
                attend_on(isa, &Attention { activations, ..attention }, &mut out);
                for (at, value) in out.iter().enumerate() {
                    let is_nan = [at / head_dim == 5, true, at % head_dim == 3][place];
                    assert_eq!(value.is_nan(), is_nan, "{isa:?} {activations:?} {place} {at}");
                }
            }
        }
    }
}

#[test]
fn attention_without_keys_gives_zero() {
    let query = [1.0; 12];
    let attention = Attention {
        query: heads_in_tokens(&query, 3, 1, 4),
        keys: heads_in_tokens(&[], 0, 1, 4),
        values: heads_in_tokens(&[], 0, 1, 4),
        batch: 1,
        heads: 1,
        kv_heads: 1,
        queries: 3,
        len: 0,
        head_dim: 4,
        mask: None,
        scale: 0.5,
        activations: Activations::F32,
    };
    for isa in isas() {
        let mut out = [f32::NAN; 12];
        attend_on(isa, &attention, &mut out);
        assert_eq!(out, [0.0; 12], "{isa:?}");
    }
}

#[test]
fn layer_norm_matches_the_formula() {
    for width in [1, 2, 15, 16, 17, 72, 1152, 1280] {
        for offset in [0.0, 30.0] {
            let x: Vec<f32> = normal(7 * width, 4, true).iter().map(|x| x + offset).collect();
            let (weight, bias) = (normal(width, 5, false), normal(width, 6, false));
            let (mut expected, mut sizes) = (Vec::new(), Vec::new());
            for row in x.chunks_exact(width) {
                let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                for ((x, weight), bias) in row.iter().zip(&weight).zip(&bias) {
                    let deviation = (variance + 1e-6).sqrt();
                    expected.push((x - mean) / deviation * f64::from(*weight) + f64::from(*bias));
                    // The mean in f32 has a rounding error.
                    let rounding = (x - mean).abs() + mean.abs();
                    sizes.push(rounding / deviation * f64::from(weight.abs()) + f64::from(bias.abs()));
                }
            }
            for isa in isas() {
                let mut out = vec![f32::NAN; x.len()];
                layer_norm_on(isa, &x, &weight, &bias, 1e-6, &mut out);
                assert_close(&format!("{isa:?} {width} + {offset}"), &out, &expected, &sizes, 1e-6);
            }
        }
    }
}

/// Computes the error function by its series, or by its continued fraction if `|x|` is large.
fn erf(x: f64) -> f64 {
    if x.abs() > 3.0 {
        let fraction = (1..60).rev().fold(0.0, |rest, k| f64::from(k) / 2.0 / (x.abs() + rest));
        let tail = (-x * x).exp() / (x.abs() + fraction) / std::f64::consts::PI.sqrt();
        return x.signum() * (1.0 - tail);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn gelu_matches_the_formula() {
    let x: Vec<f32> = (0..40_001).map(|i| (i - 20_000) as f32 / 1500.0).collect();
    let exact: Vec<f64> = x.iter().map(|x| f64::from(*x) * (1.0 + erf(f64::from(*x) / 2f64.sqrt())) / 2.0).collect();
    let tanh = |x: &f32| {
        let x = f64::from(*x);
        let argument = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        x * (1.0 + argument.tanh()) / 2.0
    };
    let expected_tanh: Vec<f64> = x.iter().map(tanh).collect();
    let sizes: Vec<f64> = x.iter().map(|x| f64::from(x.abs()) + 1e-30).collect();
    for isa in isas() {
        let mut out = x.clone();
        gelu_on(isa, &mut out);
        assert_close(&format!("{isa:?} erf"), &out, &exact, &sizes, 3e-7);
        let mut out = x.clone();
        gelu_tanh_on(isa, &mut out);
        assert_close(&format!("{isa:?} tanh"), &out, &expected_tanh, &sizes, 3e-7);
        let mut out = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e30, 1e30, 0.0, -0.0];
        gelu_tanh_on(isa, &mut out);
        assert!(out[0].is_nan() && out[1] == f32::INFINITY && out[3..] == [0.0, 1e30, 0.0, 0.0], "{isa:?} {out:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn attention_matches_the_formula_for_any_shape(
        batch in 1usize..3, kv_heads in 1usize..4, group in 1usize..4, queries in 1usize..80, len in 1usize..90,
        head_dim in 1usize..140, mask in prop_oneof![Just(Mask::None), Just(Mask::Causal), Just(Mask::Holes)],
    ) {
        Case { batch, heads: kv_heads * group, group, queries, len, head_dim, mask }.check();
    }
}
