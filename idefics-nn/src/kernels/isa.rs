//! Instruction sets: what the machine has, and how a kernel runs on one of them.

use std::sync::OnceLock;

use super::vector::{self, Work};

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain loops; every machine has it, and the tests compare the others with it.
    Plain,
    /// AVX2, FMA and F16C: x86-64 since 2013.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI: Intel servers since 2019, AMD since Zen 4.
    Avx512,
    /// AMX with bf16 beside AVX-512: Intel servers since 2023. Products of many rows use it; the rest is AVX-512.
    Amx,
    /// NEON: every 64-bit Arm.
    Neon,
}

impl Isa {
    /// The fastest that the machine has; found once.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            [Self::Amx, Self::Avx512, Self::Avx2, Self::Neon]
                .into_iter()
                .find(|isa| isa.is_available())
                .unwrap_or(Self::Plain)
        })
    }

    /// All that the machine has, the plain one first.
    pub fn available() -> Vec<Self> {
        [Self::Plain, Self::Avx2, Self::Avx512, Self::Amx, Self::Neon]
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// Whether the machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => vector::avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => vector::avx512::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => super::amx::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            _ => false,
        }
    }

    /// Refuses to go on with instructions that the machine lacks.
    pub(super) fn assert_available(self) {
        assert!(self.is_available(), "this machine has no {self:?}");
    }

    /// Runs `work` with the vectors of this instruction set, `plain` without any.
    ///
    /// # Panics
    /// If the machine does not have it.
    #[allow(unsafe_code)] // the one place where an instruction set is entered for elementwise work
    pub(crate) fn run<W: Work>(self, work: W, plain: impl FnOnce(W) -> W::Output) -> W::Output {
        self.assert_available();
        match self {
            // SAFETY: the assertion above found the instructions.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { vector::avx2::run(work) },
            // SAFETY: the assertion above found the instructions.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Amx => unsafe { vector::avx512::run(work) },
            // SAFETY: every 64-bit Arm has NEON.
            #[cfg(target_arch = "aarch64")]
            Self::Neon => unsafe { vector::neon::run(work) },
            _ => plain(work),
        }
    }
}
