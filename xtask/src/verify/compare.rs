//! Compares tensors.

/// The result of comparing one stage. `ours` is what this project computes, `expected` what the reference computed.
#[derive(Debug, Clone)]
pub(super) struct Comparison {
    pub(super) shape: Vec<usize>,
    /// Largest |ours − expected|. For integers, the number of elements that differ.
    pub(super) max: f64,
    /// Mean |ours − expected| over the compared elements. For integers, the fraction of elements that differ.
    pub(super) mean: f64,
    pub(super) tolerance: f64,
    /// A problem other than the differences, such as a wrong shape. The stage then fails.
    pub(super) remark: Option<String>,
    /// Additional information about a stage that agrees.
    pub(super) note: Option<String>,
}

impl Comparison {
    /// Whether the stage agrees.
    pub(super) fn passed(&self) -> bool {
        // The comparison with NaN is false, so the stage then fails.
        self.remark.is_none() && self.max <= self.tolerance
    }

    /// Compares the elements for which `compared(flat index)` holds.
    pub(super) fn floats(
        shape: &[usize],
        ours: &[f32],
        expected: &[f32],
        tolerance: f64,
        compared: impl Fn(usize) -> bool,
    ) -> Self {
        let (mut max, mut sum, mut count) = (0.0f64, 0.0, 0u64);
        for index in (0..ours.len()).filter(|&index| compared(index)) {
            let difference = (f64::from(ours[index]) - f64::from(expected[index])).abs();
            // `f64::max` ignores NaN, but a NaN must be kept.
            max = if difference.is_nan() { f64::NAN } else { max.max(difference) };
            sum += difference;
            count += 1;
            if max.is_nan() {
                break;
            }
        }
        let remark = (count == 0).then(|| "no elements were compared".to_owned());
        Self { shape: shape.to_vec(), max, mean: sum / count.max(1) as f64, tolerance, remark, note: None }
    }

    /// Compares integers. They must be equal.
    pub(super) fn ints(shape: &[usize], ours: &[i64], expected: &[i64]) -> Self {
        let differing = ours.iter().zip(expected).filter(|(ours, expected)| ours != expected).count() as f64;
        let remark = ours
            .iter()
            .zip(expected)
            .position(|(ours, expected)| ours != expected)
            .map(|index| format!("element {index} is {}; expected {}", ours[index], expected[index]));
        let mean = differing / ours.len().max(1) as f64;
        Self { shape: shape.to_vec(), max: differing, mean, tolerance: 0.0, remark, note: None }
    }

    /// Checks that a number is at most `tolerance`.
    pub(super) fn number(ours: f64, tolerance: f64) -> Self {
        Self { shape: Vec::new(), max: ours, mean: ours, tolerance, remark: None, note: None }
    }

    /// Creates a comparison that fails because the shapes differ.
    pub(super) fn shape(ours: &[usize], expected: &[usize]) -> Self {
        let remark = format!("shape {ours:?}; expected {expected:?}");
        Self { shape: ours.to_vec(), max: f64::NAN, mean: f64::NAN, tolerance: 0.0, remark: Some(remark), note: None }
    }

    /// Creates a comparison that fails for another reason.
    pub(super) fn failed(reason: String) -> Self {
        Self { shape: Vec::new(), max: f64::NAN, mean: f64::NAN, tolerance: 0.0, remark: Some(reason), note: None }
    }
}
