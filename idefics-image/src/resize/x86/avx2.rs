//! The horizontal and the vertical loop for AVX2.
//!
//! Weights have 22 fractional bits, too many for one 16-bit multiplication. They are split into two parts,
//! `weight = high × 2^16 + low`, where `low` is a signed 16-bit and `high` a signed 8-bit number. Products with `low`
//! are summed in 32 bits, products with `high` in 16 bits. Both sums are exact if [`is_exact`] returns true.

use std::arch::x86_64::*;

use super::super::taps::{PRECISION_BITS, ROUND, Taps};
use super::super::{LANES, ROWS};
use super::{CHUNK, Groups, QUAD, Strip, load, prefetch};

/// Returns the high part of a weight: its upper bits, rounded.
fn high(weight: i32) -> i32 {
    (weight + (1 << 15)) >> 16
}

/// Returns the low parts of two weights, 16 bits each.
fn low_pair(weights: [i32; 2]) -> i32 {
    let [first, second] = weights.map(|weight| weight - (high(weight) << 16));
    first & 0xffff | second << 16
}

/// Returns whether sums with these weights are exact: for every output, the positive high parts sum to at most 127, and
/// the negative ones to at least -128. Then each high part fits into 8 bits, and 255 × each sum fits into 16 bits. The
/// test fails only if the rounding errors of more than 100 weights add up, which real images do not cause.
fn is_exact(taps: &Taps) -> bool {
    (0..taps.len()).all(|output| {
        let highs = taps.of(output).1.iter().map(|&weight| high(weight));
        let (positive, negative) = highs.fold((0, 0), |(p, n), part| (p + part.max(0), n + part.min(0)));
        positive <= 127 && negative >= -128
    })
}

/// Returns whether the CPU supports AVX2 and sums with these weights are exact.
fn is_usable(taps: &Taps) -> bool {
    is_x86_feature_detected!("avx2") && is_exact(taps)
}

/// Four consecutive weights, split into low and high parts for [`Sums::add`].
#[derive(Debug, Clone, Copy, Default)]
struct Quad {
    /// The low parts, as 16-bit numbers: those of the first and third weight, then those of the second and fourth
    /// weight.
    low: [i32; 2],
    /// The high parts, four 8-bit numbers.
    high: i32,
}

impl Quad {
    fn new(weights: [i32; QUAD]) -> Self {
        let [first, second, third, fourth] = weights;
        let high = i32::from_le_bytes(weights.map(|weight| high(weight) as u8));
        Self { low: [low_pair([first, third]), low_pair([second, fourth])], high }
    }
}

/// The sums for eight output values, split into the products with the low and the high parts.
#[derive(Clone, Copy)]
struct Sums {
    low: __m256i,
    high: __m256i,
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new() -> Self {
        Self { low: _mm256_set1_epi32(ROUND), high: _mm256_setzero_si256() }
    }

    /// Adds the products of four neighbouring bytes and their weights to each sum.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(&mut self, bytes: __m256i, [even, odd, high]: [__m256i; 3]) {
        let evens = _mm256_madd_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), even);
        let odds = _mm256_madd_epi16(_mm256_srli_epi16::<8>(bytes), odd);
        self.low = _mm256_add_epi32(self.low, _mm256_add_epi32(evens, odds));
        self.high = _mm256_add_epi16(self.high, _mm256_maddubs_epi16(bytes, high));
    }

    /// Combines the two sums into the output values. Partial sums may wrap around. The result is still correct, because
    /// the full sum is below 2^31.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn values(self) -> __m256i {
        let high = _mm256_slli_epi32::<16>(_mm256_madd_epi16(self.high, _mm256_set1_epi16(1)));
        _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(self.low, high))
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(quad: &Quad) -> [__m256i; 3] {
    [quad.low[0], quad.low[1], quad.high].map(|part| _mm256_set1_epi32(part))
}

/// The weights of the horizontal pass.
#[derive(Debug)]
pub(in super::super) struct Columns {
    strips: Vec<Strip>,
    /// For each output, the index of its first quad of pixels, counted from the start of the strip. If `quads` is 1,
    /// the index of its first pixel instead.
    firsts: Vec<usize>,
    weights: Groups<Quad>,
    /// The largest number of quads of an output.
    quads: usize,
}

/// Four pixels of eight rows. Each 32-bit element holds four values of one colour in one row. The lower halves of the
/// vectors belong to rows 0 to 3, the upper halves to rows 4 to 7. With the colour as letter and the row as number, the
/// lower halves are r3 r0 g0 b0, r1 g3 g1 b1 and r2 g2 b3 b2.
type Pixels = [__m256i; 3];

impl Columns {
    /// Returns `None` if the CPU does not support AVX2 or sums would not be exact.
    pub(super) fn new(taps: &Taps) -> Option<Self> {
        if is_usable(taps) { Self::of(taps) } else { None }
    }

    fn of(taps: &Taps) -> Option<Self> {
        let strips = Strip::of(taps);
        // If windows are longer than a quad, outputs share quads of reordered pixels, so the quads begin at multiples
        // of four.
        let align = if taps.window() <= QUAD { 1 } else { QUAD };
        let weights = Groups::of(taps, align, |weights| Some(Quad::new(weights)))?;
        let quads = (0..taps.len()).map(|output| weights.at(output).len()).max()?;
        let mut firsts = vec![0; taps.len()];
        for strip in &strips {
            for output in strip.outputs(taps.len()) {
                firsts[output] = (taps.inputs(output).start - strip.start) / align;
            }
        }
        Some(Self { strips, firsts, weights, quads })
    }

    /// Resizes rows along x, and writes them to an interleaved block. Each input row is `[width, 3]`.
    pub(super) fn horizontal(&self, rows: [&[u8]; ROWS], block: &mut [u8]) {
        let chunks = self.strips.iter().map(|strip| strip.chunks).max().unwrap_or(0);
        let half = block.len() / 2;
        let (upper, lower) = block.split_at_mut(half);
        // SAFETY: only `new` creates these weights, and only if the CPU supports AVX2.
        #[allow(unsafe_code, reason = "calls a function that needs AVX2")]
        unsafe {
            let mut pixels = vec![[_mm256_setzero_si256(); 3]; 4 * chunks];
            for strip in &self.strips {
                // The loads may reach beyond the last pixel of the strip.
                let (start, length) = (3 * strip.start, CHUNK * strip.chunks + 16);
                if rows.iter().all(|row| start + length <= row.len()) {
                    self.strip(strip, rows.map(|row| &row[start..]), &mut pixels, [&mut *upper, &mut *lower]);
                } else {
                    let ends = rows.map(|row| {
                        let mut end = row.get(start..).unwrap_or_default().to_vec();
                        end.resize(length, 0);
                        end
                    });
                    self.strip(strip, ends.each_ref().map(Vec::as_slice), &mut pixels, [&mut *upper, &mut *lower]);
                }
            }
        }
    }

    /// Computes the outputs of a strip for eight rows. `pixels` is a scratch buffer for the reordered pixels of the
    /// strip.
    #[target_feature(enable = "avx2")]
    fn strip(&self, strip: &Strip, rows: [&[u8]; ROWS], pixels: &mut [Pixels], [upper, lower]: [&mut [u8]; 2]) {
        let rows = SameLength::new(rows);
        let outputs = strip.outputs(self.firsts.len());
        if self.quads == 1 {
            for output in outputs {
                let at = 3 * self.firsts[output];
                rows.prefetch(output, at);
                let mut sums = [Sums::new(); 3];
                let weights = self.weights.at(output).first().copied().unwrap_or_default();
                add(&mut sums, &ordered::<16>(rows.at(at), 0), &weights);
                put(sums.map(|sums| sums.values()), [&mut *upper, &mut *lower], output);
            }
            return;
        }
        for (index, pixels) in pixels.as_chunks_mut::<4>().0[..strip.chunks].iter_mut().enumerate() {
            let rows = rows.at(CHUNK * index);
            for (quad, pixels) in pixels.iter_mut().enumerate() {
                *pixels = ordered::<{ CHUNK + 4 }>(rows, 3 * QUAD * quad);
            }
        }
        for output in outputs {
            let first = self.firsts[output];
            rows.prefetch(output, 3 * QUAD * first);
            let mut sums = [Sums::new(); 3];
            for (pixels, weights) in pixels[first..].iter().zip(self.weights.at(output)) {
                add(&mut sums, pixels, weights);
            }
            put(sums.map(|sums| sums.values()), [&mut *upper, &mut *lower], output);
        }
    }
}

/// Eight rows, and the length of the shortest row. One bounds check covers a load from every row.
struct SameLength<'a> {
    rows: [&'a [u8]; ROWS],
    length: usize,
}

impl<'a> SameLength<'a> {
    fn new(rows: [&'a [u8]; ROWS]) -> Self {
        let length = rows.iter().map(|row| row.len()).min().unwrap_or(0);
        Self { rows, length }
    }

    /// Returns `N` bytes of each row, from offset `at` on.
    #[inline(always)]
    fn at<const N: usize>(&self, at: usize) -> [&'a [u8; N]; ROWS] {
        assert!(at < self.length && N <= self.length - at, "the bytes to load must be inside the rows");
        self.rows.map(|row| {
            // SAFETY: the assertion above checks that `at + N <= self.length`, and every row has at least `self.length`
            // bytes.
            #[allow(unsafe_code, reason = "reads without a bounds check in the inner loop")]
            unsafe {
                &*row.as_ptr().add(at).cast::<[u8; N]>()
            }
        })
    }

    /// Prefetches bytes of the next strip while this strip is computed. Each output prefetches from two rows only,
    /// because a burst of requests would wait for free fill buffers.
    #[inline(always)]
    fn prefetch(&self, output: usize, at: usize) {
        let row = output % LANES;
        prefetch(self.rows[row], at);
        prefetch(self.rows[row + LANES], at);
    }
}

/// Adds the products of four pixels and their weights to the sums.
#[inline]
#[target_feature(enable = "avx2")]
fn add(sums: &mut [Sums; 3], pixels: &Pixels, weights: &Quad) {
    let weights = broadcast(weights);
    for (sums, &pixels) in sums.iter_mut().zip(pixels) {
        sums.add(pixels, weights);
    }
}

/// Reorders the four pixels of each row that begin at byte `at`, as [`Pixels`] describes.
#[inline]
#[target_feature(enable = "avx2")]
fn ordered<const N: usize>(rows: [&[u8; N]; ROWS], at: usize) -> Pixels {
    // Four pixels r0 g0 b0 r1 … b3 of a row become r0 r1 r2 r3, g0 …, b0 …, and a gap of four bytes. The place of the
    // gap depends on the row.
    let orders = [
        _mm_setr_epi8(0, 0, 0, 0, 0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11),
        _mm_setr_epi8(0, 3, 6, 9, 0, 0, 0, 0, 1, 4, 7, 10, 2, 5, 8, 11),
        _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 0, 0, 0, 0, 2, 5, 8, 11),
        _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, 0, 0, 0, 0),
    ];
    let mut halves = [_mm256_setzero_si256(); 4];
    for (row, (half, order)) in halves.iter_mut().zip(orders).enumerate() {
        let pixels = _mm256_set_m128i(load(rows[row + LANES], at), load(rows[row], at));
        *half = _mm256_shuffle_epi8(pixels, _mm256_broadcastsi128_si256(order));
    }
    // The values of the fourth row fill the gaps of the other rows.
    let [first, second, third, fourth] = halves;
    [
        _mm256_blend_epi32::<0b0001_0001>(first, fourth),
        _mm256_blend_epi32::<0b0010_0010>(second, fourth),
        _mm256_blend_epi32::<0b0100_0100>(third, fourth),
    ]
}

/// Writes one pixel of each of the eight rows to the two groups of a block. The 24 values are in the order of
/// [`Pixels`].
#[inline]
#[target_feature(enable = "avx2")]
fn put([first, second, third]: [__m256i; 3], groups: [&mut [u8]; 2], output: usize) {
    let words = [_mm256_packs_epi32(first, second), _mm256_packs_epi32(third, third)];
    let bytes = _mm256_packus_epi16(words[0], words[1]);
    let interleaved = _mm_setr_epi8(1, 4, 8, 0, 2, 6, 9, 5, 3, 7, 11, 10, -1, -1, -1, -1);
    let columns = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(interleaved));
    let halves = [_mm256_castsi256_si128(columns), _mm256_extracti128_si256::<1>(columns)];
    for (group, columns) in groups.into_iter().zip(halves) {
        // The last four of the 16 bytes are unused. The next output overwrites them.
        let rest = &mut group[3 * LANES * output..];
        match rest.first_chunk_mut() {
            Some(target) => store(target, columns),
            None => {
                let mut bytes = [0; 16];
                store(&mut bytes, columns);
                rest[..3 * LANES].copy_from_slice(&bytes[..3 * LANES]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(target: &mut [u8; 16], value: __m128i) {
    // SAFETY: `target` has 16 bytes, and the store may be unaligned.
    #[allow(unsafe_code, reason = "a vector store takes a pointer")]
    unsafe {
        _mm_storeu_si128(target.as_mut_ptr().cast(), value);
    }
}

/// The weights of the vertical pass.
#[derive(Debug)]
pub(in super::super) struct Rows(Groups<Quad>);

impl Rows {
    /// Number of bytes of a row that one iteration computes.
    const COLUMNS: usize = 32;

    /// Returns `None` if the CPU does not support AVX2, sums would not be exact, or `row_bytes` is less than
    /// [`Self::COLUMNS`].
    pub(super) fn new(taps: &Taps, row_bytes: usize) -> Option<Self> {
        let is_usable = row_bytes >= Self::COLUMNS && is_usable(taps);
        if is_usable { Groups::of(taps, LANES, |weights| Some(Quad::new(weights))).map(Self) } else { None }
    }

    /// Computes the output row at `position`, of at least [`Self::COLUMNS`] bytes. `groups` are interleaved input rows.
    pub(super) fn vertical(&self, groups: &[&[u8]], position: usize, out: &mut [u8]) {
        // SAFETY: only `new` creates these weights, and only if the CPU supports AVX2.
        #[allow(unsafe_code, reason = "calls a function that needs AVX2")]
        unsafe {
            one_row(groups, self.0.at(position), out);
        }
    }
}

#[target_feature(enable = "avx2")]
fn one_row(groups: &[&[u8]], weights: &[Quad], out: &mut [u8]) {
    const COLUMNS: usize = Rows::COLUMNS;
    let width = out.len();
    let is_long = |group: &&[u8]| group.len() >= LANES * width;
    assert!(width >= COLUMNS && groups.iter().all(is_long), "the output or an input row is too short");
    // Packing leaves four columns in each 32-bit element. This permutation puts the elements in order.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let mut column = 0;
    loop {
        let mut sums = [Sums::new(); 4];
        for (group, weights) in groups.iter().zip(weights) {
            let weights = broadcast(weights);
            for (quarter, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the load ends at byte LANES * (column + COLUMNS) of the group, or before. The loop keeps
                // column + COLUMNS <= width, and the assertion above checks that every group has at least LANES * width
                // bytes.
                #[allow(unsafe_code, reason = "a vector load takes a pointer")]
                let bytes = unsafe { _mm256_loadu_si256(group.as_ptr().add(LANES * column + 32 * quarter).cast()) };
                sums.add(bytes, weights);
            }
        }
        let [first, second, third, fourth] = sums.map(|sums| sums.values());
        let words = [_mm256_packs_epi32(first, second), _mm256_packs_epi32(third, fourth)];
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words[0], words[1]), order);
        // SAFETY: the store ends at byte column + COLUMNS of `out`. The loop keeps column + COLUMNS <= width, which is
        // the length of `out`.
        #[allow(unsafe_code, reason = "a vector store takes a pointer")]
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().add(column).cast(), bytes);
        }
        if column + COLUMNS == width {
            break;
        }
        // The last iteration may compute some bytes a second time.
        column = (column + COLUMNS).min(width - COLUMNS);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::taps::tests::{one_output, ramp_taps};
    use super::*;

    #[test]
    fn sums_that_would_not_be_exact_are_left_to_the_plain_loop() {
        assert!(is_exact(&ramp_taps([0].into_iter(), 128)));
        assert!(!is_exact(&one_output(&[32_768; 170])));
    }
}
