//! Answers that follow a grammar.

mod answers;
mod hostile;
mod random;
mod validate;

use std::sync::LazyLock;

use idefics_generate::logits::{ProcessorChain, Row, RowEnd, RowKey, Sampler};
use idefics_generate::processor::Tokenizer;
use idefics_generate::{CompiledGrammar, GenerationConfig, Grammar, GrammarVocabulary, load_processor};
use serde_json::Value;

use crate::common::xtask_folder;

/// A tokenizer without a model: its vocabulary, and answers sampled from random scores.
struct Tokens {
    tokenizer: Tokenizer,
    vocabulary: GrammarVocabulary,
    width: usize,
    eos_token_id: u32,
}

impl Tokens {
    fn of(checkpoint: &str) -> Self {
        let processor = load_processor(&xtask_folder("checkpoints").join(checkpoint)).unwrap();
        let tokenizer = processor.tokenizer().clone();
        let width = tokenizer.max_id() as usize + 4; // three logits without a token
        let vocabulary = GrammarVocabulary::new(&tokenizer, width).unwrap();
        let eos_token_id = tokenizer.eos_token_id().unwrap();
        Self { tokenizer, vocabulary, width, eos_token_id }
    }

    fn compile(&self, grammar: &Grammar) -> CompiledGrammar {
        grammar.compile(&self.vocabulary).unwrap()
    }

    /// Samples an answer of up to `limit` tokens from random scores.
    fn answer(&self, grammar: &CompiledGrammar, seed: u64, limit: usize) -> Answered {
        let options = GenerationConfig { do_sample: Some(true), top_k: Some(0), ..GenerationConfig::default() };
        let mut chain = ProcessorChain::new(&options).unwrap();
        chain.push(grammar.mask(&[self.eos_token_id]));
        let sampler = Sampler::new(seed);
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut ids = vec![1, 20];
        for step in 0..limit {
            let mut scores: Vec<f32> = (0..self.width).map(|_| random_score(&mut random)).collect();
            let row = Row::new(&ids, 2);
            chain.process(&row, &mut scores);
            match chain.ending(&row) {
                Some(RowEnd::Complete) => return Answered::Complete(self.text(&ids[2..])),
                Some(RowEnd::Failed(error)) => return Answered::Failed(error.to_string()),
                None => {}
            }
            let id = sampler.draw(RowKey::default(), step, &scores).unwrap();
            if id == self.eos_token_id {
                return Answered::Complete(self.text(&ids[2..]));
            }
            ids.push(id);
        }
        Answered::Cut
    }

    /// Returns the text of an answer without the space before it.
    fn text(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.tokenizer.piece(id)).collect();
        let text = String::from_utf8(bytes).unwrap();
        text.strip_prefix(' ').map_or(text.clone(), str::to_owned)
    }
}

/// How a sampled answer ended.
#[derive(Debug, PartialEq)]
enum Answered {
    /// The text of a complete answer.
    Complete(String),
    /// The maximum number of tokens was reached.
    Cut,
    /// The row failed.
    Failed(String),
}

/// Returns a number between -4 and 4 (xorshift).
fn random_score(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 40) as f32 / (1_u32 << 24) as f32 * 8.0 - 4.0
}

/// A vocabulary with byte-fallback tokens, like that of Llama.
static LLAMA: LazyLock<Tokens> = LazyLock::new(|| Tokens::of("tiny-idefics2"));

/// A byte-level vocabulary, like that of GPT-2.
static BYTE_LEVEL: LazyLock<Tokens> = LazyLock::new(|| Tokens::of("tiny-smolvlm"));

fn schema(schema: Value) -> Grammar {
    Grammar::json_schema(schema).unwrap()
}
