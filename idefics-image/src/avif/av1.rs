//! Decodes one AV1 frame with the crate `rav1d`.
//!
//! The crate has only the C interface of dav1d. This module wraps that interface in a safe function.
#![allow(unsafe_code)] // calls a C interface

use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

use rav1d::include::dav1d::data::Dav1dData;
use rav1d::include::dav1d::dav1d::{Dav1dContext, Dav1dSettings};
use rav1d::include::dav1d::headers::{DAV1D_PIXEL_LAYOUT_I400, DAV1D_PIXEL_LAYOUT_I420, DAV1D_PIXEL_LAYOUT_I422};
use rav1d::include::dav1d::picture::Dav1dPicture;
use rav1d::src::lib::{
    dav1d_close, dav1d_data_create, dav1d_data_unref, dav1d_default_settings, dav1d_get_picture, dav1d_open,
    dav1d_picture_unref, dav1d_send_data,
};

/// Chroma subsampling: how many luma samples share a chroma sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sampling {
    /// No chroma, 4:0:0.
    Mono,
    /// A block of 2x2 luma samples shares one chroma sample, 4:2:0.
    Quarter,
    /// Two adjacent luma samples of a row share one chroma sample, 4:2:2.
    Half,
    /// Chroma has the resolution of luma, 4:4:4.
    Full,
}

impl Sampling {
    /// Returns the binary logarithm of the number of luma samples per chroma sample, horizontally and vertically.
    pub(super) fn shifts(self) -> (u32, u32) {
        match self {
            Self::Mono | Self::Full => (0, 0),
            Self::Quarter => (1, 1),
            Self::Half => (1, 0),
        }
    }
}

/// Samples of one component, `[height, width]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Plane {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) samples: Vec<u16>,
}

impl Plane {
    pub(super) fn row(&self, y: usize) -> &[u16] {
        &self.samples[y * self.width..][..self.width]
    }
}

/// Colour description. The numbers are code points of ITU-T H.273.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ColorCodes {
    pub(super) primaries: u16,
    pub(super) matrix: u16,
    pub(super) is_full_range: bool,
}

/// A decoded frame. It has one luma plane and, unless it is [`Sampling::Mono`], two chroma planes (Cb, Cr).
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bits per sample: 8, 10 or 12.
    pub(super) depth: u32,
    pub(super) sampling: Sampling,
    pub(super) planes: Vec<Plane>,
    pub(super) colors: ColorCodes,
}

/// An open decoder context.
struct Decoder(Option<Dav1dContext>);

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the context is `None` or comes from `dav1d_open`, and only `drop` closes it. `dav1d_close` ignores
        // `None`.
        unsafe { dav1d_close(Some(NonNull::from(&mut self.0))) }
    }
}

impl Decoder {
    /// Opens a decoder that uses two threads and rejects frames of more than `max_pixels` pixels.
    fn open(operating_point: u8, max_pixels: u32) -> Result<Self, String> {
        let mut settings = MaybeUninit::<Dav1dSettings>::uninit();
        // SAFETY: the pointer comes from a live `MaybeUninit`, so it is valid for writes. The call initialises all
        // settings.
        let mut settings = unsafe {
            dav1d_default_settings(NonNull::new_unchecked(settings.as_mut_ptr()));
            settings.assume_init()
        };
        // With a frame delay of 1, a damaged frame makes an assertion in the decoder fail, which aborts the process.
        settings.n_threads = 2;
        settings.max_frame_delay = 2;
        settings.all_layers = 0;
        settings.operating_point = operating_point.into();
        settings.frame_size_limit = max_pixels;
        // SAFETY: a zeroed logger is valid. It has no callback and no cookie, so nothing is logged.
        unsafe { ptr::write_bytes(&raw mut settings.logger, 0, 1) };
        let mut decoder = Self(None);
        // SAFETY: both pointers point to live values of their types.
        let result = unsafe { dav1d_open(Some(NonNull::from(&mut decoder.0)), Some(NonNull::from(&mut settings))) };
        if result.0 < 0 { Err(format!("the AV1 decoder cannot be opened (error {})", result.0)) } else { Ok(decoder) }
    }
}

/// Compressed data, copied to memory that the decoder owns.
struct Data(Dav1dData);

impl Data {
    fn copy(bytes: &[u8]) -> Result<Self, String> {
        let mut data = Self(Dav1dData::default());
        // SAFETY: the pointer points to a live default value, which owns no memory that the call could leak.
        let target = unsafe { dav1d_data_create(Some(NonNull::from(&mut data.0)), bytes.len()) };
        if target.is_null() {
            return Err("out of memory for the compressed frame".to_owned());
        }
        // SAFETY: `target` points to `bytes.len()` newly allocated bytes that nothing else refers to.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
        Ok(data)
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        // SAFETY: the value is initialised. When the decoder takes the data, it empties the value, so nothing is freed
        // twice.
        unsafe { dav1d_data_unref(Some(NonNull::from(&mut self.0))) }
    }
}

/// A decoded picture in memory that the decoder owns.
struct Picture(Dav1dPicture);

impl Drop for Picture {
    fn drop(&mut self) {
        // SAFETY: the value is initialised: it is empty or was filled by `dav1d_get_picture`.
        unsafe { dav1d_picture_unref(Some(NonNull::from(&mut self.0))) }
    }
}

/// Decodes the first frame that is shown. AV1 data can contain hidden frames too. `operating_point` selects the layers
/// to decode.
///
/// # Errors
/// A message that says what is wrong with the data. Frames of more than `max_pixels` pixels are rejected before
/// memory is allocated for them.
pub(super) fn decode(bytes: &[u8], operating_point: u8, max_pixels: u32) -> Result<Frame, String> {
    const AGAIN: i32 = -libc::EAGAIN;
    if bytes.is_empty() {
        return Err("a frame has no data".to_owned());
    }
    let decoder = Decoder::open(operating_point, max_pixels)?;
    let mut data = Data::copy(bytes)?;
    let mut picture = Picture(Dav1dPicture::default());
    // Each iteration consumes data or drains the decoder, so a few iterations suffice.
    for _ in 0..64 {
        if data.0.sz > 0 {
            // SAFETY: the decoder is open, and `data` is live and initialised. The call removes the bytes that it
            // consumes.
            let result = unsafe { dav1d_send_data(decoder.0, Some(NonNull::from(&mut data.0))) };
            if result.0 < 0 && result.0 != AGAIN {
                return Err(format!("the AV1 data is damaged (error {})", result.0));
            }
        }
        // SAFETY: the decoder is open, and the picture is empty.
        let result = unsafe { dav1d_get_picture(decoder.0, Some(NonNull::from(&mut picture.0))) };
        match result.0 {
            0.. => return copy_frame(&picture.0),
            AGAIN if data.0.sz > 0 => {}
            AGAIN => break,
            error => return Err(format!("the AV1 data is damaged (error {error})")),
        }
    }
    // SAFETY: the decoder is open, and the picture is empty. Draining once more returns a delayed frame.
    let result = unsafe { dav1d_get_picture(decoder.0, Some(NonNull::from(&mut picture.0))) };
    if result.0 >= 0 { copy_frame(&picture.0) } else { Err("the AV1 data ends before the frame".to_owned()) }
}

fn copy_frame(picture: &Dav1dPicture) -> Result<Frame, String> {
    let (width, height) = (picture.p.w as usize, picture.p.h as usize);
    let sampling = match picture.p.layout {
        DAV1D_PIXEL_LAYOUT_I400 => Sampling::Mono,
        DAV1D_PIXEL_LAYOUT_I420 => Sampling::Quarter,
        DAV1D_PIXEL_LAYOUT_I422 => Sampling::Half,
        _ => Sampling::Full,
    };
    let depth = picture.p.bpc as u32;
    let (across, down) = sampling.shifts();
    let (chroma_width, chroma_height) = (width.div_ceil(1 << across), height.div_ceil(1 << down));
    let sizes = [(width, height), (chroma_width, chroma_height), (chroma_width, chroma_height)];
    let count = if sampling == Sampling::Mono { 1 } else { 3 };
    let mut planes = Vec::with_capacity(count);
    for (at, &(width, height)) in sizes[..count].iter().enumerate() {
        let start = picture.data[at].ok_or("a plane of the frame is missing")?.as_ptr().cast::<u8>().cast_const();
        let stride = picture.stride[at.min(1)];
        let mut samples = Vec::with_capacity(width * height);
        for y in 0..height {
            // SAFETY: dav1d guarantees that row `y` starts `y` strides after the start of its plane and has at least
            // `width` samples. A sample has one byte at a depth of 8 and two bytes at greater depths. Rows are aligned
            // for both sample types.
            unsafe {
                let row = start.offset(stride * y as isize);
                if depth == 8 {
                    samples.extend(std::slice::from_raw_parts(row, width).iter().map(|&sample| u16::from(sample)));
                } else {
                    samples.extend_from_slice(std::slice::from_raw_parts(row.cast::<u16>(), width));
                }
            }
        }
        planes.push(Plane { width, height, samples });
    }
    // SAFETY: the sequence header of a picture lives as long as the picture.
    let header = unsafe { picture.seq_hdr.ok_or("the frame has no sequence header")?.as_ref() };
    let colors =
        ColorCodes { primaries: header.pri as u16, matrix: header.mtrx as u16, is_full_range: header.color_range != 0 };
    Ok(Frame { width: width as u32, height: height as u32, depth, sampling, planes, colors })
}
