//! How activations are represented in products.

/// The number format of activations in CPU products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Activations {
    /// f32, without rounding.
    #[default]
    F32,
    /// Activations are rounded to eight bits in products that use integer arithmetic: with one scale per row in products
    /// of many rows with int8 and q4 weights, and with one scale per 32 or 256 columns, as in llama.cpp, in products with
    /// GGUF blocks of four to eight bits. On machines with AMX, attention of many queries rounds too:
    /// queries and keys are split into two bf16, and attention weights and values are rounded to one bf16. Everything
    /// else stays in f32.
    Int8,
}
