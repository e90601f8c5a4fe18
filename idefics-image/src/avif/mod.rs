//! AVIF decoder with the same output as Pillow with libavif. It decodes the main image. If an animation has no still
//! image, it decodes the first frame.

mod av1;
mod color;
mod container;
mod track;

use image::metadata::Orientation;

use crate::ImageError;
use crate::decode::Input;
use crate::orientation::{has_tag, orientation};
use crate::raster::{Pixels, Raster};
use av1::{Frame, Plane};
use container::{Cell, CodedImage, MainImage};

pub(crate) use container::is_avif;

pub(crate) fn decode(bytes: &[u8], input: &Input<'_>) -> Result<Raster, ImageError> {
    let main = container::read(bytes).map_err(|reason| input.damaged(reason))?;
    let (width, height) = main.size;
    input.check_size(width, height)?;
    let frame = decode_coded(&main.color, input)?;
    let colors = main.colors.unwrap_or(frame.colors);
    let rgb = color::to_rgb(&frame, colors, main.alpha.is_some()).map_err(|reason| input.coding(reason))?;
    let truncates_alpha = color::truncates_alpha(&frame, colors);
    drop(frame);
    let pixels = match &main.alpha {
        None => Pixels::Rgb(rgb),
        Some(coded) => {
            if coded.size != main.size {
                return Err(input.damaged("its colour image and its alpha image have different sizes"));
            }
            let frame = decode_coded(coded, input)?;
            let alpha = color::to_alpha(&frame, frame.colors, truncates_alpha);
            let mut rgba = Vec::with_capacity(4 * alpha.len());
            for (color, alpha) in rgb.as_chunks::<3>().0.iter().zip(alpha) {
                rgba.extend([color[0], color[1], color[2], alpha]);
            }
            if main.is_premultiplied {
                color::unpremultiply(&mut rgba);
            }
            Pixels::Rgba(rgba)
        }
    };
    Ok(Raster { orientation: container_orientation(&main), ..Raster::new(width, height, pixels) })
}

/// Decodes the cells of an image and joins them into one frame of the image's size.
fn decode_coded(coded: &CodedImage<'_>, input: &Input<'_>) -> Result<Frame, ImageError> {
    let (width, height) = coded.size;
    let area = u64::from(width) * u64::from(height);
    // A pixel has at most four samples of 2 bytes.
    input.check_memory(8 * area)?;
    let max_pixels = u32::try_from(area).unwrap_or(u32::MAX);
    let damaged = |reason: String| input.damaged(reason);
    let decode_cell = |cell: &Cell<'_>| {
        let frame = match cell.parts.as_slice() {
            [part] => av1::decode(part, cell.operating_point, max_pixels),
            parts => av1::decode(&parts.concat(), cell.operating_point, max_pixels),
        };
        frame.map_err(damaged)
    };
    let Some((first, others)) = coded.cells.split_first() else { return Err(input.damaged("it contains no image")) };
    let cell = decode_cell(first)?;
    if others.is_empty() {
        if (cell.width, cell.height) != coded.size {
            let reason = format!("its frame is {}x{}; its header declares {width}x{height}", cell.width, cell.height);
            return Err(input.damaged(reason));
        }
        return Ok(cell);
    }
    let covered = |cell: u32, count: usize| u64::from(cell) * count as u64;
    if covered(cell.width, coded.columns) < width.into() || covered(cell.height, coded.rows) < height.into() {
        return Err(input.damaged("the cells of its grid do not cover the image"));
    }
    let (across, down) = cell.sampling.shifts();
    let mut whole = Frame { width, height, planes: Vec::new(), ..cell.clone() };
    for at in 0..cell.planes.len() {
        let (across, down) = if at == 0 { (0, 0) } else { (across, down) };
        let (width, height) = ((width as usize).div_ceil(1 << across), (height as usize).div_ceil(1 << down));
        whole.planes.push(Plane { width, height, samples: vec![0; width * height] });
    }
    place(&mut whole, &cell, 0, 0);
    for (at, next) in others.iter().enumerate() {
        let next = decode_cell(next)?;
        let same = |frame: &Frame| (frame.width, frame.height, frame.depth, frame.sampling);
        if same(&next) != same(&cell) {
            return Err(input.damaged("the cells of its grid differ in size, depth or chroma subsampling"));
        }
        place(&mut whole, &next, (at + 1) / coded.columns, (at + 1) % coded.columns);
    }
    Ok(whole)
}

/// Copies a cell to its row and column of the grid. Samples beyond the edge of the image are dropped.
fn place(whole: &mut Frame, cell: &Frame, row: usize, column: usize) {
    for (target, source) in whole.planes.iter_mut().zip(&cell.planes) {
        let (left, top) = (column * source.width, row * source.height);
        let width = source.width.min(target.width.saturating_sub(left));
        for y in 0..source.height.min(target.height.saturating_sub(top)) {
            let start = (top + y) * target.width + left;
            target.samples[start..start + width].copy_from_slice(&source.row(y)[..width]);
        }
    }
}

/// Returns the orientation that the container declares as rotation and mirroring. If it declares none, the orientation
/// in EXIF is ignored too, and the orientation in XMP is used only if EXIF has no orientation tag.
///
/// Source: `irot_imir_to_exif_orientation` in `_avif.c` and `AvifImagePlugin.py` of Pillow.
fn container_orientation(main: &MainImage<'_>) -> Orientation {
    let code = match (main.rotation.unwrap_or(0), main.mirror) {
        (1, Some(1)) | (3, Some(0)) => 7,
        (1, Some(_)) | (3, Some(_)) => 5,
        (2, Some(1)) | (0, Some(0)) => 4,
        (2, Some(_)) | (0, Some(_)) => 2,
        (1, None) => 8,
        (2, None) => 3,
        (3, None) => 6,
        _ => 1,
    };
    match Orientation::from_exif(code) {
        Some(orientation) if code != 1 => orientation,
        _ if main.exif.as_deref().is_some_and(has_tag) => Orientation::NoTransforms,
        _ => orientation(None, main.xmp.as_deref()),
    }
}
