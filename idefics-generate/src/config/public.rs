//! The public models of the supported families.

use super::{Idefics1Config, Idefics2Config, Idefics3Config, Idefics3ModelType, ModelConfig};

/// A model shape and the public checkpoints that have it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PublicModel {
    /// Short name of the shape, for example `smolvlm-256m`.
    pub name: &'static str,
    /// Hub ids of the checkpoints that have this shape.
    pub repos: &'static [&'static str],
    config: fn() -> ModelConfig,
}

impl PublicModel {
    /// All public models in ascending order of size.
    pub const ALL: &'static [Self] = &[
        Self {
            name: "smolvlm-256m",
            repos: &["HuggingFaceTB/SmolVLM-256M-Instruct", "HuggingFaceTB/SmolVLM-256M-Base"],
            config: || Idefics3Config::smolvlm_256m().into(),
        },
        Self {
            name: "smolvlm2-256m",
            repos: &["HuggingFaceTB/SmolVLM2-256M-Video-Instruct"],
            config: || smolvlm2(Idefics3Config::smolvlm_256m()),
        },
        Self {
            name: "smolvlm-500m",
            repos: &["HuggingFaceTB/SmolVLM-500M-Instruct", "HuggingFaceTB/SmolVLM-500M-Base"],
            config: || Idefics3Config::smolvlm_500m().into(),
        },
        Self {
            name: "smolvlm2-500m",
            repos: &["HuggingFaceTB/SmolVLM2-500M-Video-Instruct"],
            config: || smolvlm2(Idefics3Config::smolvlm_500m()),
        },
        Self {
            name: "smolvlm-2.2b",
            repos: &["HuggingFaceTB/SmolVLM-Instruct", "HuggingFaceTB/SmolVLM-Base"],
            config: || Idefics3Config::smolvlm_2b().into(),
        },
        Self {
            name: "smolvlm2-2.2b",
            repos: &["HuggingFaceTB/SmolVLM2-2.2B-Instruct"],
            config: || smolvlm2(Idefics3Config::smolvlm2_2b()),
        },
        Self {
            name: "idefics2-8b",
            repos: &["HuggingFaceM4/idefics2-8b", "HuggingFaceM4/idefics2-8b-base", "HuggingFaceM4/idefics2-8b-chatty"],
            config: || Idefics2Config::idefics2_8b().into(),
        },
        Self {
            name: "idefics3-8b",
            repos: &["HuggingFaceM4/Idefics3-8B-Llama3"],
            config: || Idefics3Config::idefics3_8b().into(),
        },
        Self {
            name: "idefics-9b",
            repos: &["HuggingFaceM4/idefics-9b", "HuggingFaceM4/idefics-9b-instruct"],
            config: || Idefics1Config::idefics_9b().into(),
        },
        Self {
            name: "idefics-80b",
            repos: &["HuggingFaceM4/idefics-80b", "HuggingFaceM4/idefics-80b-instruct"],
            config: || Idefics1Config::idefics_80b().into(),
        },
    ];

    /// Returns the model with this short name, if there is one.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|model| model.name == name)
    }

    /// Returns the configuration of the model.
    pub fn config(&self) -> ModelConfig {
        (self.config)()
    }
}

/// Returns the configuration with the `model_type` of SmolVLM2.
fn smolvlm2(config: Idefics3Config) -> ModelConfig {
    Idefics3Config { model_type: Idefics3ModelType::SmolVlm, ..config }.into()
}
