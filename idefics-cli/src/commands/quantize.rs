//! `idefics quantize`

use std::io::{self, Write};

use idefics_generate::nn::PackedFormat;
use idefics_generate::{
    DeviceChoice, Error, Precision, WeightFormat, WeightOptions, quantize_folder, quantize_to_gguf,
};

use crate::args::{Global, QuantizeArgs, QuantizeTo};
use crate::failure::Failure;
use crate::output::check_parent;
use crate::{model, signals};

/// Writes a model folder with quantised linear layers, or GGUF files.
pub(crate) fn run(global: &Global, args: &QuantizeArgs) -> Result<(), Failure> {
    let refused = match args.to {
        QuantizeTo::Packed(WeightFormat::None) => Some("--to none: expected int8, nf4, fp4, q4 or gguf:TYPE"),
        _ if global.quantize != WeightFormat::None => Some("--quantize cannot be used here; --to sets the format"),
        _ if global.dtype != Precision::Auto => Some("--dtype cannot be used here; choose the format with --to"),
        QuantizeTo::Packed(WeightFormat::Packed(PackedFormat::Int8 | PackedFormat::Q4)) | QuantizeTo::Gguf(_)
            if global.double_quant =>
        {
            Some("--double-quant works with nf4 and fp4 only")
        }
        _ => None,
    };
    if let Some(reason) = refused {
        return Err(Failure::usage(reason.to_owned()));
    }
    check_parent(&args.out)?;
    let source = model::folder(global)?;
    let (_, device) = DeviceChoice::Cpu.open().map_err(Error::from)?;
    let cancel = signals::cancel();
    let bar = model::byte_bar();
    bar.set_message("quantising");
    let progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
        if cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    };
    let written = match args.to {
        QuantizeTo::Packed(format) => {
            let options = WeightOptions { quantize: format, ..global.weights(WeightOptions::default()) };
            quantize_folder(source.path(), &args.out, &options, &device, |state| {
                progress(state.bytes_done, state.bytes_total)
            })
        }
        QuantizeTo::Gguf(mix) => quantize_to_gguf(source.path(), &args.out, mix, global.pickles(), &device, progress),
    };
    bar.finish_and_clear();
    written?;
    writeln!(io::stdout(), "{}", args.out.display())?;
    Ok(())
}
