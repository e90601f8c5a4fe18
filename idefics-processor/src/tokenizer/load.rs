//! The tokenizer of a checkpoint folder, built as one release of the reference or the other builds it.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::catch_unwind;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::checkpoint::{Checkpoint, ModelHead, Sourced, field, shorten};
use crate::error::ProcessorError;
use crate::families::FamilyRules;
use crate::tokenizer::{Compatibility, SpecialIds, Tokenizer};

/// Most special tokens that a tokenizer may have. Real ones have up to a few hundred.
const MAX_SPECIAL_TOKENS: usize = 1024;
/// Longest special token, in bytes.
const MAX_SPECIAL_BYTES: usize = 256;

/// `tokenizer_config.json` with what `special_tokens_map.json` adds to it.
#[derive(Debug, Clone)]
pub(crate) struct TokenizerConfig {
    /// Whether release 5 builds its own tokenizer from the vocabulary, unless the file is byte-level.
    is_llama: bool,
    legacy: bool,
    add_prefix_space: bool,
    /// By id, as release 5 adds them. Absent in older folders, where those of `tokenizer.json` hold.
    added_tokens: Option<BTreeMap<u32, AddedToken>>,
    bos: Option<String>,
    eos: Option<String>,
    unk: Option<String>,
    pad: Option<String>,
    /// Further special tokens, with and without a meaning of their own.
    others: Vec<String>,
    /// Names and spellings of all special tokens that have a name: the variables of chat templates.
    named: Vec<(String, String)>,
    image: String,
    fake: String,
    /// Whether the family's processor adds the tokens of a prompt that the files lack, as that of Idefics2 does.
    adds_prompt_tokens: bool,
}

/// An added token as the configuration files write it; absent properties are those of a special token.
#[derive(Deserialize)]
struct RawToken {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl From<RawToken> for AddedToken {
    fn from(raw: RawToken) -> Self {
        AddedToken {
            normalized: raw.normalized.unwrap_or(!raw.special),
            content: raw.content,
            single_word: raw.single_word,
            lstrip: raw.lstrip,
            rstrip: raw.rstrip,
            special: raw.special,
        }
    }
}

impl TokenizerConfig {
    /// Source: `AutoTokenizer.from_pretrained` for the class, `PreTrainedTokenizerBase._from_pretrained` for the rest.
    pub(crate) fn read(
        checkpoint: &Checkpoint,
        config: Option<&Sourced<Map<String, Value>>>,
        head: &ModelHead,
        family: &dyn FamilyRules,
    ) -> Result<Self, ProcessorError> {
        let empty = Sourced { path: Default::default(), content: Map::new() };
        let Sourced { path, content: config } = config.unwrap_or(&empty);

        let class = match config.get("tokenizer_class") {
            None | Some(Value::Null) => head.tokenizer_class.as_deref(),
            Some(Value::String(class)) => Some(class.as_str()),
            Some(other) => return Err(field(path, "tokenizer_class", other, "a class name")),
        };
        // The class registered for Idefics2 is Llama's, and holds where the folder names none.
        let is_llama = class.is_none_or(|class| class.trim_end_matches("Fast") == "LlamaTokenizer");

        let added_tokens = match config.get("added_tokens_decoder") {
            None => None,
            Some(value) => {
                let tokens: BTreeMap<u32, RawToken> = Deserialize::deserialize(value)
                    .map_err(|_| field(path, "added_tokens_decoder", value, "an object of tokens by id"))?;
                Some(tokens.into_iter().map(|(id, token)| (id, token.into())).collect())
            }
        };
        // Only folders without `added_tokens_decoder` are old enough for the map to count.
        let map = match &added_tokens {
            None => checkpoint.json::<Map<String, Value>>("special_tokens_map.json")?,
            Some(_) => None,
        };
        let named = |name: &'static str| -> Result<Option<String>, ProcessorError> {
            let of_map = map.as_ref().and_then(|map| Some((&map.path, map.content.get(name)?)));
            match of_map.or_else(|| Some((path, config.get(name)?))) {
                None | Some((_, Value::Null)) => Ok(None),
                Some((path, value)) => match content(value) {
                    Some(content) => Ok(Some(content)),
                    None => Err(field(path, name, value, "a token, or an object with its `content`")),
                },
            }
        };
        let class_default = |token: &str| is_llama.then(|| token.to_owned());
        let bos = named("bos_token")?.or_else(|| class_default("<s>"));
        let eos = named("eos_token")?.or_else(|| class_default("</s>"));
        let unk = named("unk_token")?.or_else(|| class_default("<unk>"));
        let pad = named("pad_token")?;

        let mut others = Vec::new();
        for source in [map.as_ref().map(|map| &map.content), Some(config)].into_iter().flatten() {
            for name in ["extra_special_tokens", "additional_special_tokens"] {
                match source.get(name) {
                    Some(Value::Array(tokens)) => others.extend(tokens.iter().filter_map(content)),
                    Some(Value::Object(tokens)) => others.extend(tokens.values().filter_map(content)),
                    _ => {}
                }
            }
        }
        for name in ["sep_token", "cls_token", "mask_token"] {
            others.extend(named(name)?);
        }
        let mut named_tokens = model_tokens([Some(config), map.as_ref().map(|map| &map.content)]);
        for (name, token) in [("bos_token", &bos), ("eos_token", &eos), ("unk_token", &unk), ("pad_token", &pad)] {
            named_tokens.extend(token.clone().map(|token| (name.to_owned(), token)));
        }
        for name in ["sep_token", "cls_token", "mask_token"] {
            named_tokens.extend(named(name)?.map(|token| (name.to_owned(), token)));
        }

        Ok(Self {
            is_llama,
            legacy: config.get("legacy").and_then(Value::as_bool).unwrap_or(false),
            add_prefix_space: config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true),
            added_tokens,
            bos,
            eos,
            unk,
            pad,
            others,
            named: named_tokens,
            // `Idefics2Processor.__init__`: a tokenizer may name its own.
            image: named("image_token")?.unwrap_or_else(|| "<image>".to_owned()),
            fake: named("image_boundary_token")?.unwrap_or_else(|| "<fake_token_around_image>".to_owned()),
            adds_prompt_tokens: family.adds_prompt_tokens(),
        })
    }

    /// What stands in front of a text, and what ends it.
    pub(crate) fn ends(&self) -> (&str, &str) {
        (self.bos.as_deref().unwrap_or_default(), self.eos.as_deref().unwrap_or_default())
    }

    /// Names and spellings of the special tokens that a chat template may write: `special_tokens_map`.
    pub(crate) fn named_tokens(&self) -> &[(String, String)] {
        &self.named
    }

    /// Whether release 5 replaces the pipeline of the file; if not, the two releases do the same.
    pub(crate) fn is_rebuilt(&self) -> bool {
        self.is_llama
    }
}

/// Tokens that a model names besides the usual ones, such as `image_token`.
///
/// Source: `PreTrainedTokenizerBase.__init__`: keys that end in `_token`, and `extra_special_tokens` by name.
fn model_tokens(sources: [Option<&Map<String, Value>>; 2]) -> Vec<(String, String)> {
    let usual = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let mut tokens = Vec::new();
    for source in sources.into_iter().flatten() {
        let of_model = source.iter().filter(|(key, _)| key.ends_with("_token") && !usual.contains(&key.as_str()));
        let extra = source.get("extra_special_tokens").and_then(Value::as_object);
        for (key, value) in of_model.chain(extra.into_iter().flatten()) {
            tokens.extend(content(value).map(|token| (key.clone(), token)));
        }
    }
    tokens
}

/// A token's spelling, from a string or an object.
fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// Builds the tokenizer, and checks that it has what prompts need.
pub(crate) fn load(
    file: &Sourced<Vec<u8>>,
    config: &TokenizerConfig,
    compatibility: Compatibility,
) -> Result<Tokenizer, ProcessorError> {
    let path = file.path.as_path();
    let guarded = catch_unwind(|| build(file, config, compatibility));
    let inner =
        guarded.unwrap_or_else(|_| Err(ProcessorError::TokenizerPanic { path: path.to_owned(), doing: "loading" }))?;
    check(inner, path, config)
}

fn build(
    file: &Sourced<Vec<u8>>,
    config: &TokenizerConfig,
    compatibility: Compatibility,
) -> Result<tokenizers::Tokenizer, ProcessorError> {
    let fail = |error| ProcessorError::Tokenizer { path: file.path.clone(), error };
    let rebuilt = match compatibility {
        Compatibility::Transformers5 if config.is_llama => rebuild(file, config)?,
        _ => None,
    };
    let mut inner = match rebuilt {
        None => tokenizers::Tokenizer::from_bytes(&file.content).map_err(fail)?,
        Some(Rebuilt { pipeline, added_tokens }) => {
            let mut inner = tokenizers::Tokenizer::from_bytes(pipeline).map_err(fail)?;
            if config.added_tokens.is_none() {
                inner.add_tokens(added_tokens).map_err(fail)?;
            }
            inner
        }
    };
    // The processor pads by itself and never cuts.
    inner.with_truncation(None).map_err(fail)?;
    inner.with_padding(None);

    // Source: `TokenizersBackend.__init__`, then `Idefics2Processor.__init__`.
    inner.add_tokens(config.added_tokens.iter().flat_map(BTreeMap::values).cloned()).map_err(fail)?;
    let special = |content: &str| AddedToken::from(content, true);
    let named = [&config.bos, &config.eos, &config.unk, &config.pad].into_iter().flatten().chain(&config.others);
    let known = inner.get_added_vocabulary().get_vocab().clone();
    let unknown = named.filter(|token| !token.is_empty() && !known.contains_key(token.as_str()));
    inner.add_tokens(unknown.map(|token| special(token))).map_err(fail)?; // at once: each call builds the search anew
    // What the files lack is added behind everything else; the model may have no embedding for it, as base checkpoints
    // have none for the end of a turn.
    let placeholders = [config.fake.as_str(), config.image.as_str(), END_OF_UTTERANCE];
    let is_used = |token: &&str| config.adds_prompt_tokens || inner.token_to_id(token).is_some();
    let used: Vec<_> = placeholders.into_iter().filter(is_used).collect();
    inner.add_tokens(used.into_iter().map(special)).map_err(fail)?;
    Ok(inner)
}

/// The end of a turn.
pub(crate) const END_OF_UTTERANCE: &str = "<end_of_utterance>";

/// What release 5 makes of a `tokenizer.json`.
struct Rebuilt {
    /// A `tokenizer.json` without added tokens.
    pipeline: Vec<u8>,
    /// The file's, in the order of their ids.
    added_tokens: Vec<AddedToken>,
}

/// The pipeline that release 5 builds around the file's vocabulary; nothing if the file is byte-level, which is taken
/// as it is.
///
/// Source: `LlamaTokenizer.__init__`, `TokenizersBackend.convert_to_native_format`.
fn rebuild(file: &Sourced<Vec<u8>>, config: &TokenizerConfig) -> Result<Option<Rebuilt>, ProcessorError> {
    let json_error = |error| ProcessorError::Json { path: file.path.clone(), error };
    let mut shipped: Map<String, Value> = serde_json::from_slice(&file.content).map_err(json_error)?;
    if ["pre_tokenizer", "decoder"].iter().any(|part| shipped.get(*part).is_some_and(is_byte_level)) {
        return Ok(None);
    }
    let added = shipped.remove("added_tokens").unwrap_or_else(|| json!([]));

    #[derive(Deserialize)]
    struct Numbered {
        id: u32,
        #[serde(flatten)]
        token: RawToken,
    }
    let mut added: Vec<Numbered> = serde_json::from_value(added).map_err(json_error)?;
    added.sort_by_key(|token| token.id);
    let added_tokens = added.into_iter().map(|numbered| numbered.token.into()).collect();

    let Some(Value::Object(mut model)) = shipped.remove("model") else {
        return Err(field(&file.path, "model", &Value::Null, "a BPE model"));
    };
    if let Some(kind) = model.get("type").filter(|kind| *kind != "BPE") {
        return Err(field(&file.path, "model.type", kind, "`BPE`, which tokenizer_class LlamaTokenizer builds"));
    }
    let prepend_scheme = match (config.add_prefix_space, config.legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if config.add_prefix_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let pipeline = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": false,
        },
        "post_processor": shipped.remove("post_processor"),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": model.remove("vocab").unwrap_or_else(|| json!({})),
            "merges": model.remove("merges").unwrap_or_else(|| json!([])),
        },
    });
    Ok(Some(Rebuilt { pipeline: serde_json::to_vec(&pipeline).map_err(json_error)?, added_tokens }))
}

/// Whether a pre-tokenizer or decoder is byte-level, alone or in a sequence.
fn is_byte_level(part: &Value) -> bool {
    let of_sequence = ["pretokenizers", "decoders"].iter().filter_map(|key| part.get(*key)?.as_array()).flatten();
    part.get("type").is_some_and(|kind| kind == "ByteLevel") || of_sequence.into_iter().any(is_byte_level)
}

fn check(inner: tokenizers::Tokenizer, path: &Path, config: &TokenizerConfig) -> Result<Tokenizer, ProcessorError> {
    let end_of_utterance = config.adds_prompt_tokens.then_some(END_OF_UTTERANCE);
    let required = [config.image.as_str(), config.fake.as_str()].into_iter().chain(end_of_utterance);
    let named = [&config.bos, &config.eos, &config.pad].into_iter().flatten().map(String::as_str);
    let missing: Vec<String> = required
        .clone()
        .chain(named)
        .filter(|token| inner.token_to_id(token).is_none())
        .map(|token| format!("`{}`", shorten(token)))
        .collect();
    if !missing.is_empty() {
        return Err(ProcessorError::MissingTokens { path: path.to_owned(), missing });
    }
    let id = |token: &str| inner.token_to_id(token).unwrap_or_default(); // all are there
    let ids = SpecialIds {
        bos: config.bos.as_deref().map(id),
        eos: config.eos.as_deref().map(id),
        unk: config.unk.as_deref().and_then(|token| inner.token_to_id(token)),
        pad: config.pad.as_deref().map(id),
        image: id(&config.image),
        fake: id(&config.fake),
        end_of_utterance: inner.token_to_id(END_OF_UTTERANCE),
    };

    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let mut protected: Vec<(String, u32)> = added
        .iter()
        .filter(|(id, token)| {
            token.special || [Some(ids.image), Some(ids.fake), ids.end_of_utterance].contains(&Some(**id))
        })
        .map(|(id, token)| (token.content.clone(), *id))
        .collect();
    protected.sort_by_key(|(_, id)| *id);
    if protected.len() > MAX_SPECIAL_TOKENS {
        let found = json!(format!("{} special tokens", protected.len()));
        return Err(field(path, "added_tokens", &found, &format!("at most {MAX_SPECIAL_TOKENS} special ones")));
    }
    let invalid = |token: &str, id, reason| {
        Err(ProcessorError::TokenInvalid { path: path.to_owned(), token: shorten(token), id, reason })
    };
    if let Some((token, id)) = protected.iter().find(|(token, _)| token.len() > MAX_SPECIAL_BYTES) {
        return invalid(token, *id, "a special token may have at most 256 bytes");
    }
    // What the prompt is built of must be told apart, and must not end a text (the end of a turn may).
    let ends = [ids.bos, ids.eos];
    let mut seen = BTreeSet::new();
    for token in required {
        let id = id(token);
        if !seen.insert(id) || (token != END_OF_UTTERANCE && ends.contains(&Some(id))) {
            return invalid(token, id, "another special token has this id");
        }
    }
    Ok(Tokenizer { ids, protected, path: path.to_owned(), inner })
}
