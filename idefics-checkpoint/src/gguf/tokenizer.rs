//! Builds `tokenizer.json` and `tokenizer_config.json` from the metadata of a GGUF file.

use serde_json::{Map, Value, json};

use super::error::shorten;
use super::{GgufError, Metadata};

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
/// Type of special tokens. They are found before the text is split into words, and are left out of answers.
pub(super) const CONTROL: u64 = 3;
/// Type of other added tokens. They are found before the text is split into words, and are kept in answers.
pub(super) const USER_DEFINED: u64 = 4;

/// The regular expression with which Llama 3 splits text into words. Source: `tokenizer.json` of Llama 3.
pub(super) const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is split into words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    /// Each digit is a word. The rest is split by the rule of GPT-2.
    SmolLm,
    /// Text is split by the rule of Llama 3. A word that is itself a token becomes this token without any merges.
    Llama3,
}

impl Words {
    fn of(metadata: &Metadata<'_>) -> Result<Self, GgufError> {
        match metadata.required_text(MODEL)? {
            "gpt2" => {}
            other => {
                let expected = "`gpt2` (byte-level BPE); or put the tokenizer.json of the original model into the folder of the file";
                return Err(metadata.error(MODEL, format!("{:?}", shorten(other)), expected));
            }
        }
        match metadata.required_text(PRE)? {
            "smollm" => Ok(Self::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(Self::Llama3),
            other => {
                let expected = "`smollm` or `llama-bpe`; or put the tokenizer.json of the original model into the folder of the file";
                Err(metadata.error(PRE, format!("{:?}", shorten(other)), expected))
            }
        }
    }
}

/// Builds `tokenizer.json`.
pub(super) fn tokenizer(metadata: &Metadata<'_>) -> Result<Value, GgufError> {
    let words = Words::of(metadata)?;
    let tokens = metadata.required_texts(TOKENS)?;
    let types = metadata.numbers(TYPES)?.unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        return Err(metadata.error(
            TYPES,
            format!("{} items", types.len()),
            format!("{}, one per token", tokens.len()),
        ));
    }
    let mut vocab = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert((*token).to_owned(), json!(id)).is_some() {
            return Err(metadata.error(TOKENS, format!("a list with `{}` twice", shorten(token)), "each token once"));
        }
    }
    let added = tokens
        .iter()
        .zip(&types)
        .enumerate()
        .filter(|(_, (token, kind))| [CONTROL, USER_DEFINED].contains(kind) && !token.is_empty());
    let added: Vec<Value> = added
        .map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL,
            })
        })
        .collect();
    let adds_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": adds_space, "trim_offsets": true, "use_regex": use_regex });
    let pre_tokenizers = match words {
        Words::SmolLm => json!([{ "type": "Digits", "individual_digits": true }, byte_level(true)]),
        Words::Llama3 => json!([
            { "type": "Split", "pattern": { "Regex": LLAMA3_WORDS }, "behavior": "Isolated", "invert": false },
            byte_level(false),
        ]),
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": pre_tokenizers },
        "post_processor": post_processor(metadata, words, &tokens)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": words == Words::Llama3,
            "vocab": vocab,
            "merges": merges(metadata)?,
        },
    }))
}

/// Reads the pairs of tokens, in the order in which they are merged.
fn merges(metadata: &Metadata<'_>) -> Result<Vec<[String; 2]>, GgufError> {
    let pair = |merge: &str| {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            !left.is_empty() && !right.is_empty() && !right.contains(' ') // the byte-level alphabet has no space
        });
        let pair = pair.map(|(left, right)| [left.to_owned(), right.to_owned()]);
        pair.ok_or_else(|| metadata.error(MERGES, format!("`{}`", shorten(merge)), "pairs with one space between them"))
    };
    metadata.required_texts(MERGES)?.into_iter().map(pair).collect()
}

/// Builds the post-processor that puts the start token in front of a text. Returns `null` if no start token is added.
fn post_processor(metadata: &Metadata<'_>, words: Words, tokens: &[&str]) -> Result<Value, GgufError> {
    // Source: the defaults of `llama_vocab::impl::load` of llama.cpp.
    let adds_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(words == Words::Llama3);
    let Some((id, bos)) = named(metadata, "bos", tokens)?.filter(|_| adds_bos) else { return Ok(Value::Null) };
    let start = json!({ "SpecialToken": { "id": bos, "type_id": 0 } });
    let text = |name: &str, kind: u32| json!({ "Sequence": { "id": name, "type_id": kind } });
    let second = json!({ "SpecialToken": { "id": bos, "type_id": 1 } });
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [start, text("A", 0)],
        "pair": [start, text("A", 0), second, text("B", 1)],
        "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
    }))
}

/// Returns the token for `name` in the metadata, for example `bos`, with its id. Returns `None` if there is none.
fn named<'a>(metadata: &Metadata<'_>, name: &str, tokens: &[&'a str]) -> Result<Option<(usize, &'a str)>, GgufError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = metadata.number(&key)? else { return Ok(None) };
    match tokens.get(id) {
        Some(token) => Ok(Some((id, token))),
        None => Err(metadata.error(&key, id.to_string(), format!("below {}, the number of tokens", tokens.len()))),
    }
}

/// Builds `tokenizer_config.json`, with the chat template.
pub(super) fn tokenizer_config(metadata: &Metadata<'_>) -> Result<Value, GgufError> {
    let tokens = metadata.required_texts(TOKENS)?;
    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    for (name, key) in [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
    {
        let token = named(metadata, name, &tokens)?;
        config.extend(token.map(|(_, token)| (key.to_owned(), json!(token))));
    }
    let template = metadata.text("tokenizer.chat_template")?;
    config.extend(template.map(|template| ("chat_template".to_owned(), json!(template))));
    Ok(Value::Object(config))
}
