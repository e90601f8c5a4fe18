//! The ways in which a question refers to shapes.

use crate::colour::Colour;
use crate::scene::Scene;
use crate::shape::{Kind, Shape};

/// A reference to shapes by kind, by colour or by both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mention {
    /// `a circle`
    Kind(Kind),
    /// `a red shape`
    Colour(Colour),
    /// `a red circle`
    Both(Colour, Kind),
}

impl Mention {
    /// Returns a mention of each kind.
    pub(crate) fn kinds() -> Vec<Self> {
        Kind::ALL.map(Self::Kind).to_vec()
    }

    /// Returns a mention of each colour.
    pub(crate) fn colours() -> Vec<Self> {
        Colour::ALL.map(Self::Colour).to_vec()
    }

    /// Returns a mention of each combination of colour and kind.
    pub(crate) fn pairs() -> Vec<Self> {
        Colour::ALL.into_iter().flat_map(|colour| Kind::ALL.map(|kind| Self::Both(colour, kind))).collect()
    }

    /// Returns the number of matching shapes in the scene.
    pub(crate) fn count(self, scene: &Scene) -> usize {
        scene.shapes.iter().filter(|shape| self.fits(shape)).count()
    }

    /// Returns whether any shape of the scene matches.
    pub(crate) fn is_in(self, scene: &Scene) -> bool {
        self.count(scene) > 0
    }

    /// Returns the singular with its article: `a red circle`.
    pub(crate) fn singular(self) -> String {
        match self {
            Self::Kind(kind) => format!("a {kind}"),
            Self::Colour(colour) => format!("{} {colour} shape", colour.article()),
            Self::Both(colour, kind) => format!("{} {colour} {kind}", colour.article()),
        }
    }

    /// Returns the plural: `red circles`.
    pub(crate) fn plural(self) -> String {
        match self {
            Self::Kind(kind) => kind.plural().to_owned(),
            Self::Colour(colour) => format!("{colour} shapes"),
            Self::Both(colour, kind) => format!("{colour} {}", kind.plural()),
        }
    }

    fn fits(self, shape: &Shape) -> bool {
        match self {
            Self::Kind(kind) => shape.kind == kind,
            Self::Colour(colour) => shape.colour == colour,
            Self::Both(colour, kind) => shape.colour == colour && shape.kind == kind,
        }
    }
}
