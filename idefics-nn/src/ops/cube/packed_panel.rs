//! Dequantises packed weights.

#![allow(unsafe_code)] // kernels run without bounds checks; each launch says why that is safe
#![allow(clippy::too_many_arguments)] // a kernel takes its arguments one by one

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{Panel, empty_on_device_of};
use crate::PackedFormat;
use idefics_kernels::formats::{BLOCK, Q4_BLOCK, Q4_PANEL, Q4_TABLE};

/// Number of units per cube.
const UNITS: u32 = 256;

/// Returns the sixteen values of a four-bit format, in units of the scale. Other formats need no table and get zeros.
pub(super) fn table(format: PackedFormat) -> [f32; 16] {
    match format {
        PackedFormat::Int8 | PackedFormat::Blocks(_) => [0.0; 16],
        PackedFormat::Int4 { .. } => std::array::from_fn(|code| code as f32),
        PackedFormat::FourBit(kind) => *kind.table(),
        PackedFormat::Q4 => Q4_TABLE.map(f32::from),
    }
}

/// Writes the table of a format to shared memory. The caller must synchronise the cube afterwards.
#[cube]
pub(super) fn write_table(table: &mut Shared<[f32]>, #[comptime] format: PackedFormat) {
    #[unroll]
    for code in 0..16usize {
        if UNIT_POS == comptime!(code as u32) {
            table[code] = f32::new(comptime!(self::table(format)[code]));
        }
    }
}

/// Decodes the code that starts at bit `shift` of a word. The result is in units of the scale.
#[cube]
pub(super) fn decode(word: u32, shift: u32, table: &Shared<[f32]>, #[comptime] format: PackedFormat) -> f32 {
    match comptime!(format) {
        PackedFormat::Int8 => f32::cast_from(((word >> shift) & 255) ^ 128) - 128.0, // converts two's complement
        _ => table[((word >> shift) & 15) as usize],
    }
}

/// Dequantises a panel, with one unit per value.
#[cube(launch_unchecked)]
fn expand<F: Float>(
    codes: &[u32],
    scales: &[f32],
    panel: &mut [F], // [count, d_in]
    first: usize,
    n_values: usize,
    d_in: usize,
    #[comptime] format: PackedFormat,
    #[define(F)] _dtype: ElemType,
) {
    let mut table = Shared::<[f32]>::new_slice(16usize);
    write_table(&mut table, format);
    sync_cube();
    let at = ABSOLUTE_POS;
    if at < n_values {
        let (row, column) = (first + at / d_in, at % d_in);
        let value = match comptime!(format) {
            PackedFormat::Int8 => {
                let flat = row * d_in + column;
                let shift = (8 * (flat % 4)) as u32;
                decode(codes[flat / 4], shift, &table, format) * scales[row]
            }
            PackedFormat::FourBit(_) => {
                let flat = row * d_in + column;
                // The first code of a byte is in its high half.
                let shift = (4 * ((flat % 8) ^ 1)) as u32;
                decode(codes[flat / 8], shift, &table, format) * scales[flat / comptime!(BLOCK)]
            }
            PackedFormat::Int4 { group } => {
                let byte = row * d_in.div_ceil(2) + column / 2;
                let shift = (8 * (byte % 4) + 4 * (column % 2)) as u32;
                let group = comptime!(group.get());
                let pair = 2 * (row * d_in.div_ceil(group) + column / group);
                (decode(codes[byte / 4], shift, &table, format) - scales[pair + 1]) * scales[pair]
            }
            // The format is Q4, because GGUF blocks do not reach these kernels.
            _ => {
                let blocks = d_in.div_ceil(comptime!(Q4_BLOCK));
                let tile = row / comptime!(Q4_PANEL) * blocks + column / comptime!(Q4_BLOCK);
                let (lane, within) = (row % comptime!(Q4_PANEL), column % comptime!(Q4_BLOCK));
                let word = (tile * 4 + within % 16 / 4) * comptime!(Q4_PANEL) + lane;
                let shift = (8 * (within % 4) + 4 * (within / 16)) as u32;
                decode(codes[word], shift, &table, format) * scales[tile * comptime!(Q4_PANEL) + lane]
            }
        };
        panel[at] = F::cast_from(value);
    }
}

pub(super) fn launch(codes: CubeTensor, scales: CubeTensor, panel: Panel) -> CubeTensor {
    let Panel { weight, first, count, dtype } = panel;
    let (codes, scales) = (into_contiguous(codes), into_contiguous(scales));
    let output = empty_on_device_of(&codes, [count, weight.d_in], dtype);
    let n_values = count * weight.d_in;
    let dim = CubeDim::new_1d(UNITS);
    let cubes = calculate_cube_count_elemwise(&output.client, n_values, dim);
    // SAFETY: units past `n_values` do nothing. Every value before `n_values` has a code and a scale: the panel lies
    // within the weight, and `PackedWeight::parts` has checked the numbers of codes and scales.
    unsafe {
        expand::launch_unchecked(
            &output.client,
            cubes,
            dim,
            codes.into_buffer_arg(),
            scales.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            first,
            n_values,
            weight.d_in,
            weight.format,
            dtype_to_storage_type(dtype),
        );
    }
    output
}
