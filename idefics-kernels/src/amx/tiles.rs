//! The tile registers and their instructions.

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

use super::{ROWS, STEP, is_available};

/// The tile registers of the calling thread, configured as eight full tiles until this value is dropped.
///
/// Tile registers belong to a thread, so the value is neither `Send` nor `Sync`. Between calls, the four tiles of sums
/// stay in `tmm0` to `tmm3`. The compiler never uses tile registers by itself, and each `asm!` block lists the tiles
/// that it writes.
pub(crate) struct Tiles(PhantomData<*const ()>);

thread_local! {
    /// Whether the thread has a [`Tiles`]. It must not create a second one, because dropping the second would release
    /// the configuration of the first.
    static IN_USE: Cell<bool> = const { Cell::new(false) };
}

impl Tiles {
    /// Configures the tile registers.
    ///
    /// # Panics
    /// If AMX is not available, or if the thread already has a [`Tiles`]. Code that holds a [`Tiles`] must therefore
    /// not wait for other tasks: while it waits, the thread could run a task that creates another one.
    pub(crate) fn new() -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        assert!(is_available(), "this CPU does not support AMX");
        assert!(!IN_USE.replace(true), "this thread already uses its tile registers");
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        row_bytes[..8].fill(64);
        rows[..8].fill(ROWS as u8);
        let config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
        // SAFETY: the assertion checked CPU support and permission; the configuration is valid for palette 1.
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

    /// Multiplies two tiles of sixteen rows by two tiles of sixteen columns, over `steps` steps. Adds the products to
    /// `sums`, or overwrites `sums` if `clear` is true. Products of bf16 parts whose indices add up to more than two
    /// are left out.
    ///
    /// # Shapes
    /// - `left`: `[steps, LEFT]` tiles each; a tile has sixteen rows of 32 values
    /// - `right`: `[steps, PARTS]` tiles each; a tile has sixteen pairs of values for sixteen columns
    /// - `sums`: tiles with the products of the left and right tiles (0, 0), (0, 1), (1, 0) and (1, 1); rows are
    ///   `stride` bytes apart
    ///
    /// # Safety
    /// The pointers are valid for these shapes, and no other thread accesses the sums.
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
                    _ => unreachable!("the left side must have one to three parts"),
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

    /// Multiplies two tiles of activation rows by two tiles of weight codes, in integer arithmetic. `sums` is
    /// `[32 rows, 32 features]`, overwritten.
    ///
    /// # Shapes
    /// - `activations`, `weights`: `[steps]` tiles each
    ///
    /// # Safety
    /// The pointers are valid for these shapes.
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

    /// Sets the four tiles of sums to zero.
    #[inline(always)]
    pub(crate) fn clear(&self) {
        // SAFETY: this only changes the thread's tile registers, which this value owns.
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

    /// Loads the four tiles of sums from memory. Rows are `stride` bytes apart.
    ///
    /// # Safety
    /// Each pointer is valid for reading a tile with this stride.
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

    /// [`Tiles::load`] for the first two tiles only.
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

    /// Computes one step of the product of two row tiles and two column tiles, and adds it to the four tiles of sums.
    ///
    /// # Safety
    /// Each pointer is valid for a tile.
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

    /// [`Tiles::step`] for the first row tile only.
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

    /// Writes the four tiles of sums to memory. Rows are `stride` bytes apart.
    ///
    /// # Safety
    /// Each pointer is valid for writing a tile with this stride, and no other thread accesses the tiles.
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

    /// [`Tiles::store`] for the first two tiles only.
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

    /// Runs `4 · steps` tile multiplications of bytes or bf16, with all operands in registers. Returns the number of
    /// scalar multiplications.
    pub(crate) fn spin<const ON_BYTES: bool>(&self, steps: usize) -> usize {
        // SAFETY: this only changes the thread's tile registers, which this value owns.
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
                if ON_BYTES {
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
        4 * steps * ROWS * ROWS * if ON_BYTES { 64 } else { STEP }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: releases the configuration that `new` loaded.
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

/// Emits the loop over the steps of a product. The last argument lists, for each part of the left side, the parts of
/// the right side that it is multiplied with.
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

    /// If [`Tiles`] is `Send` or `Sync`, this trait makes the call of `check` in the test ambiguous, so that it does
    /// not compile.
    trait OnOneThread<Which> {
        fn check() {}
    }
    impl<T> OnOneThread<()> for T {}
    impl<T: Send> OnOneThread<u8> for T {}
    impl<T: Sync> OnOneThread<u16> for T {}

    #[test]
    fn a_thread_can_configure_tiles_only_once() {
        <Tiles as OnOneThread<_>>::check();
        if !is_available() {
            assert_ne!(IsaLevel::required(), Ok(Some(IsaLevel::Amx)), "this CPU does not support AMX");
            return;
        }
        let tiles = Tiles::new();
        assert!(std::panic::catch_unwind(|| drop(Tiles::new())).is_err(), "a second configuration must panic");
        std::thread::scope(|scope| scope.spawn(|| drop(Tiles::new())).join()).expect("each thread has its own tiles");
        // The panic left the first configuration intact.
        assert_eq!(tiles.spin::<false>(1), 4 * ROWS * ROWS * STEP);
        drop(tiles);
        drop(Tiles::new());
    }
}
