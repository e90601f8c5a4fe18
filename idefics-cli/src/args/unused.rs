//! Options that have no effect without other options.

use idefics_generate::WeightFormat;
use idefics_generate::engine::Speculation;
use idefics_generate::nn::PackedFormat;

use super::{Cli, Command, GenerationArgs, QuantizeTo};

impl Cli {
    /// Returns a warning for each option that has no effect.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let (global, command) = (&self.global, &self.command);
        // The format that the weights are quantised to, if any. A GGUF file has a format for each tensor.
        let (format, quantizes) = match command {
            Command::Quantize(args) => match args.to {
                QuantizeTo::Packed(format) => (format, true),
                QuantizeTo::Gguf(_) => (WeightFormat::None, false),
            },
            _ => (global.quantize, global.quantize != WeightFormat::None),
        };
        let needed = match command {
            Command::Quantize(_) => "with --to int8, nf4, fp4 or q4",
            _ => "with --quantize",
        };
        let is_four_bit = matches!(format, WeightFormat::Packed(PackedFormat::FourBit(_)));
        // `quantize` itself rejects --double-quant with other formats.
        let four_bit = !is_four_bit && !matches!(command, Command::Quantize(_));
        let is_placed = global.device_map.is_some() || matches!(command, Command::Inspect);
        let is_chat = matches!(command, Command::Chat(_));
        let logprobs = self.answers_as_text().filter(|_| !global.json);
        [
            (global.double_quant && four_bit, "--double-quant", "with --quantize nf4 or --quantize fp4"),
            (!global.quantize_vision && !quantizes, "--quantize-vision", needed),
            (global.quantize_head && !quantizes, "--quantize-head", needed),
            (global.max_memory.is_some() && !is_placed, "--max-memory", "with --device-map auto, and in `inspect`"),
            (matches!(global.speculate, Speculation::UpTo(_)) && is_chat, "--speculate", "outside chats"),
            (logprobs.is_some_and(GenerationArgs::has_logprobs), "--logprobs", "with --json"),
            (logprobs.is_some_and(GenerationArgs::has_prompt_logprobs), "--prompt-logprobs", "with --json"),
        ]
        .into_iter()
        .filter(|(is_idle, ..)| *is_idle)
        .map(|(_, option, needed)| format!("{option} has no effect here; it works only {needed}"))
        .collect()
    }

    /// Returns the generation options of a command that prints its answers as text, unless `--json` is given.
    fn answers_as_text(&self) -> Option<&GenerationArgs> {
        match &self.command {
            Command::Caption(args) => Some(&args.generation),
            Command::Ask(args) => Some(&args.generation),
            Command::Generate(args) => Some(&args.generation),
            Command::Chat(args) => Some(&args.generation),
            Command::Classify(args) if !args.rank => Some(&args.generation),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn warnings(line: &str) -> Vec<String> {
        let line: Vec<&str> = ["idefics"].into_iter().chain(line.split(' ')).collect();
        Cli::try_parse_from(line).unwrap().warnings()
    }

    #[test]
    fn options_without_effect_are_named() {
        for (line, option) in [
            ("--double-quant caption a.png", "--double-quant"),
            ("--double-quant --quantize int8 caption a.png", "--double-quant"),
            ("--quantize-head true caption a.png", "--quantize-head"),
            ("--quantize-vision false inspect", "--quantize-vision"),
            ("--quantize-vision false quantize --to gguf:q8_0 out", "--quantize-vision"),
            ("--max-memory cpu:0=1GB caption a.png", "--max-memory"),
            ("--speculate 4 chat", "--speculate"),
            ("ask a.png What? --logprobs 2", "--logprobs"),
            ("chat --prompt-logprobs", "--prompt-logprobs"),
            ("classify a.png --labels a,b --logprobs 2", "--logprobs"),
        ] {
            let found = warnings(line);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{option} has no effect")), "{line}: {found:?}");
        }
    }

    #[test]
    fn options_with_effect_give_no_warning() {
        for line in [
            "caption a.png",
            "--double-quant --quantize nf4 --quantize-head true --quantize-vision false caption a.png",
            "--quantize-vision true caption a.png",
            "--double-quant --quantize-head true quantize --to fp4 out",
            "--max-memory cpu:0=1GB inspect",
            "--max-memory cpu:0=1GB --device-map auto caption a.png",
            "--speculate 4 ask a.png What?",
            "--json ask a.png What? --logprobs 2 --prompt-logprobs",
            "batch in.jsonl --output out.jsonl --logprobs 2",
        ] {
            assert!(warnings(line).is_empty(), "{line}: {:?}", warnings(line));
        }
    }
}
