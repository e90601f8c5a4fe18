//! Measures grammars with the 32,000 tokens of Mistral: the times to prepare the vocabulary, to compile a grammar, and
//! to compute the mask of each token. Prints percentiles, because every token waits for its mask. Run it with
//! `cargo bench -p idefics-generate --bench grammar`.

#![allow(clippy::print_stdout, reason = "the results")]
#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::path::Path;
use std::time::{Duration, Instant};

use idefics_generate::logits::{ProcessorChain, Row, RowKey, Sampler};
use idefics_generate::{GenerationConfig, Grammar, GrammarVocabulary, load_processor};
use serde_json::json;

/// Number of answers per grammar, and the maximum number of tokens of an answer.
const ANSWERS: u64 = 20;
const TOKENS: usize = 200;

/// End token of Mistral.
const EOS: u32 = 2;

fn grammars() -> Vec<(&'static str, Grammar)> {
    let text = json!({"type": "string", "maxLength": 40});
    let receipt = json!({"type": "object", "additionalProperties": false, "required": ["shop", "items", "total"],
        "properties": {"shop": text, "date": {"type": "string", "format": "date"}, "total": {"type": "number"},
            "items": {"type": "array", "items": {"type": "object", "required": ["name", "price"],
                "properties": {"name": text, "price": {"type": "number", "minimum": 0}, "count": {"type": "integer"}}}}}});
    let keys: serde_json::Map<_, _> = (0..200).map(|key| (format!("key{key}"), text.clone())).collect();
    vec![
        ("any JSON object", Grammar::json_schema(json!({"type": "object"})).unwrap()),
        ("receipt", Grammar::json_schema(receipt).unwrap()),
        ("200 optional keys", Grammar::json_schema(json!({"type": "object", "properties": keys})).unwrap()),
        ("pattern", Grammar::json_schema(json!({"type": "string", "pattern": "^[\\w.]+@\\w+\\.(com|org)$"})).unwrap()),
        ("regular expression", Grammar::regex("(\\w{3,9} ){5,40}\\.").unwrap()),
        ("1000 choices", Grammar::choices((0..1000).map(|index| format!("choice number {index}"))).unwrap()),
    ]
}

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/checkpoints/mistral-tokenizer");
    let processor = load_processor(&folder).unwrap();
    let width = processor.tokenizer().max_id() as usize + 1;
    let clock = Instant::now();
    let vocabulary = GrammarVocabulary::new(processor.tokenizer(), width).unwrap();
    println!("vocabulary of {width} tokens: {:.1?}", clock.elapsed());
    let options = GenerationConfig { do_sample: Some(true), top_k: Some(0), ..GenerationConfig::default() };
    let mut all = Vec::new();
    for (name, grammar) in grammars() {
        let clock = Instant::now();
        let grammar = grammar.compile(&vocabulary).unwrap();
        let compiled = clock.elapsed();
        let mut times = Vec::new();
        for seed in 0..ANSWERS {
            let mut chain = ProcessorChain::new(&GenerationConfig::default()).unwrap();
            chain.push(grammar.mask(&[EOS]));
            let mut filters = ProcessorChain::new(&options).unwrap();
            let (sampler, mut state) = (Sampler::new(seed), seed + 1);
            let mut ids = vec![1];
            for step in 0..TOKENS {
                let mut scores: Vec<f32> = (0..width).map(|_| next(&mut state)).collect();
                let row = Row::new(&ids, 1);
                let clock = Instant::now();
                chain.process(&row, &mut scores);
                times.push(clock.elapsed());
                if chain.ending(&row).is_some() {
                    break;
                }
                filters.process(&row, &mut scores);
                let id = sampler.draw(RowKey::default(), step, &scores).unwrap();
                if id == EOS {
                    break;
                }
                ids.push(id);
            }
        }
        println!("{name}: compiled in {compiled:.1?}; {}", percentiles(&mut times));
        all.extend(times);
    }
    println!("all: {}", percentiles(&mut all));
}

/// Returns a number between -4 and 4 (xorshift).
fn next(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 40) as f32 / (1_u32 << 24) as f32 * 8.0 - 4.0
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("{} masks, p50 {:.1?}, p99 {:.1?}, largest {:.1?}", times.len(), at(0.5), at(0.99), at(1.0))
}
