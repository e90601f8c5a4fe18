//! The spellings of image tokens.

/// The strings and counts of which Idefics2 builds an image's place in the text.
///
/// Source: `Idefics2Processor.__init__`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTokens {
    /// One vector of the image, and in the input its placeholder: `<image>`.
    pub image: String,
    /// What stands around an image: `<fake_token_around_image>`.
    pub fake: String,
    /// Vectors of one (sub-)image: `image_seq_len` tokens, equal to the resampler's `resampler_n_latents`.
    pub image_seq_len: usize,
}

impl ImageTokens {
    /// Placeholders in `text`.
    pub fn count(&self, text: &str) -> usize {
        text.matches(&self.image).count()
    }
}
