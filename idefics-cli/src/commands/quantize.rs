//! `idefics quantize`

use std::io::{self, Write};

use idefics_generate::{Error, WeightFormat, WeightOptions, quantize_folder};

use crate::args::{Global, QuantizeArgs};
use crate::failure::Failure;
use crate::model;

/// Writes a model folder with its linear layers quantised.
pub(crate) fn run(global: &Global, args: &QuantizeArgs) -> Result<(), Failure> {
    let source = model::folder(global)?;
    if args.to == WeightFormat::None {
        return Err(Failure::usage("--to none: give int8, nf4, fp4 or q4".to_owned()));
    }
    let (_, device) = global.device.open().map_err(Error::from)?;
    let options = WeightOptions { quantize: args.to, ..global.weights(WeightOptions::default()) };
    let bar = model::byte_bar();
    bar.set_message("quantising");
    let written = quantize_folder(source.path(), &args.out, &options, &device, |done| {
        bar.set_length(done.bytes_total);
        bar.set_position(done.bytes_done);
    });
    bar.finish_and_clear();
    written?;
    writeln!(io::stdout(), "{}", args.out.display())?;
    Ok(())
}
