//! What a question may say of a shape.

use crate::colour::Colour;
use crate::scene::Scene;
use crate::shape::{Kind, Shape};

/// Shapes as a question names them.
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
    /// Every kind.
    pub(crate) fn kinds() -> Vec<Self> {
        Kind::ALL.map(Self::Kind).to_vec()
    }

    /// Every colour.
    pub(crate) fn colours() -> Vec<Self> {
        Colour::ALL.map(Self::Colour).to_vec()
    }

    /// Every kind in every colour.
    pub(crate) fn pairs() -> Vec<Self> {
        Colour::ALL.into_iter().flat_map(|colour| Kind::ALL.map(|kind| Self::Both(colour, kind))).collect()
    }

    /// How many shapes of the scene it fits.
    pub(crate) fn count(self, scene: &Scene) -> usize {
        scene.shapes.iter().filter(|shape| self.fits(shape)).count()
    }

    /// Whether it fits a shape of the scene.
    pub(crate) fn is_in(self, scene: &Scene) -> bool {
        self.count(scene) > 0
    }

    /// One such shape, with the article.
    pub(crate) fn singular(self) -> String {
        match self {
            Self::Kind(kind) => format!("a {kind}"),
            Self::Colour(colour) => format!("{} {colour} shape", colour.article()),
            Self::Both(colour, kind) => format!("{} {colour} {kind}", colour.article()),
        }
    }

    /// Several such shapes.
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
