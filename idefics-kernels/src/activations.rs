//! Whether activations are rounded.

/// What activations are multiplied as, on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Activations {
    /// As they are.
    #[default]
    F32,
    /// Where there are many rows of them and the weight is int8 or q4: rounded to eight bits, each row with a scale of its
    /// own, so that integers are multiplied. In attention of many queries, on machines with AMX: queries and keys as sums
    /// of two bf16, weights and values as one bf16. Elsewhere as they are.
    Int8,
}
