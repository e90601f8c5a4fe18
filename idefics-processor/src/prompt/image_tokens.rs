//! The tokens that represent an image in the text.

/// The tokens that represent an image in the text, and their number.
///
/// Source: `Idefics2Processor.__init__`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTokens {
    /// The image token, `<image>`. In unexpanded text, one token marks a whole image. In the encoded text, each token
    /// marks one image vector.
    pub image: String,
    /// The token before and after an image, `<fake_token_around_image>`.
    pub fake: String,
    /// Number of image tokens per tile. In Idefics2, it must equal the resampler's `resampler_n_latents`.
    pub image_seq_len: usize,
}

impl ImageTokens {
    /// Returns the number of image tokens in `text`.
    pub fn count(&self, text: &str) -> usize {
        text.matches(&self.image).count()
    }
}
