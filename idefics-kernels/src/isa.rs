//! Instruction sets: what the machine has, and how a kernel runs on one of them.

use std::sync::OnceLock;

use crate::IsaLevel;
use crate::vector::{self, Work};

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
    /// The fastest that the machine has and `IDEFICS_ISA` allows ([`IsaLevel::cap`]); found once.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::best_up_to(IsaLevel::cap().ok().flatten()))
    }

    /// The fastest that the machine has and a cap allows.
    fn best_up_to(cap: Option<IsaLevel>) -> Self {
        let is_allowed = |isa: &Self| isa.is_available() && cap.is_none_or(|cap| isa.level() <= cap);
        [Self::Amx, Self::Avx512, Self::Avx2, Self::Neon].into_iter().find(is_allowed).unwrap_or(Self::Plain)
    }

    /// All that the machine has, the plain one first, whatever the cap is.
    pub fn available() -> Vec<Self> {
        [Self::Plain, Self::Avx2, Self::Avx512, Self::Amx, Self::Neon]
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// Whether the machine has it.
    pub fn is_available(self) -> bool {
        self.level().is_available()
    }

    /// The lowest level with all of its instructions.
    pub fn level(self) -> IsaLevel {
        match self {
            Self::Plain => IsaLevel::Plain,
            Self::Avx2 => IsaLevel::Avx2,
            Self::Avx512 => IsaLevel::Avx512Vnni,
            Self::Amx => IsaLevel::Amx,
            Self::Neon => IsaLevel::Neon,
        }
    }

    /// `plain`, `avx2`, `avx512`, `amx` or `neon`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
        }
    }

    /// Refuses to go on with instructions that the machine lacks.
    pub(crate) fn assert_available(self) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_is_kept() {
        for cap in IsaLevel::ALL {
            let best = Isa::best_up_to(Some(cap));
            assert!(best.is_available() && best.level() <= cap, "{cap}: {best:?}");
            let mut better = Isa::available().into_iter().filter(|isa| isa.level() <= cap);
            assert_eq!(better.next_back(), Some(best), "{cap}");
        }
        assert_eq!(Isa::best_up_to(Some(IsaLevel::Plain)), Isa::Plain);
        assert_eq!(Some(Isa::best_up_to(None)), Isa::available().pop());
    }
}
