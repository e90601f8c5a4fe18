//! Decodes an image file and writes its pixels, so that another program can compare them.
//!
//! `decode FILE [--alpha white|drop] [--page N]` writes a line `width height` and then the RGB bytes `[height, width,
//! 3]` to standard output. Transparency is dropped by default.

#![allow(clippy::print_stderr)]

use std::io::Write as _;

use idefics_image::{Alpha, DecodeOptions, ImageSource, Limits, load};

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut alpha = Alpha::Drop;
    let (mut file, mut page) = (None, None);
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--alpha") => {
                alpha = match arguments.next().as_deref().and_then(|value| value.to_str()) {
                    Some("white") => Alpha::White,
                    Some("drop") => Alpha::Drop,
                    _ => return Err("--alpha expects white or drop".into()),
                }
            }
            Some("--page") => {
                let number = arguments.next().and_then(|value| value.to_str()?.parse().ok());
                page = Some(number.ok_or("--page expects a page number, counted from 1")?);
            }
            _ => file = Some(argument),
        }
    }
    let file = file.ok_or("usage: decode FILE [--alpha white|drop] [--page N]")?;
    let options = DecodeOptions::from(alpha);
    let options = page.map_or(options, |page| options.with_page(page));
    let picture = load(&ImageSource::Path(file.into()), &Limits::default(), options)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} {}", picture.width(), picture.height())?;
    out.write_all(picture.data())?;
    Ok(())
}
