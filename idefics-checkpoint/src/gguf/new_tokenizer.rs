//! Converts `tokenizer.json` and related files to the metadata of a GGUF file.

use serde_json::Value;

use super::tokenizer::{CONTROL, LLAMA3_WORDS, MERGES, MODEL, PRE, TOKENS, TYPES, USER_DEFINED};
use super::{GgufError, GgufFault, NewValue};
use std::path::Path;

const NORMAL: i32 = 1;
const UNUSED: i32 = 5;

/// The metadata of a tokenizer in a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTokenizer {
    pub(super) keys: Vec<(String, NewValue)>,
}

/// The files that describe a tokenizer.
#[derive(Debug, Clone, Copy)]
pub struct TokenizerFiles<'a> {
    /// Folder of the files, used in error messages.
    pub folder: &'a Path,
    /// `tokenizer.json`.
    pub tokenizer: &'a Value,
    /// `tokenizer_config.json`, or null.
    pub tokenizer_config: &'a Value,
    /// `generation_config.json`, or null.
    pub generation_config: &'a Value,
    /// The chat template, if the model has one.
    pub chat_template: Option<&'a str>,
}

impl TokenizerFiles<'_> {
    /// Returns the metadata for a model with `vocab` rows of embeddings.
    ///
    /// # Errors
    /// [`GgufFault::Export`] for an unsupported tokenizer, or for a token without a row of embeddings. Only byte-level
    /// BPE that splits text into words like SmolLM or Llama 3 is supported.
    pub fn metadata(&self, vocab: usize) -> Result<NewTokenizer, GgufError> {
        let model = &self.tokenizer["model"];
        if model["type"] != "BPE" || model["byte_fallback"] == true {
            return Err(self.error("its tokenizer is not a byte-level BPE".to_owned()));
        }
        let pre = self.words()?;
        let (tokens, types) = self.tokens(vocab)?;
        let id_of = |token: &str| tokens.iter().position(|known| known == token);
        let merges = model["merges"].as_array().into_iter().flatten().filter_map(|merge| match merge {
            Value::String(pair) => Some(pair.clone()),
            pair => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
        });
        let mut keys = vec![
            (MODEL.to_owned(), NewValue::Text("gpt2".to_owned())),
            (PRE.to_owned(), NewValue::Text(pre.to_owned())),
            (MERGES.to_owned(), NewValue::Texts(merges.collect())),
        ];
        let name_of = |key: &str| {
            let token = &self.tokenizer_config[key];
            token.as_str().or_else(|| token["content"].as_str())
        };
        let named = |key: &str| id_of(name_of(key)?);
        let eos = named("eos_token");
        for (key, id) in [
            ("bos", named("bos_token")),
            ("eos", eos),
            ("eot", self.other_end(eos, tokens.len())),
            ("unknown", named("unk_token")),
            ("padding", named("pad_token")),
        ] {
            let id = id.and_then(|id| u32::try_from(id).ok());
            keys.extend(id.map(|id| (format!("tokenizer.ggml.{key}_token_id"), NewValue::Unsigned(id))));
        }
        keys.push(("tokenizer.ggml.add_bos_token".to_owned(), NewValue::Bool(self.adds_bos(name_of("bos_token")))));
        keys.push(("tokenizer.ggml.add_space_prefix".to_owned(), NewValue::Bool(false)));
        keys.push((TOKENS.to_owned(), NewValue::Texts(tokens)));
        keys.push((TYPES.to_owned(), NewValue::Numbers(types)));
        let template = self.chat_template.map(|template| NewValue::Text(template.to_owned()));
        keys.extend(template.map(|template| ("tokenizer.chat_template".to_owned(), template)));
        Ok(NewTokenizer { keys })
    }

    fn error(&self, reason: String) -> GgufError {
        GgufError::new(self.folder, GgufFault::Export { reason })
    }

    /// Returns the value of `tokenizer.ggml.pre`, which says how text is split into words.
    fn words(&self) -> Result<&'static str, GgufError> {
        let pre = &self.tokenizer["pre_tokenizer"];
        let steps: Vec<&Value> = match pre["pretokenizers"].as_array() {
            Some(steps) => steps.iter().collect(),
            None => vec![pre],
        };
        let types: Vec<&str> = steps.iter().filter_map(|step| step["type"].as_str()).collect();
        let is_byte_level = |step: &Value, use_regex: bool| {
            step["add_prefix_space"] == false && step["use_regex"].as_bool().unwrap_or(true) == use_regex
        };
        match types.as_slice() {
            ["Digits", "ByteLevel"] if steps[0]["individual_digits"] == true && is_byte_level(steps[1], true) => {
                Ok("smollm")
            }
            ["Split", "ByteLevel"]
                if steps[0]["pattern"]["Regex"] == LLAMA3_WORDS && is_byte_level(steps[1], false) =>
            {
                Ok("llama-bpe")
            }
            _ => Err(self.error(format!("its pre_tokenizer is {pre}; expected that of SmolLM or Llama 3"))),
        }
    }

    /// Returns the tokens and their types, ordered by id. An id without a token gets the name `[PAD{id}]`.
    fn tokens(&self, vocab: usize) -> Result<(Vec<String>, Vec<i32>), GgufError> {
        let mut tokens: Vec<String> = (0..vocab).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; vocab];
        let mut put = |token: &str, id: &Value, kind: i32| {
            let place = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < vocab);
            let place = place.ok_or_else(|| {
                self.error(format!("token `{token}` has the id {id}, but there are {vocab} embeddings"))
            })?;
            (tokens[place], types[place]) = (token.to_owned(), kind);
            Ok::<(), GgufError>(())
        };
        for (token, id) in self.tokenizer["model"]["vocab"].as_object().into_iter().flatten() {
            put(token, id, NORMAL)?;
        }
        for token in self.tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
            put(token["content"].as_str().unwrap_or_default(), &token["id"], kind as i32)?;
        }
        Ok((tokens, types))
    }

    /// Returns the id of a second token that ends an answer, if there is one.
    fn other_end(&self, eos: Option<usize>, n_tokens: usize) -> Option<usize> {
        let ends = &self.generation_config["eos_token_id"];
        let ends = ends.as_array().map_or_else(|| vec![ends], |ends| ends.iter().collect());
        let ends = ends.into_iter().filter_map(Value::as_u64).filter_map(|id| usize::try_from(id).ok());
        ends.filter(|id| *id < n_tokens).find(|id| Some(*id) != eos)
    }

    /// Returns whether the tokenizer puts the start token `bos` in front of a text.
    fn adds_bos(&self, bos: Option<&str>) -> bool {
        let post = &self.tokenizer["post_processor"];
        let steps = post["processors"].as_array().map_or_else(|| vec![post], |steps| steps.iter().collect());
        steps.iter().any(|step| {
            let first = &step["single"][0]["SpecialToken"]["id"];
            step["type"] == "TemplateProcessing" && bos.is_some_and(|bos| first == bos)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_token_before_a_text_is_a_start_token() {
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        for (single, expected) in [
            (json!([special("<s>"), text]), true),
            (json!([special("<s>"), text, special("</s>")]), true),
            (json!([text, special("</s>")]), false),
            (json!([text, special("<s>")]), false),
            (json!([special("</s>"), text]), false),
            (json!([text]), false),
        ] {
            let step = json!({"type": "TemplateProcessing", "single": single});
            let steps = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, step]});
            for post_processor in [step, steps] {
                let tokenizer = json!({"post_processor": post_processor});
                let files = TokenizerFiles {
                    folder: Path::new(""),
                    tokenizer: &tokenizer,
                    tokenizer_config: &Value::Null,
                    generation_config: &Value::Null,
                    chat_template: None,
                };
                assert_eq!(files.adds_bos(Some("<s>")), expected, "{tokenizer}");
                assert!(!files.adds_bos(None));
            }
        }
    }
}
