//! Int4: file layouts compared with their definitions, and products with any groups and zero points.

use half::f16;
use idefics_kernels::formats::{FormatError, Int4, Weight};
use idefics_kernels::linear_on;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::{assert_close, isas, normal, size};

/// Codes, zero points and scales of a weight, unpacked: each of them is one array element.
#[derive(Debug, Clone)]
struct Parts {
    dims: [usize; 2],
    group: usize,
    /// `[d_out, d_in]`.
    codes: Vec<u8>,
    /// `[d_out, groups]`.
    zeros: Vec<u8>,
    /// `[d_out, groups]`.
    scales: Vec<f32>,
}

impl Parts {
    /// Random parts with zero points from `zeros`.
    fn random(dims: [usize; 2], group: usize, zeros: std::ops::RangeInclusive<u8>, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let n_scales = dims[0] * dims[1].div_ceil(group);
        Self {
            dims,
            group,
            codes: (0..dims[0] * dims[1]).map(|_| random.random_range(0..16)).collect(),
            zeros: (0..n_scales).map(|_| random.random_range(zeros.clone())).collect(),
            scales: (0..n_scales).map(|_| f16::from_f32(random.random_range(0.001..0.1)).to_f32()).collect(),
        }
    }

    fn groups(&self) -> usize {
        self.dims[1].div_ceil(self.group)
    }

    /// Dequantises by the definition. Input `i` has the scale and the zero point of group `group_of(i)`.
    fn dequantized(&self, group_of: impl Fn(usize) -> usize) -> Vec<f32> {
        let [d_out, d_in] = self.dims;
        let value = |row: usize, column: usize| {
            let at = row * self.groups() + group_of(column);
            (f32::from(self.codes[row * d_in + column]) - f32::from(self.zeros[at])) * self.scales[at]
        };
        (0..d_out * d_in).map(|at| value(at / d_in, at % d_in)).collect()
    }

    /// Returns the scales as AWQ and GPTQ store them, `[groups, d_out]`.
    fn scales_by_group(&self) -> Vec<f32> {
        (0..self.groups() * self.dims[0])
            .map(|at| self.scales[at % self.dims[0] * self.groups() + at / self.dims[0]])
            .collect()
    }
}

/// Packs codes `[n, m]` along the second axis, eight in a word. The four bits from bit `4 k` hold code `order[k]` of
/// the eight.
fn words(codes: &[u8], m: usize, order: [usize; 8]) -> Vec<u8> {
    let rows = codes.chunks(m.max(1)).map(|row| row.to_vec());
    let word = |eight: &[u8]| {
        let code = |k: usize| u32::from(eight.get(order[k]).copied().unwrap_or(0)) << (4 * k);
        (0..8).map(code).fold(0, |word, code| word | code).to_le_bytes()
    };
    rows.flat_map(|row| row.chunks(8).flat_map(word).collect::<Vec<u8>>()).collect()
}

fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns.max(1);
    (0..values.len()).map(|at| values[at % rows.max(1) * columns + at / rows.max(1)]).collect()
}

/// Packs codes `[n, m]` along the first axis into words, `[n / 8, m]`.
fn words_down(codes: &[u8], m: usize) -> Vec<u8> {
    let n = codes.len() / m;
    let words = words(&transposed(codes, m), n, NATURAL);
    transposed(words.as_chunks::<4>().0, n.div_ceil(8)).concat()
}

const NATURAL: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
const AWQ: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

fn awq(parts: &Parts) -> Int4<'static> {
    let [d_out, d_in] = parts.dims;
    let qweight = words(&transposed(&parts.codes, d_in), d_out, AWQ);
    let qzeros = words(&transposed(&parts.zeros, parts.groups()), d_out, AWQ);
    Int4::from_awq(&qweight, &qzeros, &parts.scales_by_group(), size(parts.group), parts.dims).unwrap()
}

fn gptq(parts: &Parts, zero_offset: u8, order: Option<&[u32]>) -> Int4<'static> {
    let [d_out, d_in] = parts.dims;
    let qweight = words_down(&transposed(&parts.codes, d_in), d_out);
    let stored: Vec<u8> = parts.zeros.iter().map(|zero| zero - zero_offset).collect();
    let qzeros = words(&transposed(&stored, parts.groups()), d_out, NATURAL);
    let scales = parts.scales_by_group();
    Int4::from_gptq(&qweight, &qzeros, zero_offset, &scales, order, size(parts.group), parts.dims).unwrap()
}

/// Returns a random order of `n` inputs.
fn shuffled(n: usize, seed: u64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for at in (1..n).rev() {
        order.swap(at, random.random_range(0..=at));
    }
    order
}

/// Reorders the columns of `values`, `[_, order.len()]`: column `i` of the result is column `order[i]`.
fn reordered(values: &[f32], order: &[u32]) -> Vec<f32> {
    values.chunks(order.len()).flat_map(|row| order.iter().map(|column| row[*column as usize])).collect()
}

/// Generates group sizes: three that files use (32, 64, 128), two that are not whole blocks (8, 24), and a whole row
/// (4096).
fn group() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![8, 24, 32, 64, 128, 4096])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn awq_words_are_read_exactly(d_out in 1usize..40, d_in in 1usize..150, group in group(), seed: u64) {
        let parts = Parts::random([8 * d_out, d_in], group, 0..=15, seed);
        prop_assert_eq!(Weight::from(awq(&parts)).dequantize(), parts.dequantized(|column| column / group));
    }

    #[test]
    fn gptq_words_are_read_exactly(d_out in 1usize..10, d_in in 1usize..20, group in group(), v1: bool, seed: u64) {
        let zeros = if v1 { 1..=16 } else { 0..=15 };
        let parts = Parts::random([8 * d_out, 8 * d_in], group, zeros, seed);
        let weight = Weight::from(gptq(&parts, v1.into(), None));
        prop_assert_eq!(weight.dequantize(), parts.dequantized(|column| column / group));
    }

    #[test]
    fn gptq_words_of_reordered_inputs_are_read_exactly(d_in in 1usize..20, group in group(), seed: u64) {
        let parts = Parts::random([24, 8 * d_in], group, 1..=16, seed);
        let order = shuffled(8 * d_in, seed);
        let mut groups = vec![0; order.len()];
        for (column, input) in order.iter().enumerate() {
            groups[*input as usize] = column / group;
        }
        let weight = Weight::from(gptq(&parts, 1, Some(&order)));
        let expected = reordered(&parts.dequantized(|input| groups[input]), &order);
        prop_assert_eq!(weight.dequantize(), expected);
    }

    #[test]
    fn compressed_tensors_are_read_exactly(
        d_out in 1usize..40, d_in in 1usize..150, group in group(), symmetric: bool, in_order: bool, seed: u64,
    ) {
        let parts = Parts::random([d_out, d_in], group, if symmetric { 8..=8 } else { 0..=15 }, seed);
        let order = if in_order { (0..d_in as u32).collect() } else { shuffled(d_in, seed) };
        let mut groups = vec![0; d_in];
        for (column, input) in order.iter().enumerate() {
            groups[*input as usize] = column / group;
        }
        let packed = words(&parts.codes, d_in, NATURAL);
        let zeros = words_down(&parts.zeros, parts.groups());
        let zeros = (!symmetric).then_some(&zeros[..]);
        let given = (!in_order).then_some(&order[..]);
        let weight =
            Int4::from_compressed_tensors(&packed, zeros, &parts.scales, given, size(group), parts.dims).unwrap();
        let expected = reordered(&parts.dequantized(|input| groups[input]), &order);
        prop_assert_eq!(Weight::from(weight).dequantize(), expected);
    }

    #[test]
    fn product_matches_f64(
        d_out in 1usize..40, d_in in 1usize..20, odd in 0usize..2, group in group(), n_rows in 1usize..12, seed: u64,
    ) {
        // Rows have whole blocks of 32 columns, or nine more columns if `odd` is 1.
        let parts = Parts::random([8 * d_out, 32 * d_in + 9 * odd], group, 0..=15, seed);
        let [d_out, d_in] = parts.dims;
        let (x, weight) = (normal(n_rows * d_in, seed, true), Weight::from(awq(&parts)));
        let values = parts.dequantized(|column| column / group);
        let (mut sums, mut sizes) = (Vec::new(), Vec::new());
        for (x, row) in x.chunks(d_in).flat_map(|x| values.chunks(d_in).map(move |row| (x, row))) {
            let terms = x.iter().zip(row).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
            sums.push(terms.clone().sum::<f64>());
            sizes.push(terms.map(f64::abs).sum::<f64>());
        }
        for isa in isas() {
            let mut out = vec![f32::NAN; n_rows * d_out];
            linear_on(isa, &x, n_rows, &weight, None, &mut out);
            assert_close(&format!("{isa:?} [{d_out}, {d_in}] x {n_rows}, groups of {group}"), &out, &sums, &sizes, 1e-6);
        }
    }
}

#[test]
fn weights_at_their_zero_point_contribute_nothing() {
    let [d_out, d_in] = [8, 64];
    let mut parts = Parts::random([d_out, d_in], 32, 0..=15, 3);
    for row in 0..d_out {
        for column in 0..d_in {
            parts.codes[row * d_in + column] = parts.zeros[row * 2 + column / 32];
        }
    }
    let weight = Weight::from(awq(&parts));
    for isa in isas() {
        for n_rows in [1, 2, 4, 8, 9] {
            let (x, mut out) = (normal(n_rows * d_in, 4, true), vec![f32::NAN; n_rows * d_out]);
            linear_on(isa, &x, n_rows, &weight, None, &mut out);
            assert!(out.iter().all(|value| *value == 0.0), "{isa:?} {n_rows}");
        }
    }
}

#[test]
fn rejects_invalid_parts() {
    let [qweight, qzeros] = [vec![0u8; 4 * 64], vec![0u8; 4 * 2]];
    let awq = |qweight: &[u8], qzeros: &[u8], scales: &[f32], d_out| {
        Int4::from_awq(qweight, qzeros, scales, size(32), [d_out, 64]).map(drop)
    };
    awq(&qweight, &qzeros, &[1.0; 16], 8).unwrap();
    let message = |result: Result<(), FormatError>| result.unwrap_err().to_string();
    assert_eq!(
        message(awq(&qweight[4..], &qzeros, &[1.0; 16], 8)),
        "qweight of a [8, 64] weight: expected 256 elements, found 252"
    );
    assert_eq!(
        message(awq(&qweight, &qzeros[4..], &[1.0; 16], 8)),
        "qzeros of a [8, 64] weight: expected 8 elements, found 4"
    );
    assert_eq!(
        message(awq(&qweight, &qzeros, &[1.0; 15], 8)),
        "scales of a [8, 64] weight: expected 16 elements, found 15"
    );
    assert!(message(awq(&qweight, &qzeros, &[1.0; 14], 7)).starts_with("output features (a multiple of 8)"));
    for scale in [f32::NAN, f32::INFINITY, 1e38] {
        let mut scales = [1.0; 16];
        scales[8] = scale;
        let error = awq(&qweight, &qzeros, &scales, 8).unwrap_err();
        assert!(matches!(error, FormatError::Scale { part: "int4 scales", index: 1, .. }), "{error}");
    }
    for zero in [-1.0, 0.5, 17.0, f32::NAN] {
        let error = Int4::new(vec![0; 32], vec![1.0, 3.0, 1.0, zero], size(32), [1, 64]).unwrap_err();
        assert!(matches!(error, FormatError::Scale { part: "int4 zero points", index: 1, .. }), "{error}");
    }
    Int4::new(vec![0; 32], vec![1.0, 16.0, -1.0, 0.0], size(32), [1, 64]).unwrap();
    let huge = Int4::new(vec![], vec![], size(32), [usize::MAX, 2]);
    assert!(matches!(huge, Err(FormatError::TooLarge { .. })));
    let order = Int4::from_gptq(&qweight[..32], &qzeros[..4], 1, &[1.0; 8], Some(&[0]), size(32), [8, 8]);
    assert!(matches!(order, Err(FormatError::Length { part: "order of the inputs", .. })));
    assert!(matches!(Int4::quantize(&[0.0, f32::NAN], size(32), [1, 2]), Err(FormatError::NonFinite { index: 1, .. })));
}
