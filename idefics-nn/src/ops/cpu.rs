//! Runs the kernels of `idefics-kernels` on tensors of Burn's CPU backend.

use std::sync::Arc;

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{DType, Element};
use burn_flex::{Flex, FlexTensor, Layout};
use half::{bf16, f16};

use super::buffer::Buffer;
#[cfg(feature = "autodiff")]
use super::frozen::FrozenLinear;
use super::{Kernels, PackedShape, Packing};
use crate::profile::{Cost, timed};
use crate::{Activations, PackedFormat, PagedRow};
use idefics_kernels::formats::{Blocks, Dense, FourBit, Int4, Int8, Q4, Weight};
use idefics_kernels::{self as kernels, Attention, ComputeUnit, DecodeAttention, PagedAttention, StridedView};

impl Kernels for Flex {
    fn dense_product(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        dense_product(&rows, &weight, None)
    }

    fn dense_product_with_bias(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        dense_product(&rows, &weight, Some(&bias))
    }

    fn packed_product(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        packed_product(&rows, [&codes, &scales], None, packing)
    }

    fn packed_product_with_bias(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        packed_product(&rows, [&codes, &scales], Some(&bias), packing)
    }

    fn packed_rows(
        numbers: IntTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        shape: PackedShape,
    ) -> FloatTensor<Self> {
        packed_rows(&numbers.to_contiguous(), [&codes, &scales], shape)
    }

    fn rms_norm(input: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        let (input, weight) = (input.to_contiguous(), weight.to_contiguous());
        let mut out = buffer_like(&input);
        timed("rms norm", elementwise(out.len(), 2), || {
            kernels::rms_norm(elements(&input), elements(&weight), eps as f32, &mut out);
        });
        out.into_tensor(input.layout().shape())
    }

    fn rotate(states: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        let [batch, heads, seq, head_dim] = dims(&states);
        let tokens = swap_heads_and_tokens(states); // [batch, seq, heads, head_dim], as the projection returned it
        let (cos, sin) = (cos.to_contiguous(), sin.to_contiguous()); // [batch, 1, seq, head_dim]
        swap_heads_and_tokens(in_place(tokens, |states| {
            timed("rotary positions", elementwise(states.len(), 2), || {
                kernels::rope(states, [batch * seq, heads, head_dim], elements(&cos), elements(&sin));
            });
        }))
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let up = up.to_contiguous();
        in_place(gate, |gate| timed("swiglu", elementwise(gate.len(), 3), || kernels::swiglu(gate, elements(&up))))
    }

    fn decode_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        decode_attention(&query.to_contiguous(), key, value, None)
    }

    fn decode_attention_masked(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: BoolTensor<Self>,
    ) -> FloatTensor<Self> {
        let mask = mask.to_contiguous();
        let seen: Vec<bool> = elements::<u8>(&mask).iter().map(|&hidden| hidden == 0).collect();
        decode_attention(&query.to_contiguous(), key, value, Some(&seen))
    }

    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        activations: Activations,
    ) -> FloatTensor<Self> {
        attend(query, key, value, None, activations)
    }

    fn attend_masked(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        activations: Activations,
    ) -> FloatTensor<Self> {
        let mask = mask.to_contiguous();
        let mask = bytemuck::checked::cast_slice(elements::<u8>(&mask));
        attend(query, key, value, Some(mask), activations)
    }

    fn write_pages(states: FloatTensor<Self>, new: FloatTensor<Self>, slots: Arc<[u32]>) -> FloatTensor<Self> {
        let ([_, _, page_len, _], [_, kv_heads, tokens, head_dim]) = (dims(&states), dims(&new));
        let new = with_whole_heads(new);
        let sizes = [tokens, kv_heads, head_dim];
        in_place(states, |states| kernels::write_slots(cached(&new), sizes, &slots, page_len, states))
    }

    fn paged_attention(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        rows: Arc<[PagedRow]>,
    ) -> FloatTensor<Self> {
        paged_attention(&query.to_contiguous(), &keys.to_contiguous(), &values.to_contiguous(), &rows)
    }

    fn layer_norm(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let (input, weight, bias) = (input.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let mut out = buffer_like(&input);
        timed("layer norm", elementwise(out.len(), 2), || {
            kernels::layer_norm(elements(&input), elements(&weight), elements(&bias), eps as f32, &mut out);
        });
        out.into_tensor(input.layout().shape())
    }

    fn gelu_tanh(input: FloatTensor<Self>) -> FloatTensor<Self> {
        in_place(input, |values| timed("gelu", elementwise(values.len(), 2), || kernels::gelu_tanh(values)))
    }

    fn gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        in_place(input, |values| timed("gelu", elementwise(values.len(), 2), || kernels::gelu(values)))
    }
}

/// Changes every value of a tensor: in place if the tensor is not shared, which is the usual case, and otherwise in a
/// copy.
fn in_place(mut input: FlexTensor, change: impl FnOnce(&mut [f32])) -> FlexTensor {
    let is_whole = |input: &FlexTensor| {
        let layout = input.layout();
        layout.is_contiguous() && layout.start_offset() == 0 && layout.num_elements() * 4 == input.bytes().len()
    };
    if !is_whole(&input) {
        input = input.to_contiguous(); // a second handle to the old values would count as shared
    }
    if is_whole(&input)
        && let Some(values) = input.try_storage_mut::<f32>()
    {
        change(values);
        return input;
    }
    let mut out = copy(&input);
    change(&mut out);
    out.into_tensor(input.layout().shape())
}

fn dense_product(rows: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> FlexTensor {
    product(rows, &dense_view(&weight.to_contiguous()), bias, Activations::F32)
}

/// Returns a contiguous dense weight in the form that the kernels take.
fn dense_view(weight: &FlexTensor) -> Weight<'_> {
    let [d_out, d_in] = dims(weight);
    let view = match weight.dtype() {
        DType::F32 => Dense::new(elements::<f32>(weight), d_out, d_in).map(Weight::from),
        DType::BF16 => Dense::new(elements::<bf16>(weight), d_out, d_in).map(Weight::from),
        DType::F16 => Dense::new(elements::<f16>(weight), d_out, d_in).map(Weight::from),
        other => panic!("weights must be F32, BF16 or F16, not {other:?}"),
    };
    view.expect("the number of elements matches the shape")
}

fn packed_product(
    rows: &FlexTensor,
    [codes, scales]: [&FlexTensor; 2],
    bias: Option<&FlexTensor>,
    Packing { format, activations, d_out }: Packing,
) -> FlexTensor {
    let [_, d_in] = dims(rows);
    product(rows, &packed_view([codes, scales], PackedShape { format, d_out, d_in }), bias, activations)
}

/// Returns codes and scales in the form that the kernels take.
fn packed_view([codes, scales]: [&FlexTensor; 2], shape: PackedShape) -> Weight<'_> {
    let PackedShape { format, d_out, d_in } = shape;
    let dims = [d_out, d_in];
    // The scales are not checked here: they were checked when they were loaded.
    let view = match format {
        PackedFormat::Int8 => Int8::from_parts(elements(codes).into(), elements(scales).into(), dims).map(Weight::from),
        PackedFormat::FourBit(kind) => {
            FourBit::from_parts(kind, elements(codes).into(), elements(scales).into(), dims).map(Weight::from)
        }
        PackedFormat::Q4 => Q4::from_parts(elements(codes).into(), elements(scales).into(), dims).map(Weight::from),
        PackedFormat::Int4 { group } => {
            Int4::from_parts(elements(codes).into(), elements(scales).into(), group, dims).map(Weight::from)
        }
        PackedFormat::Blocks(kind) => Blocks::new(kind, elements::<u8>(codes), d_out, d_in).map(Weight::from),
    };
    view.expect("codes and scales must have the sizes that the format requires")
}

fn packed_rows(numbers: &FlexTensor, parts: [&FlexTensor; 2], shape: PackedShape) -> FlexTensor {
    let (weight, d_in) = (packed_view(parts, shape), shape.d_in);
    let [n] = dims(numbers);
    let mut out = Buffer::new(n * d_in);
    let number = |index: usize| match numbers.dtype() {
        DType::I64 => elements::<i64>(numbers)[index],
        DType::I32 => i64::from(elements::<i32>(numbers)[index]),
        other => panic!("row numbers must be I64 or I32, not {other:?}"),
    };
    timed("embeddings", elementwise(n * d_in, 2), || {
        for (index, out) in out.chunks_exact_mut(d_in.max(1)).enumerate() {
            let row = usize::try_from(number(index)).expect("row numbers are not negative");
            weight.dequantize_rows(row..row + 1, out);
        }
    });
    out.into_tensor(&[n, d_in].into())
}

fn product(rows: &FlexTensor, weight: &Weight<'_>, bias: Option<&FlexTensor>, activations: Activations) -> FlexTensor {
    let (rows, bias) = (rows.to_contiguous(), bias.map(FlexTensor::to_contiguous));
    let ([n_rows, _], [d_out, _]) = (dims(&rows), weight.dims());
    let mut out = Buffer::new(n_rows * d_out);
    let (x, bias) = (elements(&rows), bias.as_ref().map(elements));
    // With few rows, the time is spent on reading the weight, not on arithmetic.
    let is_gemv = n_rows <= kernels::MAX_GEMV_ROWS;
    let cost = Cost {
        operations: 2.0 * n_rows as f64 * d_out as f64 * weight.dims()[1] as f64,
        bytes: (weight.bytes() + size_of_val(x) + size_of_val(&*out)) as f64,
        arithmetic: kernels::compute_unit(n_rows, weight, activations),
    };
    let name = if is_gemv { "product of few rows" } else { "product of many rows" };
    timed(name, cost, || {
        // With few rows, only GGUF blocks use rounded activations. With other formats, rounding would save no time.
        let is_rounded = activations == Activations::Int8
            && (!is_gemv || matches!(weight, Weight::Blocks(_)))
            && kernels::linear_int8(x, n_rows, weight, bias, &mut out).is_some();
        if !is_rounded {
            kernels::linear(x, n_rows, weight, bias, &mut out);
        }
    });
    out.into_tensor(&[n_rows, d_out].into())
}

#[cfg(feature = "autodiff")]
impl FrozenLinear for Flex {
    fn frozen_product(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        dense_product(&rows, &weight, None)
    }

    fn frozen_product_transposed(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        product_transposed(&rows, &dense_view(&weight.to_contiguous()))
    }

    fn frozen_packed_product(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        shape: PackedShape,
    ) -> FloatTensor<Self> {
        product(&rows, &packed_view([&codes, &scales], shape), None, Activations::F32)
    }

    fn frozen_packed_product_transposed(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        shape: PackedShape,
    ) -> FloatTensor<Self> {
        product_transposed(&rows, &packed_view([&codes, &scales], shape))
    }
}

/// Computes `y W`: takes `[n_rows, d_out]` and returns `[n_rows, d_in]`.
#[cfg(feature = "autodiff")]
fn product_transposed(rows: &FlexTensor, weight: &Weight<'_>) -> FlexTensor {
    let rows = rows.to_contiguous();
    let ([n_rows, _], [d_out, d_in]) = (dims(&rows), weight.dims());
    let mut out = Buffer::new(n_rows * d_in);
    let cost = Cost {
        operations: 2.0 * n_rows as f64 * d_out as f64 * d_in as f64,
        bytes: (weight.bytes() + size_of_val(elements::<f32>(&rows)) + size_of_val(&*out)) as f64,
        arithmetic: Some((ComputeUnit::Vectors, 1.0)),
    };
    timed("product with a transposed weight", cost, || {
        kernels::linear_transposed(elements(&rows), n_rows, weight, &mut out);
    });
    out.into_tensor(&[n_rows, d_in].into())
}

/// Returns the cost of reading or writing `n` values `passes` times.
fn elementwise(n: usize, passes: usize) -> Cost {
    Cost { bytes: (passes * n * size_of::<f32>()) as f64, ..Cost::default() }
}

/// Returns the cost of attention. `seen` is the number of (query, visible key) pairs per head.
fn attention_cost([batch, heads, queries, head_dim]: [usize; 4], [kv_heads, len]: [usize; 2], seen: usize) -> Cost {
    let values = 2 * batch * head_dim * (kv_heads * len + heads * queries);
    Cost {
        operations: 4.0 * heads as f64 * seen as f64 * head_dim as f64,
        bytes: (values * size_of::<f32>()) as f64,
        arithmetic: Some((ComputeUnit::Vectors, 1.0)),
    }
}

/// Computes attention of one query per row. `seen` is `[batch, len]`, true where the key is visible.
fn decode_attention(query: &FlexTensor, key: FlexTensor, value: FlexTensor, seen: Option<&[bool]>) -> FlexTensor {
    let ([batch, heads, _, head_dim], [_, kv_heads, len, _]) = (dims(query), dims(&key));
    let [key, value] = [key, value].map(with_whole_heads);
    let mut out = buffer_like(query);
    let attention = DecodeAttention {
        query: elements(query),
        keys: cached(&key),
        values: cached(&value),
        batch,
        heads,
        kv_heads,
        len,
        head_dim,
        attention_mask: seen,
        scale: 1.0 / (head_dim as f32).sqrt(),
    };
    let pairs = seen.map_or(batch * len, |seen| seen.iter().filter(|seen| **seen).count());
    timed("attention of one query", attention_cost(dims(query), [kv_heads, len], pairs), || {
        kernels::decode_attention(&attention, &mut out);
    });
    out.into_tensor(query.layout().shape())
}

/// Computes attention of one query per row to `keys` and `values`, `[n_pages, kv_heads, page_len, head_dim]` each.
fn paged_attention(query: &FlexTensor, keys: &FlexTensor, values: &FlexTensor, rows: &[PagedRow]) -> FlexTensor {
    let ([_, heads, _, head_dim], [_, kv_heads, page_len, _]) = (dims(query), dims(keys));
    let views: Vec<kernels::PagedRow<'_>> = rows
        .iter()
        .map(|PagedRow { pages, seen, attention_mask }| kernels::PagedRow {
            pages,
            seen: seen.clone(),
            attention_mask: attention_mask.as_deref(),
        })
        .collect();
    let attention = PagedAttention {
        query: elements(query),
        keys: elements(keys),
        values: elements(values),
        rows: &views,
        heads,
        kv_heads,
        page_len,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
    };
    let pairs: usize = rows.iter().map(|row| row.seen.len()).sum();
    let mut out = buffer_like(query);
    timed("attention of one query", attention_cost([1, heads, 1, head_dim], [kv_heads, pairs], pairs), || {
        kernels::paged_attention(&attention, &mut out);
    });
    out.into_tensor(query.layout().shape())
}

/// Computes attention of many queries. `mask` is `[batch, queries, len]`, true where the key is hidden.
fn attend(
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    mask: Option<&[bool]>,
    activations: Activations,
) -> FlexTensor {
    let ([batch, heads, queries, head_dim], [_, kv_heads, len, _]) = (dims(&query), dims(&key));
    let [query, key, value] = [query, key, value].map(with_whole_heads);
    let attention = Attention {
        query: cached(&query),
        keys: cached(&key),
        values: cached(&value),
        batch,
        heads,
        kv_heads,
        queries,
        len,
        head_dim,
        mask,
        scale: 1.0 / (head_dim as f32).sqrt(),
        activations,
    };
    let mut out = buffer_like(&query);
    let hidden = mask.map_or(0, |mask| mask.iter().filter(|hidden| **hidden).count());
    let cost = attention_cost(dims(&query), [kv_heads, len], batch * queries * len - hidden);
    let cost = Cost { arithmetic: Some(attention.compute_unit()), ..cost };
    timed("attention of many queries", cost, || {
        kernels::attend(&attention, &mut out); // [batch, queries, heads, head_dim]
    });
    let token = heads * head_dim;
    let strides = [queries * token, head_dim, token, 1].map(usize::cast_signed).to_vec();
    out.into_tensor_with(Layout::new(query.layout().shape().clone(), strides, 0))
}

/// Turns `[batch, heads, tokens, head_dim]` into `[batch, tokens, heads, head_dim]`, and the reverse, without a copy.
fn swap_heads_and_tokens(states: FlexTensor) -> FlexTensor {
    let layout = states.layout().transpose(1, 2);
    // The old handle is dropped here, so that the values do not count as shared.
    FlexTensor::from_arc(states.data_arc(), layout, states.dtype())
}

/// Returns the states unchanged if no axis is flipped and the values of a head are adjacent, as in a cache. Copies
/// other states, so that they are contiguous.
fn with_whole_heads(states: FlexTensor) -> FlexTensor {
    let strides = states.layout().strides();
    if strides[3] == 1 && strides.iter().all(|stride| *stride >= 0) { states } else { states.to_contiguous() }
}

/// Returns a view of states that [`with_whole_heads`] has prepared.
fn cached(states: &FlexTensor) -> StridedView<'_> {
    let layout = states.layout();
    let strides = [0, 1, 2].map(|axis| usize::try_from(layout.strides()[axis]).expect("no axis is flipped"));
    StridedView { values: &states.storage::<f32>()[layout.start_offset()..], strides }
}

fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    std::array::from_fn(|axis| tensor.layout().shape()[axis])
}

/// Returns the elements of a contiguous tensor.
fn elements<E: Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    let start = tensor.layout().start_offset();
    &tensor.storage::<E>()[start..start + tensor.layout().num_elements()]
}

/// Creates a buffer with room for the values of a tensor.
fn buffer_like(tensor: &FlexTensor) -> Buffer {
    Buffer::new(tensor.layout().num_elements())
}

/// Copies the values of a contiguous tensor to a buffer.
fn copy(tensor: &FlexTensor) -> Buffer {
    let mut out = buffer_like(tensor);
    out.copy_from_slice(elements(tensor));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a new tensor with the values 0, 1, 2 and so on.
    fn tensor(shape: &[usize]) -> FlexTensor {
        let mut values = Buffer::new(shape.iter().product());
        values.iter_mut().enumerate().for_each(|(index, value)| *value = index as f32);
        values.into_tensor(&shape.to_vec().into())
    }

    fn address(tensor: &FlexTensor) -> *const f32 {
        tensor.storage::<f32>().as_ptr()
    }

    #[test]
    fn tensors_that_are_not_shared_are_changed_in_place() {
        let gate = tensor(&[2, 6]);
        let place = address(&gate);
        assert_eq!(address(&Flex::swiglu(gate, tensor(&[2, 6]))), place);

        let projected = tensor(&[2, 5, 3, 4]); // [batch, tokens, heads, head_dim]
        let place = address(&projected);
        let rotated = Flex::rotate(swap_heads_and_tokens(projected), tensor(&[2, 1, 5, 4]), tensor(&[2, 1, 5, 4]));
        assert_eq!((address(&rotated), dims(&rotated)), (place, [2, 3, 5, 4]));

        let pages = tensor(&[3, 2, 8, 4]);
        let place = address(&pages);
        assert_eq!(address(&Flex::write_pages(pages, tensor(&[1, 2, 1, 4]), [9].into())), place);
    }

    #[test]
    fn shared_tensors_and_parts_of_tensors_are_copied() {
        let gate = tensor(&[2, 6]);
        let shared = gate.clone();
        let changed = Flex::swiglu(gate, tensor(&[2, 6]));
        assert_ne!(address(&changed), address(&shared));
        assert_eq!(elements::<f32>(&shared)[3], 3.0);

        let part = tensor(&[4, 6]).narrow(0, 1, 2);
        let changed = Flex::swiglu(part, tensor(&[2, 6]));
        assert_eq!(dims(&changed), [2, 6]);
        assert_eq!(changed.bytes().len(), 12 * size_of::<f32>());
    }
}
