//! How activations are represented in products.

/// The number format of activations in CPU products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Activations {
    /// f32, without rounding.
    #[default]
    F32,
    /// Products that use integer arithmetic round activations to eight bits. With int8 and q4 weights, products of many
    /// rows use one scale per row. With GGUF blocks of four to eight bits, products use one scale per 32 or 256
    /// columns, as in llama.cpp. On machines with AMX, attention of many queries rounds too: each query and each key is
    /// split into two bf16, and attention weights and values are rounded to one bf16. Everything else stays in f32.
    Int8,
}
