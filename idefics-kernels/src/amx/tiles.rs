//! The tile registers, and the instructions on them.

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

use super::{ROWS, STEP, is_available};

/// The thread's tiles, eight whole ones, until it is dropped.
///
/// Tiles are registers of the thread: the value cannot be sent to another one or shared with it. Between calls the sums
/// stay in `tmm0` to `tmm3`, which the compiler never uses by itself; each instruction names the tiles that it writes.
pub(crate) struct Tiles(PhantomData<*const ()>);

thread_local! {
    /// Whether the thread has a [`Tiles`]: a second one would take the first one's configuration away when it is dropped.
    static IN_USE: Cell<bool> = const { Cell::new(false) };
}

impl Tiles {
    /// Sets the tiles up.
    ///
    /// # Panics
    /// If the machine has none, or the thread has set them up already: work on tiles must not wait for other tasks.
    pub(crate) fn new() -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        assert!(is_available(), "this machine has no tiles of bf16");
        assert!(!IN_USE.replace(true), "the thread has its tiles set up already");
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        row_bytes[..8].fill(64);
        rows[..8].fill(ROWS as u8);
        let config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
        // SAFETY: the assertion found the instructions and the permission; the configuration is one of palette 1.
        unsafe {
            asm!(
                "ldtilecfg [{config}]", config = in(reg) &raw const config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly),
            );
        }
        Self(PhantomData)
    }

    /// Two tiles of sixteen rows times two tiles of sixteen columns, added to four tiles of sums, or `clear` before. Of
    /// the products of parts, those are made whose indices add up to two at most.
    ///
    /// # Shapes
    /// - `left`: `steps` times `LEFT` tiles each, sixteen rows of 32 values
    /// - `right`: `steps` times [`PARTS`] tiles each, sixteen pairs of values of sixteen columns
    /// - `sums`: of left and right 0, 0; 0, 1; 1, 0; 1, 1; a row every `stride` bytes
    ///
    /// # Safety
    /// The pointers are valid for that, the sums for writing by this thread alone.
    #[inline]
    pub(crate) unsafe fn multiply<const LEFT: usize>(
        &self,
        left: [*const u8; 2],
        right: [*const u8; 2],
        steps: usize,
        sums: [*mut f32; 4],
        stride: usize,
        clear: bool,
    ) {
        // SAFETY: guaranteed by the caller; nothing else uses these registers.
        unsafe {
            if clear {
                self.clear();
            } else {
                asm!(
                    "tileloadd tmm0, [{c0} + {stride}*1]",
                    "tileloadd tmm1, [{c1} + {stride}*1]",
                    "tileloadd tmm2, [{c2} + {stride}*1]",
                    "tileloadd tmm3, [{c3} + {stride}*1]",
                    c0 = in(reg) sums[0], c1 = in(reg) sums[1], c2 = in(reg) sums[2], c3 = in(reg) sums[3],
                    stride = in(reg) stride,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nostack, readonly),
                );
            }
            if steps > 0 {
                match LEFT {
                    1 => walk!(1024, left, right, steps, [0: 0 1 2]),
                    2 => walk!(2048, left, right, steps, [0: 0 1 2] [1: 0 1]),
                    3 => walk!(3072, left, right, steps, [0: 0 1 2] [1: 0 1] [2: 0]),
                    _ => unreachable!("the left side has one to three parts"),
                }
            }
            asm!(
                "tilestored [{c0} + {stride}*1], tmm0",
                "tilestored [{c1} + {stride}*1], tmm1",
                "tilestored [{c2} + {stride}*1], tmm2",
                "tilestored [{c3} + {stride}*1], tmm3",
                c0 = in(reg) sums[0], c1 = in(reg) sums[1], c2 = in(reg) sums[2], c3 = in(reg) sums[3],
                stride = in(reg) stride, options(nostack),
            );
        }
    }

    /// Two row tiles of activations times two feature tiles of codes, in integers: rows of `sums` are rows, its columns
    /// features.
    ///
    /// # Shapes
    /// - `activations`, `weights`: `steps` tiles each
    ///
    /// # Safety
    /// The pointers are valid for that.
    pub(crate) unsafe fn multiply_codes(
        &self,
        activations: [*const u8; 2],
        weights: [*const u8; 2],
        steps: usize,
        sums: &mut [i32; 4 * ROWS * ROWS],
    ) {
        let start = sums.as_mut_ptr();
        let sums = [0, ROWS, 2 * ROWS * ROWS, 2 * ROWS * ROWS + ROWS].map(|at| start.wrapping_add(at));
        // SAFETY: guaranteed by the caller; nothing else uses these registers, and the sums are 32 rows of 128 bytes.
        unsafe {
            self.clear();
            if steps > 0 {
                asm!(
                    "2:",
                    "tileloadd tmm6, [{b0} + {row}*1]",
                    "tileloadd tmm7, [{b1} + {row}*1]",
                    "tileloadd tmm4, [{a0} + {row}*1]",
                    "tileloadd tmm5, [{a1} + {row}*1]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tdpbssd tmm2, tmm5, tmm6",
                    "tdpbssd tmm3, tmm5, tmm7",
                    "add {a0}, 1024",
                    "add {a1}, 1024",
                    "add {b0}, 1024",
                    "add {b1}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    a0 = inout(reg) activations[0] => _,
                    a1 = inout(reg) activations[1] => _,
                    b0 = inout(reg) weights[0] => _,
                    b1 = inout(reg) weights[1] => _,
                    steps = inout(reg) steps => _,
                    row = in(reg) 64usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, readonly),
                );
            }
            asm!(
                "tilestored [{c0} + {stride}*1], tmm0",
                "tilestored [{c1} + {stride}*1], tmm1",
                "tilestored [{c2} + {stride}*1], tmm2",
                "tilestored [{c3} + {stride}*1], tmm3",
                c0 = in(reg) sums[0], c1 = in(reg) sums[1], c2 = in(reg) sums[2], c3 = in(reg) sums[3],
                stride = in(reg) 2 * ROWS * size_of::<i32>(), options(nostack),
            );
        }
    }

    /// Four tiles of sums become zero.
    #[inline(always)]
    pub(crate) fn clear(&self) {
        // SAFETY: nothing but the thread's tiles is touched, which are this value's.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem),
            );
        }
    }

    /// Reads four tiles of sums, a row every `stride` bytes.
    ///
    /// # Safety
    /// The pointers are valid for that.
    #[inline(always)]
    pub(crate) unsafe fn load(&self, sums: [*mut f32; 4], stride: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            self.load_half(sums, stride);
            asm!(
                "tileloadd tmm2, [{c2} + {stride}*1]",
                "tileloadd tmm3, [{c3} + {stride}*1]",
                c2 = in(reg) sums[2], c3 = in(reg) sums[3], stride = in(reg) stride,
                out("tmm2") _, out("tmm3") _,
                options(nostack, readonly),
            );
        }
    }

    /// The first two of [`Tiles::load`].
    ///
    /// # Safety
    /// As [`Tiles::load`].
    #[inline(always)]
    pub(crate) unsafe fn load_half(&self, sums: [*mut f32; 4], stride: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c0} + {stride}*1]",
                "tileloadd tmm1, [{c1} + {stride}*1]",
                c0 = in(reg) sums[0], c1 = in(reg) sums[1], stride = in(reg) stride,
                out("tmm0") _, out("tmm1") _,
                options(nostack, readonly),
            );
        }
    }

    /// Adds one step of the product of two tiles of rows with two tiles of columns, to sums 0, 0; 0, 1; 1, 0; 1, 1.
    ///
    /// # Safety
    /// The pointers are valid for a tile each.
    #[inline(always)]
    pub(crate) unsafe fn step(&self, left: [*const u8; 2], right: [*const u8; 2]) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            asm!(
                "tileloadd tmm4, [{a0} + {row}*1]",
                "tileloadd tmm6, [{b0} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{b1} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                a0 = in(reg) left[0], a1 = in(reg) left[1], b0 = in(reg) right[0], b1 = in(reg) right[1],
                row = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }

    /// The first half of [`Tiles::step`], of one tile of rows.
    ///
    /// # Safety
    /// As [`Tiles::step`].
    #[inline(always)]
    pub(crate) unsafe fn half_step(&self, left: *const u8, right: [*const u8; 2]) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            asm!(
                "tileloadd tmm4, [{a0} + {row}*1]",
                "tileloadd tmm6, [{b0} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                a0 = in(reg) left, b0 = in(reg) right[0], b1 = in(reg) right[1],
                row = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }

    /// Writes four tiles of sums, a row every `stride` bytes.
    ///
    /// # Safety
    /// The pointers are valid for that, for writing by this thread alone.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, sums: [*mut f32; 4], stride: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            self.store_half(sums, stride);
            asm!(
                "tilestored [{c2} + {stride}*1], tmm2",
                "tilestored [{c3} + {stride}*1], tmm3",
                c2 = in(reg) sums[2], c3 = in(reg) sums[3], stride = in(reg) stride, options(nostack),
            );
        }
    }

    /// The first two of [`Tiles::store`].
    ///
    /// # Safety
    /// As [`Tiles::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_half(&self, sums: [*mut f32; 4], stride: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            asm!(
                "tilestored [{c0} + {stride}*1], tmm0",
                "tilestored [{c1} + {stride}*1], tmm1",
                c0 = in(reg) sums[0], c1 = in(reg) sums[1], stride = in(reg) stride, options(nostack),
            );
        }
    }

    /// Multiplies tiles in registers, of bytes or of bf16, `4 steps` times; returns the number of products.
    pub(crate) fn spin<const OF_BYTES: bool>(&self, steps: usize) -> usize {
        // SAFETY: nothing but the thread's tiles is touched, which are this value's.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "tilezero tmm6",
                "tilezero tmm7",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem)
            );
            for _ in 0..steps {
                if OF_BYTES {
                    asm!(
                        "tdpbssd tmm0, tmm4, tmm6",
                        "tdpbssd tmm1, tmm4, tmm7",
                        "tdpbssd tmm2, tmm5, tmm6",
                        "tdpbssd tmm3, tmm5, tmm7",
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        options(nostack, nomem)
                    );
                } else {
                    asm!(
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        options(nostack, nomem)
                    );
                }
            }
        }
        4 * steps * ROWS * ROWS * if OF_BYTES { 64 } else { STEP }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: gives back what `new` set up.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, nomem),
            );
        }
        IN_USE.set(false);
    }
}

/// The steps of a product: for each part of the left side, its products with some parts of the right one.
macro_rules! walk {
    ($left_bytes:literal, $left:ident, $right:ident, $steps:ident, $([$l:literal: $($r:literal)*])*) => {
        asm!(
            "2:",
            $(
                concat!("tileloadd tmm4, [{a0} + {row}*1 + ", $l, "*1024]"),
                concat!("tileloadd tmm5, [{a1} + {row}*1 + ", $l, "*1024]"),
                $(
                    concat!("tileloadd tmm6, [{b0} + {row}*1 + ", $r, "*1024]"),
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    concat!("tileloadd tmm7, [{b1} + {row}*1 + ", $r, "*1024]"),
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                )*
            )*
            concat!("add {a0}, ", $left_bytes),
            concat!("add {a1}, ", $left_bytes),
            "add {b0}, 3072",
            "add {b1}, 3072",
            "dec {steps}",
            "jnz 2b",
            a0 = inout(reg) $left[0] => _,
            a1 = inout(reg) $left[1] => _,
            b0 = inout(reg) $right[0] => _,
            b1 = inout(reg) $right[1] => _,
            steps = inout(reg) $steps => _,
            row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        )
    };
}
use walk;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IsaLevel;

    /// Which of these traits a method is of can only be said if [`Tiles`] is neither `Send` nor `Sync`.
    trait OnOneThread<Which> {
        fn is_so() {}
    }
    impl<T> OnOneThread<()> for T {}
    impl<T: Send> OnOneThread<u8> for T {}
    impl<T: Sync> OnOneThread<u16> for T {}

    #[test]
    fn a_thread_has_tiles_once() {
        <Tiles as OnOneThread<_>>::is_so();
        if !is_available() {
            assert_ne!(IsaLevel::required(), Ok(Some(IsaLevel::Amx)), "this machine has no AMX");
            return;
        }
        let tiles = Tiles::new();
        assert!(std::panic::catch_unwind(|| drop(Tiles::new())).is_err(), "they are set up already");
        std::thread::scope(|scope| scope.spawn(|| drop(Tiles::new())).join()).expect("each thread has its own");
        // The refusal has left the configuration as it was.
        assert_eq!(tiles.spin::<false>(1), 4 * ROWS * ROWS * STEP);
        drop(tiles);
        drop(Tiles::new());
    }
}
