//! Sampling: the distribution of draws, and the inputs on which they depend.

use idefics_generate::logits::{RowError, RowKey, Sampler, argmax, softmax};

/// 99.9% quantile of the χ² distribution with 7 degrees of freedom.
const CHI_SQUARE_7: f64 = 24.32;
const SCORES: [f32; 10] = [0.3, -1.2, f32::NEG_INFINITY, 2.0, 0.0, 1.1, f32::NEG_INFINITY, -0.4, 1.7, -2.5];
const N_DRAWS: usize = 40_000;

fn key(sample: usize) -> RowKey {
    RowKey { sample: sample as u64, answer: 0 }
}

/// Computes the χ² statistic of draws against `SCORES`, which allow eight tokens.
fn chi_square(drawn: impl Iterator<Item = usize>) -> f64 {
    let mut counts = [0.0; SCORES.len()];
    for id in drawn {
        counts[id] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    let mut sum = 0.0;
    for (count, prob) in counts.iter().zip(softmax(&SCORES)) {
        let expected = f64::from(prob) * total;
        if expected == 0.0 {
            assert_eq!(*count, 0.0, "a forbidden token was drawn");
        } else {
            sum += (count - expected).powi(2) / expected;
        }
    }
    sum
}

#[test]
fn draws_follow_softmax() {
    let steps = (0..N_DRAWS).map(|step| Sampler::new(1).draw(key(3), step, &SCORES).unwrap() as usize);
    assert!(chi_square(steps) < CHI_SQUARE_7);
    let rows = (0..N_DRAWS).map(|row| Sampler::new(1).draw(key(row), 5, &SCORES).unwrap() as usize);
    assert!(chi_square(rows) < CHI_SQUARE_7);
    let seeds = (0..N_DRAWS).map(|seed| Sampler::new(seed as u64).draw(key(0), 0, &SCORES).unwrap() as usize);
    assert!(chi_square(seeds) < CHI_SQUARE_7);
}

#[test]
fn draws_without_replacement_follow_remaining_distribution() {
    let draws: Vec<Vec<usize>> =
        (0..N_DRAWS).map(|step| Sampler::new(2).draw_without_replacement(key(0), step, &SCORES, 2).unwrap()).collect();
    assert!(chi_square(draws.iter().map(|drawn| drawn[0])) < CHI_SQUARE_7);

    // After a first draw of 3, the second draw cannot be 3 again. Its distribution has six degrees of freedom.
    let mut left = SCORES;
    left[3] = f32::NEG_INFINITY;
    let probs = softmax(&left);
    let second: Vec<usize> = draws.iter().filter(|drawn| drawn[0] == 3).map(|drawn| drawn[1]).collect();
    let sum: f64 = probs.iter().enumerate().filter(|(_, prob)| **prob > 0.0).fold(0.0, |sum, (id, &prob)| {
        let expected = f64::from(prob) * second.len() as f64;
        let count = second.iter().filter(|&&drawn| drawn == id).count() as f64;
        sum + (count - expected).powi(2) / expected
    });
    assert!(sum < 22.46, "{sum} is beyond the 99.9% quantile with 6 degrees of freedom");
    assert!(draws.iter().all(|drawn| drawn[0] != drawn[1]));
}

#[test]
fn impossible_positions_come_last() {
    let mut drawn = Sampler::new(3).draw_without_replacement(key(0), 0, &SCORES, 10).unwrap();
    assert_eq!(drawn[8..], [2, 6]);
    drawn.sort_unstable();
    assert_eq!(drawn, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

/// Compares draws with fixed values, so that a seed gives the same answer in every release.
#[test]
fn draws_of_a_seed_are_pinned() {
    let drawn: Vec<u32> = (0..12).map(|step| Sampler::new(42).draw(key(7), step, &[0.0; 100]).unwrap()).collect();
    assert_eq!(drawn, PINNED);
    let other = (0..12).map(|step| Sampler::new(42).draw(key(8), step, &[0.0; 100]).unwrap());
    assert!(other.ne(drawn));
}

const PINNED: [u32; 12] = [42, 6, 23, 31, 62, 95, 78, 85, 85, 16, 36, 60];

#[test]
fn rejects_invalid_scores() {
    for choose in [argmax, |scores: &[f32]| Sampler::new(0).draw(RowKey::default(), 0, scores)] {
        assert_eq!(choose(&[0.0, f32::NAN]), Err(RowError::NonFinite));
        assert_eq!(choose(&[0.0, f32::INFINITY]), Err(RowError::NonFinite));
        assert_eq!(choose(&[f32::NEG_INFINITY; 3]), Err(RowError::NothingAllowed));
        assert_eq!(choose(&[]), Err(RowError::NothingAllowed));
        assert_eq!(choose(&[f32::NEG_INFINITY, -1e30]), Ok(1));
    }
    assert_eq!(argmax(&[1.0, 2.0, 2.0]), Ok(1));
}
