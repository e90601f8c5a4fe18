//! Operations that have kernels of this project: on the CPU, and on GPUs where Burn has no suitable kernel. On other
//! devices and in autodiff graphs, each operation falls back to Burn's operations.
//!
//! The CPU kernels take f32 activations; weights may have any format.

#[cfg(feature = "flex")]
mod buffer;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "autodiff")]
mod frozen;

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::sync::Arc;

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData, activation, s};

use crate::{Activations, PAGE_LEN, PackedFormat, PagedRow};

/// Properties of a packed weight that the CPU kernels need in addition to its codes and scales.
#[cfg_attr(not(feature = "flex"), allow(dead_code))] // only the CPU kernels read `activations`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packing {
    pub(crate) format: PackedFormat,
    pub(crate) activations: Activations,
    /// Number of output features.
    pub(crate) d_out: usize,
}

/// A packed weight's format and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PackedShape {
    pub(crate) format: PackedFormat,
    /// Number of output features.
    pub(crate) d_out: usize,
    /// Number of input features.
    pub(crate) d_in: usize,
}

/// Operations with a CPU kernel.
#[cfg_attr(not(feature = "flex"), allow(dead_code, unused_variables))] // only `flex` implements this trait
#[backend_extension(Flex: cfg(feature = "flex"))]
pub(crate) trait Kernels: Backend {
    /// Computes `x Wᵀ`: takes `[n_rows, d_in]` and `[d_out, d_in]` (F32, BF16 or F16), and returns `[n_rows, d_out]`.
    fn dense_product(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Computes `x Wᵀ + b`. `b` is `[d_out]` in F32.
    fn dense_product_with_bias(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Computes `x Wᵀ` like [`Self::dense_product`], with a packed weight.
    fn packed_product(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self>;

    /// Computes `x Wᵀ + b` like [`Self::dense_product_with_bias`], with a packed weight.
    fn packed_product_with_bias(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self>;

    /// Dequantises the rows of a packed weight that have the given numbers: takes `[n]` and returns `[n, d_in]` in F32.
    fn packed_rows(
        numbers: IntTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        shape: PackedShape,
    ) -> FloatTensor<Self>;

    /// Computes the RMS norm `x / √(mean(x²) + eps) · weight` over the last axis, which has the length of `weight`.
    fn rms_norm(input: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self>;

    /// Applies rotary embeddings, `x cos + rotate_half(x) sin`, to `[batch, heads, seq, head_dim]`. The tables are
    /// `[batch, 1, seq, head_dim]`.
    fn rotate(states: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Computes `silu(gate) · up`. Both inputs have the same shape.
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Computes attention of one query per row, `[batch, heads, 1, head_dim]`, to keys and values
    /// `[batch, kv_heads, len, head_dim]`, which may be views of a larger cache.
    fn decode_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Computes attention like [`Self::decode_attention`], with a `mask`, `[batch, 1, 1, len]`, that hides keys.
    fn decode_attention_masked(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: BoolTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Computes attention of many queries, `[batch, heads, queries, head_dim]`, to keys and values
    /// `[batch, kv_heads, len, head_dim]`. Any input may be a view in which the values of a head are adjacent.
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        activations: Activations,
    ) -> FloatTensor<Self>;

    /// Computes attention like [`Self::attend`], with a `mask`, `[batch, 1, queries, len]`, that hides keys.
    fn attend_masked(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        activations: Activations,
    ) -> FloatTensor<Self>;

    /// Writes new keys or values, `new`, `[rows, kv_heads, tokens, head_dim]`, into the given slots, `[rows, tokens]`,
    /// of a paged cache, `states`, `[n_pages, kv_heads, page_len, head_dim]`. Writes in place if no other tensor shares
    /// the memory of the cache.
    fn write_pages(states: FloatTensor<Self>, new: FloatTensor<Self>, slots: Arc<[u32]>) -> FloatTensor<Self>;

    /// Computes attention of one query per row, `[rows, heads, 1, head_dim]`, to keys and values in pages,
    /// `[n_pages, kv_heads, page_len, head_dim]`.
    fn paged_attention(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        rows: Arc<[PagedRow]>,
    ) -> FloatTensor<Self>;

    /// Computes the layer norm `(x − mean(x)) / √(var(x) + eps) · weight + bias` over the last axis, which has the
    /// length of `weight`.
    fn layer_norm(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;

    /// Computes the tanh approximation of GELU, `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    fn gelu_tanh(input: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Computes the exact GELU, `x Φ(x)`, where Φ is the cumulative distribution function of the standard normal
    /// distribution.
    fn gelu(input: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Returns whether tensors of the device are in host memory, where the CPU kernels read them, and outside any autodiff
/// graph.
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub(crate) fn computes_on(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    let on_cpu = matches!(device.as_dispatch(), burn::backend::DispatchDevice::Flex(_));
    #[cfg(not(feature = "flex"))]
    let on_cpu = false;
    on_cpu
}

/// Returns the maximum size, in bytes, of the unused buffers that are kept for reuse; see [`buffer`].
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub(crate) fn kept_bytes(device: &Device) -> u64 {
    #[cfg(feature = "flex")]
    let bytes = if computes_on(device) { buffer::MAX_BYTES as u64 } else { 0 };
    #[cfg(not(feature = "flex"))]
    let bytes = 0;
    bytes
}

/// Returns whether the device has kernels that write in place to memory that several tensors share. Replayed steps need
/// such kernels.
#[cfg_attr(not(feature = "cube"), expect(unused_variables))]
pub(crate) fn shares_memory(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    let is_gpu = cube::computes_on(device);
    #[cfg(not(feature = "cube"))]
    let is_gpu = false;
    is_gpu
}

/// Returns whether tensors of the device are in host memory, inside an autodiff graph or not.
pub(crate) fn is_cpu(device: &Device) -> bool {
    computes_on(&device.clone().without_autodiff())
}

/// Returns whether the device can hold tensors of one-byte elements. GPUs may not support them.
pub(crate) fn reads_bytes(device: &Device) -> bool {
    is_cpu(device)
}

/// Returns whether the CPU kernels take these activations.
fn has_kernels<const D: usize>(activations: &Tensor<D>) -> bool {
    activations.dtype() == DType::F32 && computes_on(&activations.device())
}

/// Computes `x Wᵀ + b` on any device; see [`Kernels::dense_product`].
pub(crate) fn dense_product(rows: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    if has_kernels(&rows) {
        let (rows, weight) = (rows.into_dispatch(), weight.into_dispatch());
        return Tensor::from_dispatch(match bias {
            None => Dispatch::dense_product(rows, weight),
            Some(bias) => Dispatch::dense_product_with_bias(rows, weight, bias.into_dispatch()),
        });
    }
    #[cfg(feature = "autodiff")]
    if frozen::applies_to(&rows) && !weight.is_tracked() {
        return with_bias(frozen::dense_product(rows, weight), bias);
    }
    let dtype = rows.dtype();
    with_bias(rows.matmul(weight.cast(dtype).transpose()), bias)
}

/// Computes `x Wᵀ + b` with a packed weight; see [`Kernels::packed_product`]. Without a kernel, multiplies by the
/// weight that `dequantized` returns.
pub(crate) fn packed_product(
    rows: Tensor<2>,
    codes: Tensor<1, Int>,
    scales: Tensor<1>,
    bias: Option<Tensor<1>>,
    packing: Packing,
    dequantized: impl FnOnce() -> Tensor<2>,
) -> Tensor<2> {
    if has_kernels(&rows) {
        let (rows, codes, scales) = (rows.into_dispatch(), codes.into_dispatch(), scales.into_dispatch());
        return Tensor::from_dispatch(match bias {
            None => Dispatch::packed_product(rows, codes, scales, packing),
            Some(bias) => Dispatch::packed_product_with_bias(rows, codes, scales, bias.into_dispatch(), packing),
        });
    }
    #[cfg(any(feature = "cube", feature = "autodiff"))]
    let shape = PackedShape { format: packing.format, d_out: packing.d_out, d_in: rows.dims()[1] };
    #[cfg(feature = "cube")]
    if cube::computes_on(&rows.device()) && is_held_on(packing.format, &rows.device()) {
        return with_bias(cube::packed_product(rows, codes, scales, shape), bias);
    }
    #[cfg(feature = "autodiff")]
    if frozen::applies_to(&rows) && is_held_on(packing.format, &rows.device()) {
        return with_bias(frozen::packed_product(rows, codes, scales, shape), bias);
    }
    let dtype = rows.dtype();
    with_bias(rows.matmul(dequantized().cast(dtype).transpose()), bias)
}

/// Returns whether the device has kernels for a format. GPUs have none for GGUF blocks.
#[cfg(any(feature = "cube", feature = "autodiff"))]
pub(crate) fn is_held_on(format: PackedFormat, device: &Device) -> bool {
    !matches!(format, PackedFormat::Blocks(_)) || reads_bytes(device)
}

/// Dequantises rows of a packed weight; see [`Kernels::packed_rows`]. Without a kernel, takes rows of the weight that
/// `dequantized` returns.
pub(crate) fn packed_rows(
    numbers: Tensor<1, Int>,
    codes: Tensor<1, Int>,
    scales: Tensor<1>,
    shape: PackedShape,
    dequantized: impl FnOnce() -> Tensor<2>,
) -> Tensor<2> {
    if computes_on(&numbers.device()) {
        let (numbers, codes, scales) = (numbers.into_dispatch(), codes.into_dispatch(), scales.into_dispatch());
        return Tensor::from_dispatch(Dispatch::packed_rows(numbers, codes, scales, shape));
    }
    dequantized().select(0, numbers)
}

fn with_bias(output: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    match bias {
        None => output,
        Some(bias) => output + bias.unsqueeze(),
    }
}

/// Computes the RMS norm in f32; see [`Kernels::rms_norm`]. Without a kernel, rounds to the dtype of the input before
/// multiplying by the weight.
pub(crate) fn rms_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    if has_kernels(&input) {
        return Tensor::from_dispatch(Dispatch::rms_norm(input.into_dispatch(), weight.into_dispatch(), eps));
    }
    let dtype = input.dtype();
    let input = input.cast(DType::F32);
    let mean_square = input.clone().square().mean_dim(D - 1); // [.., 1]
    let normalized = input / (mean_square + eps).sqrt();
    normalized.cast(dtype) * weight.unsqueeze()
}

/// Applies rotary embeddings; see [`Kernels::rotate`].
pub(crate) fn rotate(states: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    if has_kernels(&states) {
        let (cos, sin) = (cos.into_dispatch(), sin.into_dispatch());
        return Tensor::from_dispatch(Dispatch::rotate(states.into_dispatch(), cos, sin));
    }
    let half = states.dims()[3] / 2;
    let first = states.clone().narrow(3, 0, half);
    let second = states.clone().narrow(3, half, half);
    let rotated_half = Tensor::cat(vec![-second, first], 3); // [batch, heads, seq, head_dim]
    states * cos + rotated_half * sin
}

/// Computes `silu(gate) · up`; see [`Kernels::swiglu`].
pub(crate) fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    if has_kernels(&gate) {
        return Tensor::from_dispatch(Dispatch::swiglu(gate.into_dispatch(), up.into_dispatch()));
    }
    activation::silu(gate) * up
}

/// Computes attention with a kernel; see [`Kernels::decode_attention`] and [`Kernels::attend`]. Returns `None` if there
/// is no kernel. The batch and query axes of the mask are broadcast if they have length 1.
pub(crate) fn attend(
    query: &Tensor<4>,
    key: &Tensor<4>,
    value: &Tensor<4>,
    mask: Option<&Tensor<4, Bool>>,
    activations: Activations,
) -> Option<Tensor<4>> {
    let states = [query, key, value];
    let ([batch, _, queries, head_dim], [_, kv_heads, len, _]) = (query.dims(), key.dims());
    let fits = [key, value].iter().all(|states| states.dims() == [batch, kv_heads, len, head_dim]);
    let has_one_mask = mask.is_none_or(|mask| mask.dims()[1] == 1);
    if !(fits && has_one_mask) {
        return None;
    }
    let mask = mask.map(|mask| mask.clone().expand([batch, 1, queries, len]));
    #[cfg(feature = "cube")]
    if cube::computes_on(&query.device()) {
        return cube::attend(states.map(Tensor::clone), mask);
    }
    if !states.into_iter().all(has_kernels) {
        return None;
    }
    let mask = mask.map(Tensor::into_dispatch);
    let [query, key, value] = states.map(|states| states.clone().into_dispatch());
    Some(Tensor::from_dispatch(match mask {
        None if queries == 1 => Dispatch::decode_attention(query, key, value),
        Some(mask) if queries == 1 => Dispatch::decode_attention_masked(query, key, value, mask),
        None => Dispatch::attend(query, key, value, activations),
        Some(mask) => Dispatch::attend_masked(query, key, value, mask, activations),
    }))
}

/// Writes the keys or values of one token per row into a slot of a cache; see [`cube::CubeKernels::write_slot`]. Every
/// tensor that shares the memory of `states` changes. Works only if [`shares_memory`] is true for the device.
///
/// # Panics
/// If shapes or dtypes do not match.
pub(crate) fn write_slot(states: Tensor<4>, new: Tensor<4>, slot: Tensor<1, Int>) -> Tensor<4> {
    let [batch, heads, _, head_dim] = states.dims();
    assert_eq!((new.dims(), slot.dims()), ([batch, heads, 1, head_dim], [1]), "expected a token per row and one slot");
    assert_eq!((new.dtype(), slot.dtype()), (states.dtype(), DType::I32), "expected the cache's dtype and an I32 slot");
    #[cfg(feature = "cube")]
    return cube::write_slot(states, new, slot);
    #[cfg(not(feature = "cube"))]
    unreachable!("only GPUs have kernels that write to shared memory");
}

/// Overwrites the values of `target`; see [`cube::CubeKernels::overwrite`]. Every tensor that shares the memory of
/// `target` changes. Works only if [`shares_memory`] is true for the device.
///
/// # Panics
/// If the lengths differ, or a tensor is not I32.
pub(crate) fn overwrite(target: Tensor<1, Int>, new: Tensor<1, Int>) -> Tensor<1, Int> {
    assert_eq!(target.dims(), new.dims(), "both tensors must have the same length");
    assert_eq!((target.dtype(), new.dtype()), (DType::I32, DType::I32), "both tensors must be I32");
    #[cfg(feature = "cube")]
    return cube::overwrite(target, new);
    #[cfg(not(feature = "cube"))]
    unreachable!("only GPUs have kernels that write to shared memory");
}

/// Writes new keys or values into pages; see [`Kernels::write_pages`].
pub(crate) fn write_pages(states: Tensor<4>, new: Tensor<4>, slots: &Arc<[u32]>) -> Tensor<4> {
    let [rows, _, tokens, _] = new.dims();
    assert_eq!(slots.len(), rows * tokens, "there must be one slot for each of {rows}x{tokens} tokens");
    let new = new.cast(states.dtype());
    if has_kernels(&states) {
        let (states, new) = (states.into_dispatch(), new.into_dispatch());
        return Tensor::from_dispatch(Dispatch::write_pages(states, new, slots.clone()));
    }
    slots.iter().enumerate().fold(states, |states, (index, slot)| {
        let (page, offset) = (*slot as usize / PAGE_LEN, *slot as usize % PAGE_LEN);
        let token = new.clone().slice(s![index / tokens, .., index % tokens, ..]); // [1, kv_heads, 1, head_dim]
        states.slice_assign(s![page, .., offset, ..], token)
    })
}

/// Computes attention to keys and values in pages; see [`Kernels::paged_attention`]. Without a kernel, copies the pages
/// of each row.
pub(crate) fn paged_attention(
    query: Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
    rows: &Arc<[PagedRow]>,
) -> Tensor<4> {
    if [&query, keys, values].into_iter().all(has_kernels) {
        let [query, keys, values] = [query, keys.clone(), values.clone()].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(Dispatch::paged_attention(query, keys, values, rows.clone()));
    }
    let n_pages = rows.iter().map(|row| row.seen.end.div_ceil(PAGE_LEN)).max().unwrap_or(0);
    let (mut pages, mut mask) = (Vec::new(), Vec::new());
    for row in rows.iter() {
        let used = row.seen.end.div_ceil(PAGE_LEN);
        pages.extend(row.pages[..used].iter().copied().chain(std::iter::repeat_n(0, n_pages - used)));
        mask.extend((0..n_pages * PAGE_LEN).map(|slot| match &row.attention_mask {
            _ if !row.seen.contains(&slot) => true,
            None => false,
            Some(mask) => !mask[slot - row.seen.start],
        }));
    }
    let mask = TensorData::new(mask, [rows.len(), 1, 1, n_pages * PAGE_LEN]);
    let mask = Tensor::<4, Bool>::from_data(mask, &query.device());
    let gather = |states: &Tensor<4>| gather_pages(states, &pages, rows.len()); // [rows, kv_heads, slots, head_dim]
    crate::attention(query, gather(keys), gather(values), Some(mask), Activations::F32)
}

/// Copies the pages of each row side by side: takes `[n_pages, kv_heads, page_len, head_dim]` and returns
/// `[rows, kv_heads, slots, head_dim]`. `pages` lists the same number of pages for each of the `n_rows` rows.
pub(crate) fn gather_pages(states: &Tensor<4>, pages: &[u32], n_rows: usize) -> Tensor<4> {
    let [_, kv_heads, page_len, head_dim] = states.dims();
    let per_row = pages.len() / n_rows;
    let pages: Vec<i32> = pages.iter().map(|&page| page as i32).collect();
    let pages = TensorData::new(pages, [n_rows * per_row]);
    let pages = Tensor::<1, Int>::from_data(pages, (&states.device(), DType::I32));
    let gathered: Tensor<5> = states.clone().select(0, pages).reshape([n_rows, per_row, kv_heads, page_len, head_dim]);
    gathered.swap_dims(1, 2).reshape([n_rows, kv_heads, per_row * page_len, head_dim])
}

/// Computes the layer norm in f32; see [`Kernels::layer_norm`].
pub(crate) fn layer_norm<const D: usize>(input: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<D> {
    let dtype = input.dtype();
    let (weight, bias) = (weight.cast(DType::F32), bias.cast(DType::F32));
    if has_kernels(&input) {
        let (weight, bias) = (weight.into_dispatch(), bias.into_dispatch());
        return Tensor::from_dispatch(Dispatch::layer_norm(input.into_dispatch(), weight, bias, eps));
    }
    burn::tensor::module::layer_norm(input.cast(DType::F32), weight, Some(bias), eps).cast(dtype)
}

/// Computes the tanh approximation of GELU; see [`Kernels::gelu_tanh`]. The identity ½ (1 + tanh u) = σ(2u) saves
/// passes over memory.
pub(crate) fn gelu_tanh<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    if has_kernels(&input) {
        return Tensor::from_dispatch(Dispatch::gelu_tanh(input.into_dispatch()));
    }
    let cubic = input.clone().square() * 0.044715 + 1.0;
    let argument = input.clone() * cubic * (2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    input * activation::sigmoid(argument)
}

/// Computes the exact GELU; see [`Kernels::gelu`].
pub(crate) fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    if has_kernels(&input) {
        return Tensor::from_dispatch(Dispatch::gelu(input.into_dispatch()));
    }
    activation::gelu(input)
}
