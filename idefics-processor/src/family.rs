//! The generations whose prompts are known here.

/// Which generation a processor's rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// `idefics`: images beside the text, each token sees the latest.
    Idefics1,
    /// `idefics2`: images as tokens of the text.
    Idefics2,
}

impl Family {
    /// The `model_type` values that are read.
    pub(crate) const SUPPORTED: &'static str = "idefics, idefics2";

    /// The family of a `model_type`; a folder that names none is one of Idefics2.
    pub(crate) fn of_model_type(model_type: Option<&str>) -> Option<Self> {
        match model_type {
            Some("idefics") => Some(Self::Idefics1),
            None | Some("idefics2") => Some(Self::Idefics2),
            Some(_) => None,
        }
    }
}
