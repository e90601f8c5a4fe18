//! Forward and backward products with a frozen weight. Packed weights are dequantised one panel at a time.

use burn::backend::Slice;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::{FEW_ROWS, PANEL, PackedShape, Panel, packed_panel, packed_rows};
use crate::ops::frozen::FrozenLinear;

impl FrozenLinear for CubeBackend {
    fn frozen_product(rows: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let weight = cast(weight, rows.dtype);
        Self::float_matmul(rows, Self::float_transpose(weight))
    }

    fn frozen_product_transposed(rows: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let weight = cast(weight, rows.dtype);
        Self::float_matmul(rows, weight)
    }

    fn frozen_packed_product(
        rows: CubeTensor,
        codes: CubeTensor,
        scales: CubeTensor,
        shape: PackedShape,
    ) -> CubeTensor {
        if rows.meta.shape()[0] <= FEW_ROWS && packed_rows::fits(shape) {
            return packed_rows::launch(rows, codes, scales, shape);
        }
        let products = panels(shape, rows.dtype).map(|panel| {
            let numbers = packed_panel::launch(codes.clone(), scales.clone(), panel); // [count, d_in]
            Self::float_matmul(rows.clone(), Self::float_transpose(numbers)) // [n_rows, count]
        });
        let mut products: Vec<CubeTensor> = products.collect();
        if products.len() == 1 { products.swap_remove(0) } else { Self::float_cat(products, 1) }
    }

    fn frozen_packed_product_transposed(
        rows: CubeTensor,
        codes: CubeTensor,
        scales: CubeTensor,
        shape: PackedShape,
    ) -> CubeTensor {
        let products = panels(shape, rows.dtype).map(|panel| {
            let numbers = packed_panel::launch(codes.clone(), scales.clone(), panel); // [count, d_in]
            let columns = Slice::from(panel.first..panel.first + panel.count);
            Self::float_matmul(Self::float_slice(rows.clone(), &[Slice::full(), columns]), numbers) // [n_rows, d_in]
        });
        products.reduce(Self::float_add).expect("a weight has at least one row")
    }
}

/// Splits a weight into panels of consecutive rows.
fn panels(weight: PackedShape, dtype: DType) -> impl Iterator<Item = Panel> {
    let at_once = (PANEL / weight.d_in).max(1);
    (0..weight.d_out).step_by(at_once).map(move |first| {
        let count = at_once.min(weight.d_out - first);
        Panel { weight, first, count, dtype }
    })
}

fn cast(weight: CubeTensor, dtype: DType) -> CubeTensor {
    if weight.dtype == dtype { weight } else { CubeBackend::float_cast(weight, FloatDType::from(dtype)) }
}
