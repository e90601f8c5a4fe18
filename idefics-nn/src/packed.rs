//! The quantised weight of a linear layer: codes and scales in tensors.

use burn::module::{Module, Param, ParamId, Reparameterization, Reparameterizer};
use burn::tensor::{DType, Device, Element, Int, Shape, Tensor, TensorData};

use crate::ops::{PackedShape, Packing};
use crate::{Quantization, ops};
use half::bf16;
use idefics_kernels::formats::{
    BLOCK, Blocks, FormatError, FourBit, GgufType, Int4, Int8, NestedAbsmax, PackedFormat, Q4, Q4_BLOCK, Q4_PANEL,
    Q4_TABLE, Weight,
};
use idefics_kernels::{Activations, rounds_activations};

/// The weight of a [`crate::Linear`] as codes and scales. Products on the CPU and on GPUs never dequantise it as a
/// whole.
///
/// Codes and scales are not parameters: they move with the module, but optimisers do not see them. They need not be
/// frozen either, because no gradient is ever computed for them.
#[derive(Module, Debug)]
pub struct PackedWeight {
    /// Codes, flattened in the order of the format. On the CPU, an element is a byte; elsewhere, it is a word of four
    /// bytes.
    codes: Tensor<1, Int>,
    /// Scales, flattened in the order of the format. For int4, each scale is followed by its zero point.
    scales: Tensor<1>,
    /// Index of the input that each column of the codes belongs to, `[d_in]` in I32. `None` if the columns have the
    /// order of the inputs.
    order: Option<Tensor<1, Int>>,
    #[module(skip)]
    format: PackedFormat,
    #[module(skip)]
    activations: Activations,
    d_out: usize,
    d_in: usize,
}

/// Burn's visitors and mappers know only parameters, so they see a parameter with the packed weight attached.
/// `as_param` creates this parameter. The loader uses `carry` to attach a newly read weight to an existing parameter.
impl Reparameterization for PackedWeight {
    const NAME: &'static str = "packed";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        base
    }
}

/// Attaches a packed weight to the parameter that it is applied to.
struct Carrier(Option<PackedWeight>);

impl Reparameterizer for &mut Carrier {
    type Reparam = PackedWeight;

    fn reparameterize<const D: usize>(
        &mut self,
        _path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<PackedWeight>) {
        (param, self.0.take())
    }
}

impl PackedWeight {
    /// Quantises weights, `[d_out, d_in]`, and moves them to `device`.
    ///
    /// # Errors
    /// [`FormatError`] if a weight is not finite.
    pub fn quantize(
        weights: &[f32],
        dims: [usize; 2],
        quantization: &Quantization,
        device: &Device,
    ) -> Result<Self, FormatError> {
        let [d_out, d_in] = dims;
        let (codes, scales) = match quantization.format {
            PackedFormat::Int8 => {
                let (codes, scales) = Int8::quantize(weights, d_out, d_in)?.into_parts();
                (flat(codes), flat(scales))
            }
            PackedFormat::FourBit(kind) => {
                let (codes, mut absmax) = FourBit::quantize(kind, weights, d_out, d_in)?.into_parts();
                if quantization.double_quant {
                    absmax = NestedAbsmax::quantize(&absmax)?.dequantize()?;
                }
                (flat(codes), flat(absmax))
            }
            PackedFormat::Q4 => {
                let (codes, scales) = Q4::quantize(weights, d_out, d_in)?.into_parts();
                (flat(codes), flat(scales))
            }
            PackedFormat::Int4 { group } => {
                let (codes, scales) = Int4::quantize(weights, group, dims)?.into_parts();
                (flat(codes.into_owned()), flat(scales.into_owned()))
            }
            PackedFormat::Blocks(kind) => {
                let blocks = Blocks::quantize(kind, weights, d_out, d_in)?;
                return Ok(Self::from_blocks(flat(blocks.into_bytes()), kind, dims, device));
            }
        };
        Ok(Self::new(codes, scales, quantization.format, dims, device))
    }

    /// Creates a weight from GGUF blocks, `[d_out, d_in]`, on a device that keeps tensors in host memory. `blocks` has
    /// one U8 element per byte.
    pub(crate) fn from_blocks(blocks: TensorData, kind: GgufType, dims: [usize; 2], device: &Device) -> Self {
        Self::new(blocks, flat(Vec::<f32>::new()), PackedFormat::Blocks(kind), dims, device)
    }

    /// Dequantises the rows of the weight that have the given numbers: takes `[n]` and returns `[n, d_in]` in f32.
    pub(crate) fn rows(&self, numbers: Tensor<1, Int>) -> Tensor<2> {
        let (codes, scales) = self.parts();
        let shape = PackedShape { format: self.format, d_out: self.d_out, d_in: self.d_in };
        ops::packed_rows(numbers, codes, scales, shape, || self.dequantize())
    }

    /// Computes `x Wᵀ + b`: takes `[n_rows, d_in]` and returns `[n_rows, d_out]`.
    ///
    /// # Panics
    /// If the activations have another width, or the numbers of codes and scales do not match the format.
    pub(crate) fn product(&self, rows: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        let (codes, scales) = self.parts();
        assert_eq!(rows.dims()[1], self.d_in, "activations must have shape [{}, {}]", rows.dims()[0], self.d_in);
        let rows = match self.order() {
            Some(order) => rows.select(1, order),
            None => rows,
        };
        let packing = Packing { format: self.format, activations: self.activations, d_out: self.d_out };
        ops::packed_product(rows, codes, scales, bias, packing, || self.dequantize_columns())
    }

    /// Returns a parameter that takes no memory and dequantises its value on demand. It represents the weight in
    /// visitors and mappers that know only parameters.
    pub(crate) fn as_param(&self) -> Param<Tensor<2>> {
        let (weight, shape) = (self.clone(), Shape::from(self.dims()));
        let value = move |_: &Device, _: bool| weight.dequantize();
        self.clone().carry(Param::uninitialized(ParamId::new(), value, self.device(), false, shape))
    }

    /// Attaches the weight to a parameter, where [`Self::carried_by`] finds it.
    pub(crate) fn carry<const D: usize>(self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.apply_reparameterization(&mut Carrier(Some(self)))
    }

    /// Returns the packed weight that is attached to a parameter, if any.
    pub(crate) fn carried_by<const D: usize>(param: &Param<Tensor<D>>) -> Option<&Self> {
        param.reparameterization()
    }

    /// Returns the codes and scales, outside any autodiff graph. Checks their lengths, because GPU kernels read them
    /// without bounds checks.
    ///
    /// # Panics
    /// If their lengths do not match the format.
    fn parts(&self) -> (Tensor<1, Int>, Tensor<1>) {
        let (codes, scales) = (self.codes.clone().without_autodiff(), self.scales.clone().without_autodiff());
        let [n_bytes, n_scales] = self.part_lens();
        let n_codes = if codes.dtype() == DType::U32 { n_bytes.div_ceil(4) } else { n_bytes };
        assert_eq!(
            (codes.dims(), scales.dims()),
            ([n_codes], [n_scales]),
            "the numbers of codes and scales must match the format {}",
            self.format.name()
        );
        (codes, scales)
    }

    /// Returns the index of the input that each column belongs to, outside any autodiff graph.
    fn order(&self) -> Option<Tensor<1, Int>> {
        self.order.clone().map(Tensor::without_autodiff)
    }

    /// Returns the number of bytes of codes and the number of scales that the format requires.
    fn part_lens(&self) -> [usize; 2] {
        let n_weights = self.d_out * self.d_in;
        match self.format {
            PackedFormat::Int8 => [n_weights, self.d_out],
            PackedFormat::FourBit(_) => [n_weights.div_ceil(2), n_weights.div_ceil(BLOCK)],
            PackedFormat::Q4 => {
                let tiles = self.d_out.div_ceil(Q4_PANEL) * self.d_in.div_ceil(Q4_BLOCK);
                [tiles * Q4_PANEL * Q4_BLOCK / 2, tiles * Q4_PANEL]
            }
            PackedFormat::Int4 { group } => Int4::part_lens(group, self.dims()),
            PackedFormat::Blocks(kind) => [self.d_out * kind.row_bytes(self.d_in).unwrap_or(0), 0],
        }
    }

    /// Sets the element type to which activations are rounded for products.
    pub(crate) fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// Returns the element type to which activations are rounded for products.
    pub(crate) fn activations(&self) -> Activations {
        if rounds_activations(self.format) { self.activations } else { Activations::F32 }
    }

    /// Returns the format.
    pub fn format(&self) -> PackedFormat {
        self.format
    }

    /// Returns the shape of the weight, `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.d_out, self.d_in]
    }

    /// Returns the device of the codes and scales.
    pub fn device(&self) -> Device {
        self.scales.device()
    }

    /// Returns the size of the codes, scales and column order in bytes.
    pub fn bytes(&self) -> usize {
        let Self { codes, scales, order, .. } = self;
        let order = order.as_ref().map_or(0, |order| order.shape().num_elements() * order.dtype().size());
        let codes = codes.shape().num_elements() * codes.dtype().size();
        codes + scales.shape().num_elements() * scales.dtype().size() + order
    }

    /// Dequantises the whole weight to `[d_out, d_in]` in f32. Works on any backend.
    pub fn dequantize(&self) -> Tensor<2> {
        let columns = self.dequantize_columns();
        match self.order() {
            Some(order) => columns.select(1, order.argsort(0)), // the inverse permutation
            None => columns,
        }
    }

    /// Dequantises the whole weight like [`Self::dequantize`], but keeps the columns in the order of the codes.
    fn dequantize_columns(&self) -> Tensor<2> {
        let (codes, scales) = self.parts();
        let scales = scales.cast(DType::F32);
        let (d_out, d_in) = (self.d_out, self.d_in);
        #[cfg(feature = "cube")]
        if ops::cube::computes_on(&scales.device()) && ops::is_held_on(self.format, &scales.device()) {
            let weight = ops::cube::PackedShape { format: self.format, d_out, d_in };
            let panel = ops::cube::Panel { weight, first: 0, count: d_out, dtype: DType::F32 };
            return ops::cube::panel(codes, scales, panel);
        }
        let codes = if codes.dtype() == DType::U32 { self.bytes_of(codes) } else { codes };
        match self.format {
            PackedFormat::Int8 => codes.float().cast(DType::F32).reshape([d_out, d_in]) * scales.reshape([d_out, 1]),
            PackedFormat::FourBit(kind) => {
                let n = d_out * d_in;
                let [high, low] = halves(codes);
                let codes = Tensor::stack::<2>(vec![high, low], 1).flatten::<1>(0, 1).narrow(0, 0, n);
                let [n_blocks] = scales.dims();
                let scales = scales.reshape([n_blocks, 1]).expand([n_blocks, BLOCK]).flatten::<1>(0, 1).narrow(0, 0, n);
                (look_up(kind.table(), codes) * scales).reshape([d_out, d_in])
            }
            PackedFormat::Q4 => {
                let (panels, blocks) = (d_out.div_ceil(Q4_PANEL), d_in.div_ceil(Q4_BLOCK));
                let [high, low] = halves(codes);
                let table: [f32; 16] = Q4_TABLE.map(f32::from);
                let codes = Tensor::stack::<2>(vec![low, high], 0)
                    .reshape([2, panels, blocks, 4, Q4_PANEL, 4])
                    .permute([1, 4, 2, 0, 3, 5]) // [panels, rows, blocks, halves, groups, 4]
                    .flatten::<1>(0, 5);
                let values = look_up(&table, codes).reshape([panels, Q4_PANEL, blocks, Q4_BLOCK]);
                let scales = scales.reshape([panels, blocks, Q4_PANEL, 1]).permute([0, 2, 1, 3]);
                let (rows, columns) = (panels * Q4_PANEL, blocks * Q4_BLOCK);
                (values * scales).reshape([rows, columns]).narrow(0, 0, d_out).narrow(1, 0, d_in)
            }
            PackedFormat::Int4 { group } => {
                let [high, low] = halves(codes);
                let columns = 2 * d_in.div_ceil(2);
                let codes = Tensor::stack::<2>(vec![low, high], 1).reshape([d_out, columns]).narrow(1, 0, d_in);
                let (groups, group) = (d_in.div_ceil(group.get()), group.get().min(d_in));
                let pairs = scales.reshape([d_out, groups, 2]);
                let of_columns = |at| {
                    let each = pairs.clone().narrow(2, at, 1).expand([d_out, groups, group]); // [d_out, groups, group]
                    each.reshape([d_out, groups * group]).narrow(1, 0, d_in)
                };
                (codes.float().cast(DType::F32) - of_columns(1)) * of_columns(0)
            }
            PackedFormat::Blocks(_) => {
                let values = TensorData::new(self.read().dequantize(), [d_out, d_in]);
                Tensor::from_data(values, (&self.device(), DType::F32))
            }
        }
    }

    /// Copies codes and scales to the host. Int4 columns may have another order than the inputs (see
    /// [`Self::read_order`]).
    pub(crate) fn read(&self) -> Weight<'static> {
        let (codes, scales) = self.parts();
        let n_bytes = self.part_lens()[0];
        #[expect(clippy::disallowed_methods, reason = "a file needs the values on the host")]
        let (codes, scales) = (codes.into_data(), scales.into_data());
        let (mut codes, dims) = (codes.as_bytes().to_vec(), self.dims());
        codes.truncate(n_bytes); // drops the padding of the last word
        let floats = || scales.iter::<f32>().collect::<Vec<f32>>().into();
        let weight = match self.format {
            PackedFormat::Int8 => {
                let codes = codes.into_iter().map(u8::cast_signed).collect::<Vec<i8>>();
                Int8::from_parts(codes.into(), floats(), dims).map(Weight::from)
            }
            PackedFormat::FourBit(kind) => FourBit::from_parts(kind, codes.into(), floats(), dims).map(Weight::from),
            PackedFormat::Q4 => {
                let scales = scales.iter::<f32>().map(bf16::from_f32).collect::<Vec<bf16>>(); // exact: scales are bf16
                Q4::from_parts(codes.into(), scales.into(), dims).map(Weight::from)
            }
            PackedFormat::Int4 { group } => Int4::from_parts(codes.into(), floats(), group, dims).map(Weight::from),
            PackedFormat::Blocks(kind) => Blocks::new(kind, codes, dims[0], dims[1]).map(Weight::from),
        };
        weight.expect("codes and scales must have the sizes that the format requires")
    }

    /// Copies the order of the columns to the host. Returns `None` if the columns have the order of the inputs.
    pub(crate) fn read_order(&self) -> Option<Vec<i32>> {
        #[expect(clippy::disallowed_methods, reason = "a file needs the values on the host")]
        let order = self.order()?.into_data();
        Some(order.iter::<i32>().collect())
    }

    /// Unpacks words of four bytes into one integer per byte. The codes of int8 become signed.
    fn bytes_of(&self, words: Tensor<1, Int>) -> Tensor<1, Int> {
        let [n_bytes, _] = self.part_lens();
        let words = words.cast(DType::I32);
        let byte = |at| words.clone().bitwise_right_shift_scalar(8 * at).bitwise_and_scalar(255);
        let bytes = Tensor::stack::<2>((0..4).map(byte).collect(), 1).flatten::<1>(0, 1).narrow(0, 0, n_bytes);
        match self.format {
            PackedFormat::Int8 => bytes.bitwise_xor_scalar(128) - 128, // converts two's complement
            _ => bytes,
        }
    }

    pub(crate) fn new(
        codes: TensorData,
        scales: TensorData,
        format: PackedFormat,
        [d_out, d_in]: [usize; 2],
        device: &Device,
    ) -> Self {
        let (codes, scales) = match ops::reads_bytes(device) {
            true => (codes, scales),
            false => (in_words(codes), scales.convert_dtype(DType::F32)),
        };
        let (codes_dtype, scales_dtype) = (codes.dtype(), scales.dtype());
        Self {
            codes: Tensor::from_data(codes, (device, codes_dtype)),
            scales: Tensor::from_data(scales, (device, scales_dtype)),
            order: None,
            format,
            activations: Activations::F32,
            d_out,
            d_in,
        }
    }
}

impl PackedWeight {
    /// Sets the index of the input that each column of the codes belongs to, `[d_in]`.
    pub(crate) fn with_order(self, order: Option<Vec<u32>>) -> Self {
        let device = self.device();
        let order = order.map(|order| {
            let order: Vec<i32> = order.into_iter().map(u32::cast_signed).collect();
            Tensor::from_data(flat(order), (&device, DType::I32))
        });
        Self { order, ..self }
    }
}

/// Splits bytes into their high four bits and their low four bits.
fn halves(bytes: Tensor<1, Int>) -> [Tensor<1, Int>; 2] {
    let bytes = bytes.cast(DType::I32);
    [bytes.clone().bitwise_right_shift_scalar(4), bytes.bitwise_and_scalar(15)]
}

/// Replaces each code by its value in `table`.
fn look_up(table: &[f32; 16], codes: Tensor<1, Int>) -> Tensor<1> {
    Tensor::<1>::from_data(TensorData::from(table.as_slice()), (&codes.device(), DType::F32)).select(0, codes)
}

/// Packs one-byte codes into words of four bytes, with the first code in the lowest bits. Copies only if the last word
/// must be padded.
fn in_words(codes: TensorData) -> TensorData {
    let n_bytes = codes.as_bytes().len();
    let n_words = n_bytes.div_ceil(4);
    if n_bytes == 4 * n_words {
        return TensorData::from_bytes(codes.into_bytes(), [n_words], DType::U32);
    }
    let mut bytes = codes.as_bytes().to_vec();
    bytes.resize(4 * n_words, 0);
    TensorData::from_bytes_vec(bytes, [n_words], DType::U32)
}

/// Creates the data of a one-dimensional tensor.
fn flat<E: Element>(elements: Vec<E>) -> TensorData {
    let len = elements.len();
    TensorData::new(elements, [len])
}
