//! Idefics3's connector: pixel shuffle, then one linear layer.
//!
//! Paper: <https://arxiv.org/abs/2408.12637>. Reference: `Idefics3Connector` and `SmolVLMConnector`, Transformers
//! 5.23.0.
//!
//! Axes: `n_images` images of `rows` × `cols` patches each. A square of `scale` × `scale` patches becomes one vector.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use idefics_nn::ConfigError;
use idefics_nn::Linear;

/// Configuration of a [`PixelShuffleConnector`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelShuffleConfig {
    /// Width of the vision tower's features.
    pub vision_hidden_size: usize,
    /// Width of the decoder.
    pub text_hidden_size: usize,
    /// Side length, in patches, of the square that becomes one vector.
    pub scale_factor: usize,
}

impl PixelShuffleConfig {
    /// Checks the range of every value that determines memory use or is a divisor.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("vision_config.hidden_size", self.vision_hidden_size, 1..=32_768)?;
        ConfigError::check_range("text_config.hidden_size", self.text_hidden_size, 1..=32_768)?;
        ConfigError::check_range("scale_factor", self.scale_factor, 1..=64)
    }

    /// Creates the connector with random weights. They are allocated when they are first used, so loading a checkpoint
    /// does not allocate them.
    ///
    /// # Errors
    /// The errors of [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<PixelShuffleConnector, ConfigError> {
        self.validate()?;
        let width = self.vision_hidden_size * self.scale_factor.pow(2);
        Ok(PixelShuffleConnector {
            modality_projection: ModalityProjection {
                proj: Linear::new_without_bias(width, self.text_hidden_size, device),
            },
            scale_factor: self.scale_factor,
        })
    }
}

/// Joins the features of neighbouring patches and projects them to the width of the decoder.
#[derive(Module, Debug)]
pub struct PixelShuffleConnector {
    /// Maps joined features to the width of the decoder.
    pub modality_projection: ModalityProjection,
    #[module(skip)]
    scale_factor: usize,
}

/// The projection, a single linear layer. Reference: `Idefics3SimpleMLP`.
#[derive(Module, Debug)]
pub struct ModalityProjection {
    /// Layer with weight `[text_hidden_size, vision_hidden_size · scale_factor²]` and without a bias.
    pub proj: Linear,
}

impl PixelShuffleConnector {
    /// Maps the output of the vision tower to image vectors.
    ///
    /// # Shapes
    /// - `image_hidden_states`: `[n_images, rows · cols, vision_hidden_size]`, the output of the vision tower
    /// - `grid`: `[rows, cols]`
    /// - returns `[n_images, rows · cols / scale_factor², text_hidden_size]`
    ///
    /// # Panics
    /// If `rows` or `cols` is not a multiple of `scale_factor`.
    pub fn forward(&self, image_hidden_states: Tensor<3>, grid: [usize; 2]) -> Tensor<3> {
        self.modality_projection.proj.forward(pixel_shuffle(image_hidden_states, grid, self.scale_factor))
    }
}

/// Joins the features of each square of `scale` × `scale` patches, row by row, into one vector.
///
/// # Shapes
/// - `features`: `[n_images, rows · cols, d]`
/// - returns `[n_images, rows · cols / scale², d · scale²]`
///
/// # Panics
/// If `rows` or `cols` is not a multiple of `scale`.
pub fn pixel_shuffle(features: Tensor<3>, [rows, cols]: [usize; 2], scale: usize) -> Tensor<3> {
    let [n_images, _, d] = features.dims();
    let fits = rows.is_multiple_of(scale) && cols.is_multiple_of(scale);
    assert!(fits, "the grid has {rows}x{cols} patches; expected multiples of {scale}");
    features
        .reshape([n_images, rows / scale, scale, cols / scale, scale, d])
        .permute([0, 1, 3, 2, 4, 5]) // [n_images, rows / scale, cols / scale, scale, scale, d]
        .reshape([n_images, rows * cols / (scale * scale), d * scale * scale])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{TensorData, Tolerance};

    /// Expected values: `Idefics3Connector.pixel_shuffle` on 4 x 6 patches with factor 2. The feature of each patch is
    /// its number.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test reads the result back to the host")]
    fn squares_are_joined_row_by_row() {
        let device = Device::flex();
        let patches: Vec<f32> = (0..24u8).map(f32::from).collect();
        let features = Tensor::<3>::from_data(TensorData::new(patches, [1, 24, 1]), &device);
        let joined = pixel_shuffle(features, [4, 6], 2);
        let expected = [
            [[0.0, 1.0, 6.0, 7.0], [2.0, 3.0, 8.0, 9.0], [4.0, 5.0, 10.0, 11.0]],
            [[12.0, 13.0, 18.0, 19.0], [14.0, 15.0, 20.0, 21.0], [16.0, 17.0, 22.0, 23.0]],
        ];
        let expected: Vec<f32> = expected.into_iter().flatten().flatten().collect();
        joined.into_data().assert_approx_eq(&TensorData::new(expected, [1, 6, 4]), Tolerance::<f32>::absolute(0.0));
    }
}
