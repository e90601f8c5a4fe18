//! Runs the grammar library on a thread of its own, with a large stack and a time limit.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use llguidance::api::{GrammarInit, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::ValidationResult;
use llguidance::{ParserFactory, TokenParser, panic_utils};

use super::{GrammarError, GrammarKind};

/// Stack size of the thread, in bytes. The library recurses over schemas and regular expressions.
const STACK: usize = 128 << 20;

/// Time limit in seconds. The limit is longer in development builds, because they are slower. A thread that exceeds it
/// runs on until a limit of the library stops it, but nobody waits for it.
const SECONDS: u64 = if cfg!(debug_assertions) { 20 } else { 2 };

/// Maximum length of a message of the library, in bytes.
const MAX_REASON: usize = 300;

/// Returns the library's limits for grammars: less memory and time than its defaults.
pub(super) fn limits() -> ParserLimits {
    ParserLimits { step_lexer_fuel: 50_000, max_lexer_states: 20_000, verbose_errors: false, ..ParserLimits::default() }
}

/// Checks a grammar without a vocabulary.
pub(super) fn validate(what: GrammarKind, grammar: TopLevelGrammar) -> Result<(), GrammarError> {
    on_large_stack(what, move || {
        let checked = panic_utils::catch_unwind(AssertUnwindSafe(|| {
            Ok(GrammarInit::Serialized(grammar).validate(None, limits()))
        }));
        match checked {
            Ok(ValidationResult::Error(reason)) => Err(rejected(what, &reason)),
            Ok(_) => Ok(()),
            Err(error) => Err(rejected(what, &format!("{error:#}"))),
        }
    })
}

/// Compiles a grammar for a vocabulary. The first mask is computed too, so that a grammar that is too complex is
/// rejected here.
pub(super) fn parser(
    what: GrammarKind,
    grammar: TopLevelGrammar,
    factory: std::sync::Arc<ParserFactory>,
) -> Result<TokenParser, GrammarError> {
    on_large_stack(what, move || {
        let mut parser = factory.create_parser(grammar).map_err(|error| rejected(what, &format!("{error:#}")))?;
        parser.start_without_prompt();
        let fresh = parser.deep_clone();
        match panic_utils::catch_unwind(AssertUnwindSafe(|| parser.compute_mask())) {
            Ok(_) => Ok(fresh),
            Err(_) if parser.stop_reason() == StopReason::NoExtensionBias => Err(GrammarError::NoAnswer { what }),
            Err(error) => Err(GrammarError::TooComplex { what, reason: short(&format!("{error:#}")) }),
        }
    })
}

fn rejected(what: GrammarKind, reason: &str) -> GrammarError {
    match (regex_error(reason), what) {
        (Some(error), GrammarKind::Regex) => GrammarError::Invalid { what, reason: cut(error) },
        (Some(error), _) => GrammarError::Invalid { what, reason: format!("{} {}", short(reason), cut(error)) },
        (None, _) => GrammarError::Rejected { what, reason: short(reason) },
    }
}

/// Returns what the parser of regular expressions found wrong, if `reason` is one of its messages. Such a message
/// repeats the expression in lines that are indented or numbered, and then has a line `error: …`.
///
/// Source: `Formatter` in `error.rs` of the crate `regex-syntax`.
fn regex_error(reason: &str) -> Option<&str> {
    let (_, rest) = reason.split_once("regex parse error:\n")?;
    rest.lines().find_map(|line| line.strip_prefix("error: "))
}

/// Returns the beginning of a message of the library, without the position in the generated grammar and without
/// backtraces.
fn short(reason: &str) -> String {
    let line = reason.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown reason").trim();
    // Positions such as `at 3(7): ` refer to the generated grammar, which the user does not see.
    let line = match line.strip_prefix("at ").and_then(|rest| rest.split_once("): ")) {
        Some((_, rest)) => rest,
        None => line,
    };
    cut(line)
}

/// Shortens a text to [`MAX_REASON`].
fn cut(line: &str) -> String {
    let end = (0..=MAX_REASON.min(line.len())).rev().find(|&end| line.is_char_boundary(end)).unwrap_or(0);
    if end < line.len() { format!("{}…", &line[..end]) } else { line.to_owned() }
}

/// Runs `work` on a thread with a large stack and waits for it, up to the time limit.
fn on_large_stack<T: Send + 'static>(
    what: GrammarKind,
    work: impl FnOnce() -> Result<T, GrammarError> + Send + 'static,
) -> Result<T, GrammarError> {
    let (sender, receiver) = sync_channel(1);
    let thread = thread::Builder::new().name("idefics-grammar".to_owned()).stack_size(STACK);
    thread
        .spawn(move || {
            // Nobody receives the result once the time limit has passed.
            _ = sender.send(work());
        })
        .map_err(|source| GrammarError::Thread { source })?;
    match receiver.recv_timeout(Duration::from_secs(SECONDS)) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(GrammarError::Time { what, seconds: SECONDS }),
        Err(RecvTimeoutError::Disconnected) => Err(rejected(what, "the grammar library failed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_short_line() {
        assert_eq!(short("at 3(8): invalid regex\n  1 | VALUE: /a/"), "invalid regex");
        assert_eq!(short("\npanic: index\n<backtrace>\n0: main"), "panic: index");
        assert_eq!(short(""), "unknown reason");
        let long = short(&"é".repeat(MAX_REASON));
        assert!(long.len() <= MAX_REASON + '…'.len_utf8() && long.ends_with('…'));
    }

    #[test]
    fn syntax_errors_of_regular_expressions_say_what_is_wrong() {
        let message = "at 2(8): invalid regex \"error: [0\" (in VALUE): regex parse error:\n    error: [0\n\
                       error: unclosed character class\n  1 | start: ANSWER";
        assert_eq!(regex_error(message), Some("unclosed character class"));
        assert_eq!(regex_error("unknown name: \"a\""), None);
        let error = rejected(GrammarKind::Regex, message).to_string();
        assert_eq!(error, "the regular expression is not valid: unclosed character class");
        let error = rejected(GrammarKind::JsonSchema, message).to_string();
        assert!(
            error.contains("error: [0") && error.ends_with("regex parse error: unclosed character class"),
            "{error}"
        );
    }

    #[test]
    fn panic_of_the_thread_is_an_error() {
        let failed: Result<(), _> = on_large_stack(GrammarKind::Regex, || panic!("test"));
        assert!(matches!(failed, Err(GrammarError::Rejected { .. })), "{failed:?}");
    }
}
