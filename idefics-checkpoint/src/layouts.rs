//! Converts quantised weights to the tensors that represent them in a file.

use half::bf16;
use idefics_kernels::formats::{FormatError, FourBit, Int4, Int8, NestedAbsmax, Q4, dynamic_map};
use safetensors::Dtype;

use crate::stored::{group_name, order_name, quant_state_name, scales_name};
use crate::{NamedTensor, QuantDtype, QuantState};

/// Converts an int8 weight named `name` (`X.weight`) to tensors: the codes as `X.weight`, `[d_out, d_in]`, and one
/// scale per row as `X.weight.scales`, `[d_out]`.
pub fn int8_tensors(name: &str, weight: Int8<'_>) -> Vec<NamedTensor<'static>> {
    let [d_out, d_in] = weight.dims();
    let (codes, scales) = weight.into_parts();
    let codes = codes.into_iter().map(i8::cast_unsigned).collect();
    vec![
        NamedTensor::new(name.to_owned(), Dtype::I8, [d_out, d_in], codes),
        NamedTensor::floats(scales_name(name), &scales),
    ]
}

/// Converts a q4 weight named `name` (`X.weight`) to tensors: the codes as `X.weight` and the scales as
/// `X.weight.scales`, both flat and in the order of [`Q4`].
pub fn q4_tensors(name: &str, weight: Q4<'_>) -> Vec<NamedTensor<'static>> {
    let (codes, scales) = weight.into_parts();
    let scale_bytes = scales.iter().flat_map(|scale: &bf16| scale.to_le_bytes()).collect();
    vec![
        NamedTensor::new(name.to_owned(), Dtype::U8, [codes.len()], codes),
        NamedTensor::new(scales_name(name), Dtype::BF16, [scales.len()], scale_bytes),
    ]
}

/// Converts an int4 weight named `name` (`X.weight`) to tensors in this project's own layout: the codes as `X.weight`,
/// the scales and zero points as `X.weight.scales`, both in the order of [`Int4`], and the number of columns per group
/// as `X.weight.group`. `order` holds the input of each column, and is stored as `X.weight.order`.
pub fn int4_tensors(name: &str, weight: Int4<'_>, order: Option<&[i32]>) -> Vec<NamedTensor<'static>> {
    let ([d_out, d_in], group) = (weight.dims(), weight.group().get());
    let group = i64::try_from(group.min(d_in.max(1))).expect("group sizes of weights in memory fit into i64");
    let (codes, scales) = weight.into_parts();
    let mut tensors = vec![
        NamedTensor::new(name.to_owned(), Dtype::U8, [d_out, d_in.div_ceil(2)], codes.into_owned()),
        NamedTensor::floats(scales_name(name), &scales),
        NamedTensor::new(group_name(name), Dtype::I64, [1], group.to_le_bytes().to_vec()),
    ];
    if let Some(order) = order {
        let bytes = order.iter().flat_map(|input| input.to_le_bytes()).collect();
        tensors.push(NamedTensor::new(order_name(name), Dtype::I32, [order.len()], bytes));
    }
    tensors
}

/// Converts a four-bit weight to tensors in the layout of bitsandbytes: codes, `absmax`, `quant_map` and `quant_state`.
/// With `double_quant`, the scales are stored in eight bits. `dtype` is the type of the weight before it was quantised.
///
/// Source: bitsandbytes 0.50.2, `QuantState.as_dict(packed=True)`.
///
/// # Errors
/// [`FormatError::Scale`] if a scale cannot be quantised.
pub fn four_bit_tensors(
    name: &str,
    weight: FourBit<'_>,
    dtype: QuantDtype,
    double_quant: bool,
) -> Result<Vec<NamedTensor<'static>>, FormatError> {
    let (kind, dims) = (weight.kind(), weight.dims());
    let (codes, absmax) = weight.into_parts();
    let named = |part: &str| format!("{name}.{part}");
    let mut parts = vec![
        NamedTensor::new(name.to_owned(), Dtype::U8, [codes.len(), 1], codes),
        NamedTensor::floats(named("quant_map"), kind.table()),
    ];
    let mut state = QuantState { kind, dims, dtype, nested_offset: None };
    if double_quant {
        let nested = NestedAbsmax::quantize(&absmax)?;
        state.nested_offset = Some(nested.offset);
        parts.push(NamedTensor::floats(named("nested_absmax"), &nested.nested_absmax));
        parts.push(NamedTensor::floats(named("nested_quant_map"), &dynamic_map()));
        parts.push(NamedTensor::new(named("absmax"), Dtype::U8, [nested.codes.len()], nested.codes));
    } else {
        parts.push(NamedTensor::floats(named("absmax"), &absmax));
    }
    let state = state.to_bytes();
    parts.push(NamedTensor::new(quant_state_name(name, kind), Dtype::U8, [state.len()], state));
    Ok(parts)
}
