//! A custom family in one file. The number of tiles, and so the text, depends on the picture's size.

use idefics_processor::families::{ExpandedPrompt, PromptContext, PromptStyle, PromptText, TileGrid, TileSizes};
use idefics_processor::image::{
    Crop, Filter, ImageConfigError, ImageProcessorConfig, ImageSize, ImageSource, ResizeTarget,
};
use idefics_processor::{FamilyRules, ProcessOptions, Processor, Sample};
use serde_json::{Map, Value};

use crate::common::checkpoint;

/// Cuts pictures into tiles of 16 × 16 pixels. `<image>` becomes one image token per tile, with one line per row of
/// tiles.
#[derive(Debug)]
struct Toy;

const SIDE: u32 = 16;

impl FamilyRules for Toy {
    fn model_type(&self) -> &'static str {
        "toy"
    }

    fn image_config(&self, _section: Map<String, Value>) -> Result<ImageProcessorConfig, ImageConfigError> {
        let size = ImageSize::Exact { height: SIDE, width: SIDE };
        Ok(ImageProcessorConfig { size, ..ImageProcessorConfig::default() })
    }

    fn image_seq_len(&self, _configured: Option<&Value>) -> Option<usize> {
        Some(1)
    }

    fn prompt_style(&self) -> PromptStyle {
        PromptStyle::Template
    }

    fn tile_sizes(&self) -> TileSizes {
        TileSizes::Equal
    }

    fn layout(&self, width: u32, height: u32, _config: &ImageProcessorConfig) -> TileGrid {
        let (cols, rows) = (width.div_ceil(SIDE), height.div_ceil(SIDE));
        let tile = |row: u32, col: u32| {
            let (left, top) = (col * SIDE, row * SIDE);
            let crop = Crop { left, top, right: width.min(left + SIDE), bottom: height.min(top + SIDE) };
            ResizeTarget { crop, width: SIDE, height: SIDE, filter: Filter::Bilinear }
        };
        let tiles = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))).map(|(row, col)| tile(row, col));
        TileGrid::new(rows as usize, cols as usize, tiles.collect())
    }

    fn expand(&self, prompt: PromptText<'_>, context: &PromptContext<'_>) -> ExpandedPrompt {
        let (PromptText::Text(text) | PromptText::Conversation(text)) = prompt else {
            unreachable!("this style has no prompt lists")
        };
        let image = &context.tokens.image;
        let mut grids = context.grids.iter();
        let mut expanded = String::new();
        for (index, words) in text.split(image.as_str()).enumerate() {
            if index > 0 {
                let grid = grids.next().unwrap();
                expanded.push_str(&vec![image.repeat(grid.cols); grid.rows].join("\n"));
            }
            expanded.push_str(words);
        }
        ExpandedPrompt { text: expanded, add_special_tokens: true }
    }
}

fn png(width: u32, height: u32) -> ImageSource {
    let mut file = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(width, height).write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner().into()
}

#[test]
fn custom_family_controls_tiles_and_text() {
    let processor = Processor::from_folder_with(&checkpoint("tiny-idefics2"), &Toy).unwrap();
    assert_eq!(processor.family().model_type(), "toy");
    let samples = [
        Sample::Text { text: "a <image> b".to_owned(), images: vec![png(40, 20)], videos: Vec::new() },
        Sample::Text { text: "<image><image>".to_owned(), images: vec![png(16, 16), png(5, 33)], videos: Vec::new() },
    ];
    let processed = processor.process(&samples, &ProcessOptions::default()).unwrap();
    assert_eq!(processed.prompts[0], "a <image><image><image>\n<image><image><image> b");
    assert_eq!(processed.prompts[1], "<image><image>\n<image>\n<image>");
    let image = processor.tokenizer().image_token_id();
    for (ids, tiles) in processed.input_ids.iter().zip(&processed.images) {
        assert_eq!(ids.iter().filter(|&&id| id == image).count(), tiles.len());
        assert!(tiles.iter().all(|tile| (tile.width(), tile.height()) == (16, 16)));
    }
    assert_eq!(processed.images.iter().map(Vec::len).collect::<Vec<_>>(), [6, 4]);
}
