//! Instruction sets: detecting what the CPU supports, and running a kernel on one of them.

use std::sync::OnceLock;

use crate::IsaLevel;
use crate::vector::{self, Work};

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Portable loops without intrinsics, for every machine. The tests compare the other instruction sets with it.
    Plain,
    /// AVX2, FMA and F16C: most x86-64 CPUs since 2013.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI: Intel servers since 2019, AMD since Zen 4.
    Avx512,
    /// AMX (bf16 and int8 tiles) plus AVX-512: Intel servers since 2023. Matrix products and attention of many rows
    /// use AMX, everything else AVX-512.
    Amx,
    /// NEON: every 64-bit Arm CPU.
    Neon,
}

impl Isa {
    /// The fastest instruction set that the CPU supports and `IDEFICS_ISA` allows ([`IsaLevel::cap`]). Detected once.
    ///
    /// # Panics
    /// If `IDEFICS_ISA` has an invalid value, with the message of the [`IsaError`](crate::IsaError). A program should
    /// call [`IsaLevel::cap`] when it starts, and report the error itself.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::best_up_to(IsaLevel::cap().unwrap_or_else(|error| panic!("{error}"))))
    }

    /// The fastest instruction set that the CPU supports and `cap` allows.
    fn best_up_to(cap: Option<IsaLevel>) -> Self {
        let is_allowed = |isa: &Self| isa.is_available() && cap.is_none_or(|cap| isa.level() <= cap);
        [Self::Amx, Self::Avx512, Self::Avx2, Self::Neon].into_iter().find(is_allowed).unwrap_or(Self::Plain)
    }

    /// All instruction sets that the CPU supports, slowest first. Ignores `IDEFICS_ISA`.
    pub fn available() -> Vec<Self> {
        [Self::Plain, Self::Avx2, Self::Avx512, Self::Amx, Self::Neon]
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// Whether the CPU supports this instruction set.
    pub fn is_available(self) -> bool {
        self.level().is_available()
    }

    /// The lowest level that includes all instructions of this set.
    pub fn level(self) -> IsaLevel {
        match self {
            Self::Plain => IsaLevel::Plain,
            Self::Avx2 => IsaLevel::Avx2,
            Self::Avx512 => IsaLevel::Avx512Vnni,
            Self::Amx => IsaLevel::Amx,
            Self::Neon => IsaLevel::Neon,
        }
    }

    /// Lower-case name: `plain`, `avx2`, `avx512`, `amx` or `neon`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
        }
    }

    /// Panics if the CPU does not support this instruction set.
    pub(crate) fn assert_available(self) {
        assert!(self.is_available(), "this CPU does not support {self:?}");
    }

    /// Runs `work` with the vectors of this instruction set, or `plain` for [`Isa::Plain`].
    ///
    /// # Panics
    /// If the CPU does not support this instruction set.
    #[allow(unsafe_code, reason = "the only place where elementwise kernels call code compiled for an instruction set")]
    pub(crate) fn run<W: Work>(self, work: W, plain: impl FnOnce(W) -> W::Output) -> W::Output {
        self.assert_available();
        match self {
            // SAFETY: the assertion above checked CPU support.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { vector::avx2::run(work) },
            // SAFETY: the assertion above checked CPU support.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Amx => unsafe { vector::avx512::run(work) },
            // SAFETY: every 64-bit Arm CPU has NEON.
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
    fn best_respects_the_cap() {
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
