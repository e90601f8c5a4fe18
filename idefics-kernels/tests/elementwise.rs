//! Elementwise kernels, RMS norm, RoPE and decode attention: every instruction set and unaligned shapes, compared with
//! f64.

use idefics_kernels::{
    DecodeAttention, Isa, StridedView, decode_attention_on, exp_on, rms_norm_on, rope_on, stream_sum_on, swiglu_on,
};

use crate::common::{assert_close, isas, normal};

/// Maximum difference from the result in f64, relative to the sum of the magnitudes that are added.
const EXACT: f64 = 1e-6;

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let n = 2_000_000;
    let inputs: Vec<f32> = (0..n).map(|i| -110.0 + 205.0 * (i as f32 / n as f32)).collect();
    for isa in isas() {
        let mut outputs = inputs.clone();
        exp_on(isa, &mut outputs);
        let mut worst = (0f64, 0f32);
        for (input, output) in inputs.iter().zip(&outputs) {
            let exact = f64::from(*input).exp();
            if exact > f64::from(f32::MAX) * (1.0 + 1e-7) {
                assert_eq!(*output, f32::INFINITY, "{isa:?} exp({input})");
                continue;
            }
            let nearest = exact as f32;
            let unit =
                f64::from(f32::from_bits(nearest.min(f32::MAX).to_bits() + 1).min(f32::MAX)) - f64::from(nearest);
            let unit = if unit > 0.0 { unit } else { 2f64.powi(104) };
            let error = (f64::from(output.min(f32::MAX)) - exact).abs() / unit;
            worst = if error > worst.0 { (error, *input) } else { worst };
        }
        assert!(worst.0 <= 2.0, "{isa:?}: {:.2} units at {}", worst.0, worst.1);
    }
}

#[test]
fn exp_is_exact_at_extreme_inputs() {
    for isa in isas() {
        let mut values = [f32::NEG_INFINITY, -1e30, -104.0, 0.0, -0.0, 1e30, f32::INFINITY, f32::NAN];
        exp_on(isa, &mut values);
        assert_eq!(values[..7], [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY], "{isa:?}");
        assert!(values[7].is_nan(), "{isa:?}");
    }
}

#[test]
fn swiglu_matches_the_formula() {
    for len in [0, 1, 7, 16, 17, 100, 14336, 40_001] {
        let gate: Vec<f32> = normal(len, 1, true).iter().map(|gate| gate * 3.0).collect();
        let up = normal(len, 2, false);
        let exact = |(gate, up): (&f32, &f32)| {
            let gate = f64::from(*gate);
            gate / (1.0 + (-gate).exp()) * f64::from(*up)
        };
        let expected: Vec<f64> = gate.iter().zip(&up).map(exact).collect();
        let sizes: Vec<f64> = expected.iter().map(|value| value.abs() + 1e-30).collect();
        for isa in isas() {
            let mut out = gate.clone();
            swiglu_on(isa, &mut out, &up);
            assert_close(&format!("{isa:?} {len}"), &out, &expected, &sizes, EXACT);
        }
    }
}

#[test]
fn rms_norm_matches_the_formula() {
    for width in [1, 5, 16, 63, 64, 65, 100, 576, 4096, 4100] {
        for n_rows in [0, 1, 3, 70] {
            let (x, weight) = (normal(n_rows * width, 3, true), normal(width, 4, false));
            let eps = 1e-5f32;
            let mut expected = Vec::new();
            for row in x.chunks_exact(width) {
                let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                let inverse = 1.0 / (mean + f64::from(eps)).sqrt();
                expected.extend(row.iter().zip(&weight).map(|(x, w)| f64::from(*x) * inverse * f64::from(*w)));
            }
            let sizes: Vec<f64> = expected.iter().map(|value| value.abs() + 1e-30).collect();
            for isa in isas() {
                let mut out = vec![f32::NAN; x.len()];
                rms_norm_on(isa, &x, &weight, eps, &mut out);
                assert_close(&format!("{isa:?} {n_rows} x {width}"), &out, &expected, &sizes, EXACT);
            }
        }
    }
}

#[test]
fn rope_matches_the_formula() {
    for dims @ [tokens, heads, head_dim] in
        [[1, 1, 2], [2, 3, 6], [1, 8, 64], [10, 2, 96], [2, 3, 34], [6, 32, 128], [301, 3, 64], [1, 0, 4]]
    {
        let states = normal(dims.iter().product(), 5, false);
        let angles: Vec<f32> = normal(tokens * head_dim / 2, 6, false);
        let both = |function: fn(f32) -> f32| -> Vec<f32> {
            let halves = angles.chunks_exact(head_dim / 2);
            halves.flat_map(|angles| angles.iter().chain(angles).map(|angle| function(*angle))).collect()
        };
        let (cos, sin) = (both(f32::cos), both(f32::sin));
        let (mut expected, mut sizes) = (Vec::new(), Vec::new());
        for (index, head) in states.chunks_exact(head_dim).enumerate() {
            let at = index / heads * head_dim;
            for j in 0..head_dim {
                let half = head_dim / 2;
                let rotated = if j < half { -head[j + half] } else { head[j - half] };
                let (x, y) = (f64::from(head[j]), f64::from(rotated));
                let (cos, sin) = (f64::from(cos[at + j]), f64::from(sin[at + j]));
                expected.push(x * cos + y * sin);
                sizes.push((x * cos).abs() + (y * sin).abs());
            }
        }
        for isa in isas() {
            let mut out = states.clone();
            rope_on(isa, &mut out, dims, &cos, &sin);
            assert_close(&format!("{isa:?} {dims:?}"), &out, &expected, &sizes, EXACT);
        }
    }
}

/// Decode attention on a cache with unused capacity. Slots that must not be read are NaN.
struct Case {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    len: usize,
    head_dim: usize,
    padding: usize,
}

impl Case {
    fn check(&self) {
        let Self { batch, heads, kv_heads, len, head_dim, padding } = *self;
        let capacity = len + 3;
        let query = normal(batch * heads * head_dim, 7, false);
        let mask: Vec<bool> = (0..batch * len).map(|i| i % len >= padding * (i / len)).collect();
        let cache = |seed| {
            let mut cache = normal(batch * kv_heads * capacity * head_dim, seed, false);
            for (slot, values) in cache.chunks_exact_mut(head_dim).enumerate() {
                let (row, slot) = (slot / capacity / kv_heads, slot % capacity);
                if slot >= len || !mask[row * len + slot] {
                    values.fill(f32::NAN);
                }
            }
            cache
        };
        let (keys, values) = (cache(8), cache(9));
        let scale = (head_dim as f32).powf(-0.5);
        let mut expected = Vec::new();
        for (index, query) in query.chunks_exact(head_dim).enumerate() {
            let (row, head) = (index / heads, index % heads / (heads / kv_heads));
            let at = |slot: usize| ((row * kv_heads + head) * capacity + slot) * head_dim;
            let seen: Vec<usize> = (0..len).filter(|slot| mask[row * len + slot]).collect();
            let dot = |slot: &usize| {
                let key = &keys[at(*slot)..][..head_dim];
                query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * f64::from(scale)
            };
            let scores: Vec<f64> = seen.iter().map(dot).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for j in 0..head_dim {
                let sum: f64 = seen.iter().zip(&weights).map(|(slot, w)| w * f64::from(values[at(*slot) + j])).sum();
                expected.push(if seen.is_empty() { 0.0 } else { sum / total });
            }
        }
        let sizes = vec![1.0; expected.len()];
        let attention = DecodeAttention {
            query: &query,
            keys: StridedView::contiguous(&keys, kv_heads, capacity, head_dim),
            values: StridedView::contiguous(&values, kv_heads, capacity, head_dim),
            batch,
            heads,
            kv_heads,
            len,
            head_dim,
            attention_mask: (padding > 0).then_some(&mask[..]),
            scale,
        };
        for isa in isas() {
            let mut out = vec![f32::NAN; query.len()];
            decode_attention_on(isa, &attention, &mut out);
            let what = format!("{isa:?} {batch} {heads}/{kv_heads} {len} {head_dim} padding {padding}");
            assert_close(&what, &out, &expected, &sizes, 5e-6);
            let on = |n_threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                let mut out = vec![f32::NAN; query.len()];
                pool.install(|| decode_attention_on(isa, &attention, &mut out));
                out
            };
            assert_eq!(out, on(1), "{what}");
            assert_eq!(out, on(3), "{what}");
        }
    }
}

#[test]
fn decode_attention_matches_the_formula() {
    for (batch, heads, kv_heads, head_dim) in
        [(1, 1, 1, 1), (1, 32, 8, 128), (2, 9, 3, 64), (3, 7, 1, 20), (2, 4, 4, 96), (1, 6, 2, 50), (4, 2, 1, 33)]
    {
        for len in [1, 2, 15, 100, 511, 512, 513, 1300] {
            for padding in [0, 1, 40] {
                Case { batch, heads, kv_heads, len, head_dim, padding }.check();
            }
        }
    }
}

#[test]
fn decode_attention_without_visible_slots_gives_zero() {
    for padding in [10, 600] {
        Case { batch: 3, heads: 4, kv_heads: 2, len: 10 * padding / 8, head_dim: 64, padding }.check();
    }
    let attention = DecodeAttention {
        query: &[1.0; 4],
        keys: StridedView::contiguous(&[], 1, 0, 4),
        values: StridedView::contiguous(&[], 1, 0, 4),
        batch: 1,
        heads: 1,
        kv_heads: 1,
        len: 0,
        head_dim: 4,
        attention_mask: None,
        scale: 0.5,
    };
    for isa in isas() {
        let mut out = [f32::NAN; 4];
        decode_attention_on(isa, &attention, &mut out);
        assert_eq!(out, [0.0; 4], "{isa:?}");
    }
}

/// Creates the inputs of decode attention for one row, with two query heads that share `len` keys of width 4.
fn one_row<'a>(query: &'a [f32], keys: StridedView<'a>, values: StridedView<'a>, len: usize) -> DecodeAttention<'a> {
    let (attention_mask, scale) = (None, 0.5);
    DecodeAttention { query, keys, values, batch: 1, heads: 2, kv_heads: 1, len, head_dim: 4, attention_mask, scale }
}

#[test]
fn a_nan_query_gives_nan_in_its_own_head_only() {
    for len in [1, 20, 600] {
        let cache = normal(len * 4, 14, false);
        let cached = StridedView::contiguous(&cache, 1, len, 4);
        let query = [1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0];
        for isa in isas() {
            let mut out = [0.0; 8];
            decode_attention_on(isa, &one_row(&query, cached, cached, len), &mut out);
            assert!(out[..4].iter().all(|out| out.is_finite()), "{isa:?} {len}: {out:?}");
            assert!(out[4..].iter().all(|out| out.is_nan()), "{isa:?} {len}: {out:?}");
        }
    }
}

#[test]
#[should_panic(expected = "too short for its strides")]
fn overflowing_strides_panic() {
    let cached = StridedView { values: &[0.0; 8], strides: [0, 0, usize::MAX / 2 + 1] };
    decode_attention_on(Isa::best(), &one_row(&[0.0; 8], cached, cached, 3), &mut [0.0; 8]);
}

#[test]
fn stream_sum_adds_every_value() {
    for len in [0, 1, 63, 64, 4096, 262_144, 300_001] {
        let values: Vec<f32> = (0..len).map(|index| (index % 3) as f32).collect();
        let sum: f32 = values.iter().sum(); // an integer below 2²⁴
        for isa in isas() {
            assert_eq!(stream_sum_on(isa, &values), sum, "{isa:?} {len}");
        }
    }
}
