//! The tokens that represent an image in the text.

/// The tokens that represent an image in the text, and their number.
///
/// Source: `Idefics2Processor.__init__`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTokens {
    /// `<image>`: stands for one image vector in the encoded text, and for a whole image in unexpanded text.
    pub image: String,
    /// `<fake_token_around_image>`: written before and after an image.
    pub fake: String,
    /// Number of image tokens per tile. It must equal the resampler's `resampler_n_latents`.
    pub image_seq_len: usize,
}

impl ImageTokens {
    /// Number of image tokens in `text`.
    pub fn count(&self, text: &str) -> usize {
        text.matches(&self.image).count()
    }
}
