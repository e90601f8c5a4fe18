//! The kernels on tensors of Burn's CPU backend.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{Bytes, DType, Element};
use burn_flex::{Flex, FlexTensor, Layout};
use half::{bf16, f16};

use super::Kernels;
use crate::PackedFormat;
use crate::formats::{Dense, FormatError, FourBit, Int8, Q4, Weight};
use crate::kernels::{self, Cached, DecodeAttention};

impl Kernels for Flex {
    fn dense_product(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let weight = weight.to_contiguous();
        let [d_out, d_in] = dims(&weight);
        let view = match weight.dtype() {
            DType::F32 => Dense::new(elements::<f32>(&weight), d_out, d_in).map(Weight::from),
            DType::BF16 => Dense::new(elements::<bf16>(&weight), d_out, d_in).map(Weight::from),
            DType::F16 => Dense::new(elements::<f16>(&weight), d_out, d_in).map(Weight::from),
            other => panic!("weights are F32, BF16 or F16, not {other:?}"),
        };
        product(&rows, view)
    }

    fn packed_product(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        format: PackedFormat,
        d_out: usize,
    ) -> FloatTensor<Self> {
        let [_, d_in] = dims(&rows);
        let dims = [d_out, d_in];
        // The scales were looked at when they were read.
        let view = match format {
            PackedFormat::Int8 => {
                Int8::from_parts(elements(&codes).into(), elements(&scales).into(), dims).map(Weight::from)
            }
            PackedFormat::FourBit(kind) => {
                FourBit::from_parts(kind, elements(&codes).into(), elements(&scales).into(), dims).map(Weight::from)
            }
            PackedFormat::Q4 => {
                Q4::from_parts(elements(&codes).into(), elements(&scales).into(), dims).map(Weight::from)
            }
        };
        product(&rows, view)
    }

    fn rms_norm(input: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        let (input, weight) = (input.to_contiguous(), weight.to_contiguous());
        let mut out = zeros_like(&input);
        kernels::rms_norm(elements(&input), elements(&weight), eps as f32, &mut out);
        tensor(out, input.layout().shape())
    }

    fn rotate(states: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        let (states, cos, sin) = (states.to_contiguous(), cos.to_contiguous(), sin.to_contiguous());
        let mut out = elements::<f32>(&states).to_vec();
        kernels::rope(&mut out, dims(&states), elements(&cos), elements(&sin));
        tensor(out, states.layout().shape())
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (mut gate, up) = (gate.to_contiguous(), up.to_contiguous());
        // In place if nobody else holds it, which is the rule.
        let is_whole = gate.layout().start_offset() == 0 && gate.layout().num_elements() * 4 == gate.bytes().len();
        if is_whole && let Some(values) = gate.try_storage_mut::<f32>() {
            kernels::swiglu(values, elements(&up));
            return gate;
        }
        let mut out = elements::<f32>(&gate).to_vec();
        kernels::swiglu(&mut out, elements(&up));
        tensor(out, gate.layout().shape())
    }

    fn attend_once(query: FloatTensor<Self>, key: FloatTensor<Self>, value: FloatTensor<Self>) -> FloatTensor<Self> {
        attend(&query.to_contiguous(), key, value, None)
    }

    fn attend_once_masked(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        masked_out: BoolTensor<Self>,
    ) -> FloatTensor<Self> {
        let masked_out = masked_out.to_contiguous();
        let seen: Vec<bool> = elements::<u8>(&masked_out).iter().map(|&hidden| hidden == 0).collect();
        attend(&query.to_contiguous(), key, value, Some(&seen))
    }
}

fn product(rows: &FlexTensor, weight: Result<Weight<'_>, FormatError>) -> FlexTensor {
    let weight = weight.expect("tensors have the sizes that their format asks for");
    let rows = rows.to_contiguous();
    let ([n_rows, _], [d_out, _]) = (dims(&rows), weight.dims());
    let mut out = vec![0f32; n_rows * d_out];
    kernels::linear(elements(&rows), n_rows, &weight, None, &mut out);
    tensor(out, &[n_rows, d_out].into())
}

/// `seen`: `[batch, len]`.
fn attend(query: &FlexTensor, key: FlexTensor, value: FlexTensor, seen: Option<&[bool]>) -> FlexTensor {
    let ([batch, heads, _, head_dim], [_, kv_heads, len, _]) = (dims(query), dims(&key));
    let [key, value] = [key, value].map(with_whole_heads);
    let mut out = zeros_like(query);
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
    kernels::decode_attention(&attention, &mut out);
    tensor(out, query.layout().shape())
}

/// The states as they lie if nothing is flipped and the values of a head are side by side, as in a cache; else a copy.
fn with_whole_heads(states: FlexTensor) -> FlexTensor {
    let strides = states.layout().strides();
    if strides[3] == 1 && strides.iter().all(|stride| *stride >= 0) { states } else { states.to_contiguous() }
}

/// A view of what [`with_whole_heads`] gave.
fn cached(states: &FlexTensor) -> Cached<'_> {
    let layout = states.layout();
    let strides = [0, 1, 2].map(|axis| usize::try_from(layout.strides()[axis]).expect("nothing is flipped"));
    Cached { values: &states.storage::<f32>()[layout.start_offset()..], strides }
}

fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    std::array::from_fn(|axis| tensor.layout().shape()[axis])
}

/// The elements of a contiguous tensor.
fn elements<E: Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    let start = tensor.layout().start_offset();
    &tensor.storage::<E>()[start..start + tensor.layout().num_elements()]
}

fn zeros_like(tensor: &FlexTensor) -> Vec<f32> {
    vec![0.0; tensor.layout().num_elements()]
}

fn tensor(values: Vec<f32>, shape: &burn::tensor::Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.clone()), DType::F32)
}
