//! Values of the keys that a section of `config.json` may omit. Each function returns the defaults of one configuration
//! class of the reference. Source: Transformers 5.23.0.

use idefics_nn::Activation;
use idefics_perceiver::{PerceiverConfig, flamingo};
use idefics_text::TextConfig;
use idefics_vision::{VisionConfig, clip};

/// Returns the defaults of `MistralConfig`.
pub(super) fn mistral_config() -> TextConfig {
    TextConfig {
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: Some(8),
        head_dim: None,
        hidden_act: Activation::Silu,
        max_position_embeddings: 131_072, // 4096 · 32
        rms_norm_eps: 1e-6,
        sliding_window: Some(4096),
        rope_theta: None,
        rope_scaling: None,
        rope_parameters: None,
        original_max_position_embeddings: None,
    }
}

/// Returns the defaults of `LlamaConfig`.
pub(super) fn llama_config() -> TextConfig {
    TextConfig {
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: None,
        head_dim: None,
        hidden_act: Activation::Silu,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        sliding_window: None,
        rope_theta: None,
        rope_scaling: None,
        rope_parameters: None,
        original_max_position_embeddings: None,
    }
}

/// Returns the `text_config` that `Idefics2Config` creates if the file has none.
pub(super) fn idefics2_text_config() -> TextConfig {
    TextConfig { max_position_embeddings: 32_768, rms_norm_eps: 1e-5, ..mistral_config() }
}

/// Returns the defaults of `Idefics2VisionConfig`.
pub(super) fn idefics2_vision_config() -> VisionConfig {
    VisionConfig {
        hidden_size: 768,
        intermediate_size: 3072,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        num_channels: 3,
        image_size: 224,
        patch_size: 32,
        hidden_act: Activation::GeluTanh,
        layer_norm_eps: 1e-6,
    }
}

/// Returns the defaults of `Idefics2PerceiverConfig`.
pub(super) fn idefics2_perceiver_config() -> PerceiverConfig {
    PerceiverConfig {
        hidden_act: Activation::Silu,
        hidden_size: 4096,
        rms_norm_eps: 1e-6,
        resampler_n_latents: 64,
        resampler_depth: 3,
        resampler_n_heads: 16,
        resampler_head_dim: 96,
        num_key_value_heads: 4,
    }
}

/// Returns the `text_config` that `Idefics3Config` creates if the file has none.
pub(super) fn idefics3_text_config() -> TextConfig {
    TextConfig { rms_norm_eps: 1e-5, ..llama_config() }
}

/// Returns the defaults of `Idefics3VisionConfig`.
pub(super) fn idefics3_vision_config() -> VisionConfig {
    VisionConfig {
        hidden_size: 1152,
        intermediate_size: 3072,
        num_hidden_layers: 12,
        num_attention_heads: 16,
        num_channels: 3,
        image_size: 224,
        patch_size: 32,
        hidden_act: Activation::GeluTanh,
        layer_norm_eps: 1e-6,
    }
}

/// Returns the defaults of `IdeficsVisionConfig`.
pub(super) fn idefics1_vision_config() -> clip::VisionConfig {
    clip::VisionConfig {
        embed_dim: 768,
        intermediate_size: 5120,
        num_hidden_layers: 32,
        num_attention_heads: 16,
        num_channels: 3,
        image_size: 224,
        patch_size: 14,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-5,
    }
}

/// Returns the defaults of `IdeficsPerceiverConfig`.
pub(super) fn idefics1_perceiver_config() -> flamingo::PerceiverConfig {
    flamingo::PerceiverConfig {
        resampler_n_latents: 64,
        resampler_depth: 6,
        resampler_n_heads: 16,
        resampler_head_dim: 96,
        qk_layer_norms_perceiver: false,
    }
}
