//! What is asked.

use std::fmt;

/// A sort of question, or of text to continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Chat: what is in the picture? All shapes, from left to right.
    Caption,
    /// Continuation: the same, as the end of a sentence.
    PromptedCaption,
    /// Chat: the colour of a shape.
    Colour,
    /// Chat: the kind of a shape.
    Shape,
    /// Chat: how many shapes, of a colour, or of a kind.
    Count,
    /// Chat: where a shape is, in the picture or beside another.
    Place,
    /// Chat: which shape is larger, smaller, further left, further right.
    Comparison,
    /// Chat: is a shape there, does it have a colour, are there more than a number of them?
    YesNo,
    /// Continuation: which of the listed categories is it?
    Classification,
    /// Chat: questions about two pictures.
    TwoPictures,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 10] = [
        Self::Caption,
        Self::PromptedCaption,
        Self::Colour,
        Self::Shape,
        Self::Count,
        Self::Place,
        Self::Comparison,
        Self::YesNo,
        Self::Classification,
        Self::TwoPictures,
    ];

    /// Its name in reports, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::PromptedCaption => "prompted caption",
            Self::Colour => "colour",
            Self::Shape => "shape",
            Self::Count => "count",
            Self::Place => "place",
            Self::Comparison => "comparison",
            Self::YesNo => "yes or no",
            Self::Classification => "classification",
            Self::TwoPictures => "two pictures",
        }
    }

    /// How many pictures it is about.
    pub fn n_pictures(self) -> usize {
        if self == Self::TwoPictures { 2 } else { 1 }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A question and the only right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The sort of question.
    pub task: Task,
    /// What the user asks.
    pub question: String,
    /// What the assistant answers: a capital letter first, a full stop last.
    pub answer: String,
}
