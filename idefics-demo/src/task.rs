//! Types of questions.

use std::fmt;

/// A type of question, or of text to continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Chat: describe the picture. The answer lists all shapes from left to right.
    Caption,
    /// Continuation: complete a sentence such as `This picture shows` with a caption.
    PromptedCaption,
    /// Chat: the colour of a shape.
    Colour,
    /// Chat: the kind of a shape.
    Shape,
    /// Chat: the number of all shapes, or of the shapes of a colour or of a kind.
    Count,
    /// Chat: the position of a shape, in the picture or relative to another shape.
    Place,
    /// Chat: which shape is larger, smaller, further left or further right.
    Comparison,
    /// Chat: is there a certain shape, does it have a certain colour, are there more than one or two shapes?
    YesNo,
    /// Continuation: which of the listed categories does the picture show?
    Classification,
    /// Chat: questions about two pictures.
    TwoPictures,
}

impl Task {
    /// All tasks.
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

    /// Returns the name in reports, in lower case.
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

    /// Returns the number of pictures in an example of this task.
    pub fn n_pictures(self) -> usize {
        if self == Self::TwoPictures { 2 } else { 1 }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A question and its only right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The type of question.
    pub task: Task,
    /// The user's question.
    pub question: String,
    /// The assistant's answer. It starts with a capital letter and ends with a full stop.
    pub answer: String,
}
