//! The product of a few rows of activations with a packed weight. Codes are read once and decoded in registers.
//!
//! A cube processes up to [`ROWS`] of the `n_rows` rows of activations.

#![allow(unsafe_code)] // kernels run without bounds checks; each launch says why that is safe
#![allow(clippy::too_many_arguments)] // a kernel takes its arguments one by one

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::packed_panel::{decode, write_table};
use super::{PackedShape, empty_on_device_of};
use crate::PackedFormat;
use idefics_kernels::formats::{BLOCK, Q4_BLOCK, Q4_PANEL};

/// Maximum number of activation rows that a cube multiplies.
const ROWS: usize = 8;

/// Number of units that share a weight row of int8, nf4 or fp4.
const UNITS: usize = 128;

/// Number of units that share a weight row of q4. The sixteen rows of a panel are interleaved.
const SPLITS: usize = 16;

/// Returns whether these kernels support the weight. Every word of codes must belong to a single row.
pub(super) fn fits(weight: PackedShape) -> bool {
    weight.d_in.is_multiple_of(match weight.format {
        PackedFormat::Int8 => 4,
        PackedFormat::FourBit(_) => 8,
        PackedFormat::Q4 => Q4_BLOCK,
        PackedFormat::Int4 { .. } => return false, // int4 weights are multiplied in panels
        PackedFormat::Blocks(_) => unreachable!("blocks of GGUF files are dequantised before a product on a GPU"),
    })
}

/// Multiplies by a weight in int8, nf4 or fp4, whose codes are stored row by row. A cube processes `outputs` rows of
/// the weight, and its units split the words of these rows. A unit loads activations once for all of these rows.
#[cube(launch_unchecked)]
fn by_rows<F: Float>(
    rows: &[Vector<F, Const<4>>], // [n_rows, d_in / 4]
    codes: &[u32],                // [d_out, words]
    scales: &[f32],
    output: &mut [F], // [n_rows, d_out]
    n_rows: usize,
    d_in: usize,
    d_out: usize,
    #[comptime] format: PackedFormat,
    #[comptime] at_once: usize,
    #[comptime] outputs: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut table = Shared::<[f32]>::new_slice(16usize);
    write_table(&mut table, format);
    sync_cube();
    let vectors = comptime!(if format == PackedFormat::Int8 { 1usize } else { 2 }); // vectors of activations per word
    let unit = UNIT_POS as usize;
    let first_output = CUBE_POS_X as usize * outputs;
    let first_row = CUBE_POS_Y as usize * at_once;
    let words = d_in / (4 * vectors);
    let mut sums = Array::<f32>::new(comptime!(outputs * at_once));
    #[unroll]
    for sum in 0..comptime!(outputs * at_once) {
        sums[sum] = 0.0;
    }
    let mut word = unit;
    while word < words {
        let mut activations = Array::<Vector<f32, Const<4>>>::new(comptime!(at_once * vectors));
        #[unroll]
        for row in 0..at_once {
            let row_in = clamp_max(first_row + row, n_rows - 1);
            #[unroll]
            for vector in 0..vectors {
                activations[row * vectors + vector] =
                    Vector::cast_from(rows[row_in * (d_in / 4) + word * vectors + vector]);
            }
        }
        #[unroll]
        for index in 0..outputs {
            let row_out = clamp_max(first_output + index, d_out - 1);
            let packed = codes[row_out * words + word];
            let scale = match comptime!(format) {
                PackedFormat::Int8 => scales[row_out],
                _ => scales[(row_out * words + word) / comptime!(BLOCK / 8)],
            };
            #[unroll]
            for field in 0..comptime!(4 * vectors) {
                let shift = comptime!(match format {
                    PackedFormat::Int8 => 8 * field as u32,
                    _ => 4 * (field as u32 ^ 1), // the first code of a byte is in its high half
                });
                let weight = decode(packed, shift, &table, format) * scale;
                #[unroll]
                for row in 0..at_once {
                    sums[index * at_once + row] +=
                        weight * activations[row * vectors + field / 4].extract(comptime!(field % 4));
                }
            }
        }
        word += comptime!(UNITS);
    }

    // Tree reduction over the units.
    let mut parts = Shared::<[f32]>::new_slice(comptime!(outputs * at_once * UNITS));
    #[unroll]
    for sum in 0..comptime!(outputs * at_once) {
        parts[sum * UNITS + unit] = sums[sum];
    }
    sync_cube();
    #[unroll]
    for step in 0..comptime!(UNITS.ilog2() as usize) {
        let half = comptime!(UNITS >> (step + 1));
        if unit < half {
            #[unroll]
            for sum in 0..comptime!(outputs * at_once) {
                parts[sum * UNITS + unit] += parts[sum * UNITS + unit + half];
            }
        }
        sync_cube();
    }
    if unit < comptime!(outputs * at_once) {
        let (row_out, row_in) = (first_output + unit / at_once, first_row + unit % at_once);
        if row_out < d_out && row_in < n_rows {
            output[row_in * d_out + row_out] = F::cast_from(parts[unit * UNITS]);
        }
    }
}

/// Multiplies by a weight in q4. A cube processes the sixteen interleaved rows of a panel, and its units split the
/// blocks.
#[cube(launch_unchecked)]
fn by_panels<F: Float>(
    rows: &[Vector<F, Const<4>>], // [n_rows, d_in / 4]
    codes: &[u32],                // [panels, blocks, 4, 16]
    scales: &[f32],               // [panels, blocks, 16]
    output: &mut [F],             // [n_rows, d_out]
    n_rows: usize,
    d_in: usize,
    d_out: usize,
    #[comptime] at_once: usize,
    #[define(F)] _dtype: ElemType,
) {
    let format = comptime!(PackedFormat::Q4);
    let mut table = Shared::<[f32]>::new_slice(16usize);
    write_table(&mut table, format);
    sync_cube();
    let (lane, split) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let panel = CUBE_POS_X as usize;
    let first_row = CUBE_POS_Y as usize * at_once;
    let blocks = d_in / comptime!(Q4_BLOCK);
    let mut sums = Array::<f32>::new(at_once);
    #[unroll]
    for row in 0..at_once {
        sums[row] = 0.0;
    }
    let mut block = split;
    while block < blocks {
        let tile = panel * blocks + block;
        let scale = scales[tile * comptime!(Q4_PANEL) + lane];
        #[unroll]
        for group in 0..4usize {
            let packed = codes[(tile * 4 + group) * comptime!(Q4_PANEL) + lane];
            #[unroll]
            for half in 0..2usize {
                #[unroll]
                for column in 0..4usize {
                    let shift = comptime!((8 * column + 4 * half) as u32);
                    let weight = decode(packed, shift, &table, format) * scale;
                    #[unroll]
                    for row in 0..at_once {
                        let row_in = clamp_max(first_row + row, n_rows - 1);
                        let vector = row_in * (d_in / 4) + block * 8 + half * 4 + group;
                        let activations = Vector::<f32, Const<4>>::cast_from(rows[vector]);
                        sums[row] += weight * activations.extract(column);
                    }
                }
            }
        }
        block += comptime!(SPLITS);
    }

    let unit = split * comptime!(Q4_PANEL) + lane;
    let units = comptime!(SPLITS * Q4_PANEL);
    let mut parts = Shared::<[f32]>::new_slice(comptime!(at_once * SPLITS * Q4_PANEL));
    #[unroll]
    for row in 0..at_once {
        parts[row * units + unit] = sums[row];
    }
    sync_cube();
    let row_out = panel * comptime!(Q4_PANEL) + lane;
    if split < at_once {
        let row_in = first_row + split;
        if row_out < d_out && row_in < n_rows {
            let mut sum = 0.0f32;
            #[unroll]
            for part in 0..comptime!(SPLITS) {
                sum += parts[split * units + part * comptime!(Q4_PANEL) + lane];
            }
            output[row_in * d_out + row_out] = F::cast_from(sum);
        }
    }
}

pub(super) fn launch(rows: CubeTensor, codes: CubeTensor, scales: CubeTensor, weight: PackedShape) -> CubeTensor {
    let PackedShape { format, d_out, d_in } = weight;
    // The rows of a tensor may be strided, but the kernels need contiguous rows.
    let [rows, codes, scales] = [rows, codes, scales].map(into_contiguous);
    let n_rows = rows.meta.shape()[0];
    let output = empty_on_device_of(&rows, [n_rows, d_out], rows.dtype);
    let at_once = n_rows.next_power_of_two().min(ROWS);
    let turns = n_rows.div_ceil(at_once) as u32;
    let outputs = if at_once == 1 { 4 } else { 2 };
    let dtype = dtype_to_storage_type(rows.dtype);
    let client = output.client.clone();
    let (rows, codes, scales) = (rows.into_buffer_arg(), codes.into_buffer_arg(), scales.into_buffer_arg());
    let out = output.clone().into_buffer_arg();
    // SAFETY: row indices past the last row are clamped to the last row, and their results are not written. Words and
    // blocks past the last one are not read. The caller has checked with `fits` that rows end at word boundaries.
    unsafe {
        if format == PackedFormat::Q4 {
            let cubes = CubeCount::Static(d_out.div_ceil(Q4_PANEL) as u32, turns, 1);
            let dim = CubeDim::new_2d(Q4_PANEL as u32, SPLITS as u32);
            by_panels::launch_unchecked(
                &client, cubes, dim, rows, codes, scales, out, n_rows, d_in, d_out, at_once, dtype,
            );
        } else {
            let cubes = CubeCount::Static(d_out.div_ceil(outputs) as u32, turns, 1);
            let dim = CubeDim::new_1d(UNITS as u32);
            by_rows::launch_unchecked(
                &client, cubes, dim, rows, codes, scales, out, n_rows, d_in, d_out, format, at_once, outputs, dtype,
            );
        }
    }
    output
}
