//! `idefics quantize`

use std::io::{self, Write};

use idefics_generate::nn::PackedFormat;
use idefics_generate::{DeviceChoice, Error, Precision, WeightFormat, WeightOptions, quantize_folder};

use crate::args::{Global, QuantizeArgs};
use crate::failure::Failure;
use crate::{model, signals};

/// Writes a model folder with quantised linear layers.
pub(crate) fn run(global: &Global, args: &QuantizeArgs) -> Result<(), Failure> {
    let refused = match args.to {
        WeightFormat::None => Some("--to none: expected int8, nf4, fp4 or q4"),
        _ if global.quantize != WeightFormat::None => Some("--quantize cannot be used here; --to sets the format"),
        _ if global.dtype != Precision::Auto => Some("--dtype cannot be used here; other tensors are copied unchanged"),
        WeightFormat::Packed(PackedFormat::Int8 | PackedFormat::Q4) if global.double_quant => {
            Some("--double-quant works with nf4 and fp4 only")
        }
        _ => None,
    };
    if let Some(reason) = refused {
        return Err(Failure::usage(reason.to_owned()));
    }
    let source = model::folder(global)?;
    let (_, device) = DeviceChoice::Cpu.open().map_err(Error::from)?;
    let options = WeightOptions { quantize: args.to, ..global.weights(WeightOptions::default()) };
    let cancel = signals::cancel();
    let bar = model::byte_bar();
    bar.set_message("quantising");
    let written = quantize_folder(source.path(), &args.out, &options, &device, |done| {
        bar.set_length(done.bytes_total);
        bar.set_position(done.bytes_done);
        if cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    });
    bar.finish_and_clear();
    written?;
    writeln!(io::stdout(), "{}", args.out.display())?;
    Ok(())
}
