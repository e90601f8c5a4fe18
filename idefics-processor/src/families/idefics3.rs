//! Idefics3, SmolVLM and SmolVLM2. An image is resized so that both sides are multiples of the tile size, and cut into
//! square tiles, row by row. The whole image follows as one more tile. The prompt names the row and column of each
//! tile.
//!
//! Source: `Idefics3Processor`, `SmolVLMProcessor` and `Idefics3ImageProcessorPil` of transformers 5.23.

use std::fmt::Write;

use idefics_image::{Crop, Filter, ResizeTarget};
use serde_json::{Map, Value};

use super::{ExpandedPrompt, FamilyRules, PromptContext, PromptStyle, PromptText, TileGrid, TileSizes};
use crate::image::{ImageConfigError, ImageProcessorConfig, ImageSize, field_error};
use crate::prompt::ImageTokens;
use crate::video::{Medium, VIDEO_TOKEN, VideoRules, VideoSampling, split_media, write_video};

/// Maximum side of a resized image, in pixels. Source: `MAX_IMAGE_SIZE`.
const MAX_SIDE: u32 = 4096;
/// Default side of a tile, in pixels.
const TILE_SIDE: u32 = 364;
/// Text before the image tokens of the whole image. Most tokenizers encode it as one token, the others as ordinary
/// text.
const GLOBAL_IMAGE: &str = "<global-img>";

/// The rules of Idefics3, SmolVLM and SmolVLM2. They differ in `model_type`, and only SmolVLM2 reads videos.
#[derive(Debug, Clone, Copy)]
pub struct Idefics3 {
    model_type: &'static str,
    video: Option<VideoRules>,
}

/// The template that the reference uses for every conversation with a video, because the templates in public folders
/// leave videos out. Source: `DEFAULT_CHAT_TEMPLATE` of `processing_smolvlm.py`.
const VIDEO_TEMPLATE: &str = "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}\
    {% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}\
    {% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}\
    {% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}\
    {% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

/// The default sampling of frames, which is that of the public SmolVLM2 checkpoints.
const VIDEO_SAMPLING: VideoSampling = VideoSampling { fps: 1.0, num_frames: 64 };

impl Idefics3 {
    /// Idefics3 and SmolVLM.
    pub const IDEFICS3: Self = Self { model_type: "idefics3", video: None };
    /// SmolVLM2.
    pub const SMOLVLM: Self =
        Self { model_type: "smolvlm", video: Some(VideoRules::new(VIDEO_SAMPLING, VIDEO_TEMPLATE)) };
}

impl FamilyRules for Idefics3 {
    fn model_type(&self) -> &'static str {
        self.model_type
    }

    fn image_config(&self, section: Map<String, Value>) -> Result<ImageProcessorConfig, ImageConfigError> {
        ImageProcessorConfig::from_idefics3_object(&section)
    }

    fn image_seq_len(&self, configured: Option<&Value>) -> Option<usize> {
        match configured {
            None | Some(Value::Null) => Some(169), // `Idefics3Processor.__init__`
            Some(value) => value.as_u64().filter(|length| (1..=4096).contains(length)).map(|length| length as usize),
        }
    }

    fn prompt_style(&self) -> PromptStyle {
        PromptStyle::Template
    }

    fn tile_sizes(&self) -> TileSizes {
        TileSizes::Equal
    }

    fn video(&self) -> Option<VideoRules> {
        self.video
    }

    /// With `do_image_splitting`, the tiles are the cells of the grid, then the whole image. Without it, or if the
    /// image is not larger than a tile, the whole image is the only tile and the grid is 0 × 0.
    ///
    /// Each resize rounds the pixels to 8 bits, so each resize of the reference must be done too: two for a cell of the
    /// grid, three for the whole image.
    fn layout(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> TileGrid {
        let Sizes { resizes, tile, rows, cols } = Sizes::of(width, height, config);
        let target = |crop, (width, height)| ResizeTarget { crop, width, height, filter: config.resample };
        let mut before = (width, height);
        let resizes = resizes.into_iter().map(|size| {
            let crop = Crop::whole(before.0, before.1);
            before = size;
            target(crop, size)
        });
        let resizes: Vec<ResizeTarget> = resizes.collect();
        let cells = (0..rows).flat_map(|row| (0..cols).map(move |col| (row * tile, col * tile)));
        let cells = cells.map(|(top, left)| Crop { left, top, right: left + tile, bottom: top + tile });
        let mut tiles: Vec<ResizeTarget> = cells.map(|crop| target(crop, (tile, tile))).collect();
        tiles.push(target(Crop::whole(before.0, before.1), (tile, tile)));
        TileGrid::new(rows as usize, cols as usize, tiles).with_resizes(resizes)
    }

    fn n_tiles(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> u64 {
        let Sizes { rows, cols, .. } = Sizes::of(width, height, config);
        u64::from(rows) * u64::from(cols) + 1
    }

    fn expand(&self, prompt: PromptText<'_>, context: &PromptContext<'_>) -> ExpandedPrompt {
        let PromptContext { tokens, bos, grids, videos, .. } = *context;
        // The template may have written the start token already. Source: `ProcessorMixin.apply_chat_template`.
        let (text, has_bos) = match prompt {
            PromptText::Text(text) => (text, false),
            PromptText::Conversation(text) => (text, !bos.is_empty() && text.starts_with(bos)),
            PromptText::Parts(_) => ("", false), // never passed to families with `PromptStyle::Template`
        };
        let mut expanded = String::with_capacity(text.len());
        let (mut grids, mut videos) = (grids.iter(), videos.iter());
        let (parts, rest) = split_media(text, &tokens.image, self.video.map(|_| VIDEO_TOKEN));
        for (words, medium) in parts {
            expanded.push_str(words);
            match medium {
                Medium::Image => {
                    if let Some(grid) = grids.next() {
                        write_image(&mut expanded, tokens, grid);
                    }
                }
                Medium::Video => {
                    if let Some(video) = videos.next() {
                        let mut frame = String::new();
                        write_image(&mut frame, tokens, &TileGrid::new(0, 0, Vec::new()));
                        write_video(&mut expanded, video, &frame);
                    }
                }
            }
        }
        expanded.push_str(rest);
        ExpandedPrompt { text: expanded, add_special_tokens: !has_bos }
    }
}

/// Supported values of `image_processor_type`.
const IMAGE_PROCESSOR_TYPES: [&str; 6] = [
    "Idefics3ImageProcessor",
    "Idefics3ImageProcessorFast",
    "Idefics3ImageProcessorPil",
    "SmolVLMImageProcessor",
    "SmolVLMImageProcessorFast",
    "SmolVLMImageProcessorPil",
];

impl ImageProcessorConfig {
    /// Reads and validates the fields of an Idefics3, SmolVLM or SmolVLM2 checkpoint. Fields that are absent or null
    /// get their default. Tiles are squares with the side `max_image_size`.
    ///
    /// # Errors
    /// [`ImageConfigError::Field`] for a value that is invalid or not supported.
    pub fn from_idefics3_object(object: &Map<String, Value>) -> Result<Self, ImageConfigError> {
        let config = Self::idefics3().with_fields(object, &IMAGE_PROCESSOR_TYPES)?;
        match config.size {
            ImageSize::LongestEdge { .. } | ImageSize::Exact { .. } => Ok(config),
            ImageSize::Edges { .. } => {
                let size = object.get("size").unwrap_or(&Value::Null);
                Err(field_error("size", size, "{longest_edge} or {height, width} in whole pixels"))
            }
        }
    }

    /// Returns the defaults of the reference's `Idefics3ImageProcessorPil`.
    pub fn idefics3() -> Self {
        Self {
            size: ImageSize::LongestEdge { longest_edge: 4 * TILE_SIDE },
            resample: Filter::Lanczos,
            do_image_splitting: true,
            max_image_size: Some(TILE_SIDE),
            ..Self::default()
        }
    }
}

/// The sizes of an image during processing, in pixels.
struct Sizes {
    /// Width and height after each resize of the whole image.
    resizes: Vec<(u32, u32)>,
    /// Side of a tile.
    tile: u32,
    /// Number of rows of the grid; 0 if the image is a single tile.
    rows: u32,
    /// Number of columns of the grid; 0 if the image is a single tile.
    cols: u32,
}

impl Sizes {
    /// Computes the sizes for an image of `width` × `height` pixels. Source: `Idefics3ImageProcessorPil._preprocess`.
    fn of(width: u32, height: u32, config: &ImageProcessorConfig) -> Self {
        let tile = config.max_image_size.unwrap_or(TILE_SIDE);
        let (mut resizes, mut size) = (Vec::with_capacity(2), (width, height));
        if config.do_resize {
            size = match config.size {
                ImageSize::Exact { height, width } => (width, height),
                ImageSize::LongestEdge { longest_edge } | ImageSize::Edges { longest_edge, .. } => {
                    cap(longest_edge_size(width, height, longest_edge))
                }
            };
            resizes.push(size);
        }
        if !config.do_image_splitting {
            return Self { resizes, tile, rows: 0, cols: 0 };
        }
        size = whole_tiles(size, tile);
        resizes.push(size);
        let (rows, cols) = match size.0 > tile || size.1 > tile {
            true => (size.1 / tile, size.0 / tile),
            false => (0, 0),
        };
        Self { resizes, tile, rows, cols }
    }
}

/// Scales a size so that the longer side is `longest_edge`. The shorter side is rounded up to an even number.
///
/// Source: `_resize_output_size_rescale_to_max_len`, including its f64 arithmetic and truncation.
fn longest_edge_size(width: u32, height: u32, longest_edge: u32) -> (u32, u32) {
    let aspect_ratio = f64::from(width) / f64::from(height);
    let even = |side: f64| (side as u32 + side as u32 % 2).max(1);
    match width >= height {
        true => (longest_edge, even(f64::from(longest_edge) / aspect_ratio)),
        false => (even(f64::from(longest_edge) * aspect_ratio), longest_edge),
    }
}

/// Scales a size down so that no side exceeds [`MAX_SIDE`]. Source: `_resize_output_size_scale_below_upper_bound`.
fn cap((width, height): (u32, u32)) -> (u32, u32) {
    let aspect_ratio = f64::from(width) / f64::from(height);
    let side = |side: f64| (side as u32).max(1);
    if width >= height && width > MAX_SIDE {
        (MAX_SIDE, side(f64::from(MAX_SIDE) / aspect_ratio))
    } else if height > width && height > MAX_SIDE {
        (side(f64::from(MAX_SIDE) * aspect_ratio), MAX_SIDE)
    } else {
        (width, height)
    }
}

/// Rounds the longer side up to a multiple of `tile`. The shorter side is scaled by the same factor, and then rounded
/// up to a multiple of `tile` too.
///
/// Source: `Idefics3ImageProcessorPil.resize_for_vision_encoder`.
fn whole_tiles((width, height): (u32, u32), tile: u32) -> (u32, u32) {
    let aspect_ratio = f64::from(width) / f64::from(height);
    let up = |side: u32| side.div_ceil(tile).saturating_mul(tile);
    match width >= height {
        true => {
            let width = up(width);
            (width, up((f64::from(width) / aspect_ratio) as u32).max(tile))
        }
        false => {
            let height = up(height);
            (up((f64::from(height) * aspect_ratio) as u32).max(tile), height)
        }
    }
}

/// Writes the image tokens of an image, with the markers of its tiles. Source: `get_image_prompt_string`.
fn write_image(text: &mut String, tokens: &ImageTokens, grid: &TileGrid) {
    let ImageTokens { image, fake, image_seq_len } = tokens;
    let image = image.repeat(*image_seq_len);
    for row in 1..=grid.rows {
        for col in 1..=grid.cols {
            write!(text, "{fake}<row_{row}_col_{col}>{image}").expect("writing to a string succeeds");
        }
        text.push('\n');
    }
    if grid.rows > 0 {
        text.push('\n');
    }
    write!(text, "{fake}{GLOBAL_IMAGE}{image}{fake}").expect("writing to a string succeeds");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(longest_edge: u32, tile: u32) -> ImageProcessorConfig {
        let size = ImageSize::LongestEdge { longest_edge };
        ImageProcessorConfig { size, max_image_size: Some(tile), ..ImageProcessorConfig::idefics3() }
    }

    /// The cases are recorded from the reference. Each has (width, height) of an image, (`longest_edge`, tile side),
    /// the sizes after the two resizes, and (rows, columns) of the grid.
    #[test]
    fn grids_match_the_reference() {
        let cases = [
            ((1, 1), (1456, 364), [(1456, 1456), (1456, 1456)], (4, 4)),
            ((80, 100), (1456, 364), [(1164, 1456), (1456, 1456)], (4, 4)),
            ((640, 480), (1456, 364), [(1456, 1092), (1456, 1092)], (3, 4)),
            ((1920, 1080), (1456, 364), [(1456, 820), (1456, 1092)], (3, 4)),
            ((1000, 333), (1456, 364), [(1456, 484), (1456, 728)], (2, 4)),
            ((100, 3000), (1456, 364), [(48, 1456), (364, 1456)], (4, 1)),
            ((5000, 50), (1456, 364), [(1456, 14), (1456, 364)], (1, 4)),
            ((640, 480), (2048, 512), [(2048, 1536), (2048, 1536)], (3, 4)),
            ((640, 480), (1000, 364), [(1000, 750), (1092, 1092)], (3, 3)),
            ((640, 480), (1457, 364), [(1457, 1092), (1820, 1456)], (4, 5)),
            ((640, 480), (8192, 512), [(4096, 3072), (4096, 3072)], (6, 8)),
            ((640, 640), (2184, 364), [(2184, 2184), (2184, 2184)], (6, 6)),
        ];
        for ((width, height), (longest_edge, tile), resizes, (rows, cols)) in cases {
            let config = config(longest_edge, tile);
            let grid = Idefics3::IDEFICS3.layout(width, height, &config);
            let sizes: Vec<_> = grid.resizes.iter().map(|resize| (resize.width, resize.height)).collect();
            assert_eq!(sizes, resizes, "{width}x{height}, {longest_edge}/{tile}");
            assert_eq!((grid.rows, grid.cols), (rows, cols), "{width}x{height}, {longest_edge}/{tile}");
            assert_eq!(grid.tiles.len(), rows * cols + 1);
            assert_eq!(Idefics3::IDEFICS3.n_tiles(width, height, &config), grid.tiles.len() as u64);
        }
    }

    #[test]
    fn without_do_resize_sides_are_rounded_up_to_whole_tiles() {
        let config = ImageProcessorConfig { do_resize: false, ..config(256, 64) };
        let grid = |width, height| {
            let grid = Idefics3::SMOLVLM.layout(width, height, &config);
            (grid.rows, grid.cols)
        };
        for (width, height) in [(30, 20), (64, 64), (64, 20)] {
            assert_eq!(grid(width, height), (0, 0));
        }
        assert_eq!([grid(100, 70), grid(300, 64), grid(64, 300)], [(2, 2), (2, 5), (5, 2)]);
        let unsplit = ImageProcessorConfig { do_image_splitting: false, ..config };
        let grid = Idefics3::SMOLVLM.layout(1000, 10, &unsplit);
        assert_eq!((grid.tiles.len(), grid.resizes.len()), (1, 0));
    }

    #[test]
    fn tiles_are_named_by_row_and_column() {
        let tokens = ImageTokens { image: "I".to_owned(), fake: "F".to_owned(), image_seq_len: 2 };
        let written = |rows, cols| {
            let mut text = String::new();
            write_image(&mut text, &tokens, &TileGrid::new(rows, cols, Vec::new()));
            text
        };
        assert_eq!(written(0, 0), "F<global-img>IIF");
        assert_eq!(
            written(2, 2),
            "F<row_1_col_1>IIF<row_1_col_2>II\nF<row_2_col_1>IIF<row_2_col_2>II\n\nF<global-img>IIF"
        );
    }
}
