//! Loads the tokenizer of a checkpoint folder, as a given release of the reference builds it.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::catch_unwind;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::checkpoint::{Checkpoint, ModelHead, Sourced, field, shorten};
use crate::error::ProcessorError;
use crate::families::{FamilyRules, PromptStyle};
use crate::tokenizer::{Compatibility, SpecialIds, Tokenizer, growth};

/// Maximum number of special tokens. Real tokenizers have up to a few hundred.
const MAX_SPECIAL_TOKENS: usize = 1024;
/// Maximum length of a special token, in bytes.
const MAX_SPECIAL_BYTES: usize = 256;

/// The settings of `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Debug, Clone)]
pub(crate) struct TokenizerConfig {
    /// Whether the tokenizer class is Llama's. Release 5 then builds its own tokenizer from the vocabulary, unless the
    /// vocabulary is byte-level.
    is_llama: bool,
    legacy: bool,
    add_prefix_space: bool,
    /// Added tokens by id, in the order in which release 5 adds them. `None` in older folders, which use the added
    /// tokens of `tokenizer.json`.
    added_tokens: Option<BTreeMap<u32, AddedToken>>,
    bos: Option<String>,
    eos: Option<String>,
    unk: Option<String>,
    pad: Option<String>,
    /// Other special tokens, including the separator, class and mask tokens.
    others: Vec<String>,
    /// Name (`bos_token`) and text (`<s>`) of all named special tokens: variables of chat templates.
    named: Vec<(String, String)>,
    /// Text of the image token.
    image: String,
    /// Text of the token before and after an image.
    fake: String,
    /// Whether the processor adds image and end-of-turn tokens that the files lack, as the processor of Idefics2 does.
    adds_prompt_tokens: bool,
}

/// An added token in a configuration file. If `normalized` is missing, the token is normalised unless it is special.
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
    /// Reads the settings.
    ///
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
        // If the folder names no class, the class registered for Idefics2 applies: Llama's class.
        let is_llama = class.is_none_or(|class| class.trim_end_matches("Fast") == "LlamaTokenizer");

        let added_tokens = match config.get("added_tokens_decoder") {
            None => None,
            Some(value) => {
                let tokens: BTreeMap<u32, RawToken> = Deserialize::deserialize(value)
                    .map_err(|_| field(path, "added_tokens_decoder", value, "an object of tokens by id"))?;
                Some(tokens.into_iter().map(|(id, token)| (id, token.into())).collect())
            }
        };
        // `special_tokens_map.json` is only used in old folders, which have no `added_tokens_decoder`.
        let map = match &added_tokens {
            None => checkpoint.json::<Map<String, Value>>("special_tokens_map.json")?,
            Some(_) => None,
        };
        let named = |name: &'static str| -> Result<Option<String>, ProcessorError> {
            let from_map = map.as_ref().and_then(|map| Some((&map.path, map.content.get(name)?)));
            match from_map.or_else(|| Some((path, config.get(name)?))) {
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
            // Source: `Idefics2Processor.__init__`, where a tokenizer may name its own tokens.
            image: named("image_token")?.unwrap_or_else(|| "<image>".to_owned()),
            fake: named("image_boundary_token")?.unwrap_or_else(|| "<fake_token_around_image>".to_owned()),
            adds_prompt_tokens: family.prompt_style() == PromptStyle::Template,
        })
    }

    /// Returns the start and end tokens of a text. A missing token gives an empty string.
    pub(crate) fn bos_and_eos(&self) -> (&str, &str) {
        (self.bos.as_deref().unwrap_or_default(), self.eos.as_deref().unwrap_or_default())
    }

    /// Returns the names and texts of the special tokens that chat templates see: the reference's `special_tokens_map`.
    pub(crate) fn named_tokens(&self) -> &[(String, String)] {
        &self.named
    }

    /// Returns whether release 5 may replace the pipeline of `tokenizer.json`. If not, both releases build the same
    /// tokenizer.
    pub(crate) fn is_rebuilt(&self) -> bool {
        self.is_llama
    }
}

/// Returns the named special tokens other than the standard ones, such as `image_token`.
///
/// Source: `PreTrainedTokenizerBase.__init__`: keys that end in `_token`, and the entries of `extra_special_tokens`.
fn model_tokens(sources: [Option<&Map<String, Value>>; 2]) -> Vec<(String, String)> {
    let usual = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let mut tokens = Vec::new();
    for source in sources.into_iter().flatten() {
        let other_keys = source.iter().filter(|(key, _)| key.ends_with("_token") && !usual.contains(&key.as_str()));
        let extra = source.get("extra_special_tokens").and_then(Value::as_object);
        for (key, value) in other_keys.chain(extra.into_iter().flatten()) {
            tokens.extend(content(value).map(|token| (key.clone(), token)));
        }
    }
    tokens
}

/// Returns the text of a token, from a string or from an object with `content`.
fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// Builds the tokenizer and checks that it has the tokens that prompts need. Panics of the `tokenizers` library become
/// errors.
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
    let config_tokens: Vec<AddedToken> = config.added_tokens.iter().flat_map(BTreeMap::values).cloned().collect();
    let rebuilt = match compatibility {
        Compatibility::Transformers5 if config.is_llama => rebuild(file, config)?,
        _ => None,
    };
    let mut inner = match rebuilt {
        None => {
            growth::check_pipeline(&file.path, &file.content, &config_tokens)?;
            tokenizers::Tokenizer::from_bytes(&file.content).map_err(fail)?
        }
        Some(Rebuilt { pipeline, added_tokens }) => {
            growth::check_pipeline(&file.path, &pipeline, config_tokens.iter().chain(&added_tokens))?;
            let mut inner = tokenizers::Tokenizer::from_bytes(pipeline).map_err(fail)?;
            if config.added_tokens.is_none() {
                inner.add_tokens(added_tokens).map_err(fail)?;
            }
            inner
        }
    };
    // The processor does its own padding and never truncates.
    inner.with_truncation(None).map_err(fail)?;
    inner.with_padding(None);

    // Source: `TokenizersBackend.__init__`, then `Idefics2Processor.__init__`.
    inner.add_tokens(config_tokens).map_err(fail)?;
    let special = |content: &str| AddedToken::from(content, true);
    let named = [&config.bos, &config.eos, &config.unk, &config.pad].into_iter().flatten().chain(&config.others);
    let known = inner.get_added_vocabulary().get_vocab().clone();
    let unknown = named.filter(|token| !token.is_empty() && !known.contains_key(token.as_str()));
    // All tokens are added in one call, because each call rebuilds the index that finds tokens in a text.
    inner.add_tokens(unknown.map(|token| special(token))).map_err(fail)?;
    // Tokens that the files lack are appended. The model may have no embedding for them. For example, base checkpoints
    // have none for the end-of-turn token.
    let placeholders = [config.fake.as_str(), config.image.as_str(), END_OF_UTTERANCE];
    let is_used = |token: &&str| config.adds_prompt_tokens || inner.token_to_id(token).is_some();
    let used: Vec<_> = placeholders.into_iter().filter(is_used).collect();
    inner.add_tokens(used.into_iter().map(special)).map_err(fail)?;
    Ok(inner)
}

/// The end-of-turn token.
pub const END_OF_UTTERANCE: &str = "<end_of_utterance>";

/// A tokenizer as release 5 rebuilds it from `tokenizer.json`.
struct Rebuilt {
    /// The new `tokenizer.json`, without added tokens.
    pipeline: Vec<u8>,
    /// The added tokens of the original file, in the order of their ids.
    added_tokens: Vec<AddedToken>,
}

/// Builds the pipeline that release 5 uses with the file's vocabulary. Returns `None` if the file is byte-level,
/// because release 5 uses such a file unchanged.
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
        return Err(field(&file.path, "model.type", kind, "`BPE`, the only type of a LlamaTokenizer"));
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

/// Returns whether a pre-tokenizer or decoder is byte-level, or is a sequence with a byte-level step.
fn is_byte_level(part: &Value) -> bool {
    let nested = ["pretokenizers", "decoders"].iter().filter_map(|key| part.get(*key)?.as_array()).flatten();
    part.get("type").is_some_and(|kind| kind == "ByteLevel") || nested.into_iter().any(is_byte_level)
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
    let id = |token: &str| inner.token_to_id(token).unwrap_or_default(); // all exist: checked above
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
        return Err(field(path, "added_tokens", &found, &format!("at most {MAX_SPECIAL_TOKENS} special tokens")));
    }
    let invalid = |token: &str, id, reason| {
        Err(ProcessorError::TokenInvalid { path: path.to_owned(), token: shorten(token), id, reason })
    };
    if let Some((token, id)) = protected.iter().find(|(token, _)| token.len() > MAX_SPECIAL_BYTES) {
        return invalid(token, *id, "a special token may have at most 256 bytes");
    }
    // The image, fake and end-of-turn tokens must have different ids. The image and fake tokens must also differ from
    // the start and end tokens, but the end-of-turn token may equal one of these.
    let ends = [ids.bos, ids.eos];
    let mut seen = BTreeSet::new();
    for token in required {
        let id = id(token);
        if !seen.insert(id) || (token != END_OF_UTTERANCE && ends.contains(&Some(id))) {
            return invalid(token, id, "another special token has this id");
        }
    }
    growth::check_decoder(&inner, path)?;
    Ok(Tokenizer { ids, protected, path: path.to_owned(), inner })
}
