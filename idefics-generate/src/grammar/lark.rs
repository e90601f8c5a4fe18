//! Grammars in the language of the grammar library. An answer is an optional space, then the value.
//!
//! Models put a space before an answer, and the decoders of some tokenizers drop the first space of a text. So a space
//! may precede every answer. If the value itself begins with a space, the answer begins with two spaces.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::regex_to_lark;
use serde_json::{Value, json};

use super::GrammarError;

/// White space between two tokens of a JSON value: at most one of these characters. Without a limit, models could fill
/// an answer with white space.
const JSON_SPACE: &str = "[ \\n]";

/// An answer that consists of a space and a value, or of a value that does not begin with a space.
const ANSWER: &str = "start: ANSWER\nANSWER: \" \" VALUE | VALUE & ~/(?s: .*)/\n";

/// Returns the grammar of the values that satisfy a checked JSON schema.
pub(super) fn json_schema(schema: &Value) -> TopLevelGrammar {
    let mut schema = schema.clone();
    schema["x-guidance"] = json!({"whitespace_pattern": JSON_SPACE});
    let value = GrammarWithLexer { name: Some("value".to_owned()), ..GrammarWithLexer::from_json_schema(schema) };
    let answer = GrammarWithLexer::from_lark("start: SPACE? @value\nSPACE: \" \"\n".to_owned());
    TopLevelGrammar { grammars: vec![answer, value], max_tokens: None }
}

/// Returns the grammar of the texts that match a checked regular expression as a whole.
pub(super) fn regex(regex: &str) -> TopLevelGrammar {
    TopLevelGrammar::from_lark(format!("{ANSWER}VALUE: /{}/\n", regex_to_lark(regex, "")))
}

/// Returns the grammar of a list of texts.
pub(super) fn choices(choices: &[String]) -> TopLevelGrammar {
    let choices: Vec<String> = choices.iter().map(|choice| quoted(choice)).collect();
    TopLevelGrammar::from_lark(format!("{ANSWER}VALUE: {}\n", choices.join(" | ")))
}

/// Quotes a text as a JSON string without control characters.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\0'..='\u{1f}' | '\u{7f}' => quoted += &format!("\\u{:04x}", u32::from(character)),
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

/// Rejects regular expressions to which the library would give another meaning.
pub(super) fn check_regex(pattern: &str) -> Result<(), GrammarError> {
    let backslashes = pattern.bytes().rev().take_while(|&byte| byte == b'\\').count();
    if backslashes % 2 == 1 {
        return Err(GrammarError::TrailingBackslash { pattern: pattern.to_owned() });
    }
    if pattern.contains("(?P<stop>") || pattern.contains("(?<stop>") {
        return Err(GrammarError::StopGroup { pattern: pattern.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_texts_are_json_strings() {
        for text in ["", "a", "\"\\/", "line\nbreak\ttab\0", "\u{7f}é世\u{2028}"] {
            assert_eq!(serde_json::from_str::<String>(&quoted(text)).unwrap(), text);
            assert!(!quoted(text).contains(|character: char| character.is_ascii_control()));
        }
    }
}
