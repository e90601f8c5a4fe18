//! Reproducible random numbers, which are the same on every machine.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The purpose of random numbers. Different purposes use different streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Training examples.
    Training,
    /// Evaluation examples.
    Evaluation,
    /// Examples for demonstration.
    Demo,
}

/// Creates the random number generator for `index` under `seed`.
///
/// The three arguments form the key of the ChaCha cipher, so different arguments give different streams.
pub fn rng(purpose: Purpose, seed: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    key[16] = match purpose {
        Purpose::Training => 1,
        Purpose::Evaluation => 2,
        Purpose::Demo => 3,
    };
    ChaCha8Rng::from_seed(key)
}

/// Returns one of `options`, chosen uniformly at random.
pub(crate) fn pick<T: Copy, const N: usize>(rng: &mut (impl Rng + ?Sized), options: [T; N]) -> T {
    options[rng.random_range(0..N)]
}

/// Returns a uniformly random unit vector. It is computed without sine and cosine, because their last bits depend on
/// the machine.
pub(crate) fn direction(rng: &mut (impl Rng + ?Sized)) -> [f32; 2] {
    loop {
        let [x, y]: [f32; 2] = [rng.random_range(-1.0..1.0), rng.random_range(-1.0..1.0)];
        let length = (x * x + y * y).sqrt();
        if (0.1..1.0).contains(&length) {
            return [x / length, y / length];
        }
    }
}
