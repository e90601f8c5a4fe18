//! `urlize`: turns web and mail addresses into links.
//!
//! Source: `jinja2.utils.urlize`.

use std::sync::LazyLock;

use regex::Regex;

use crate::args::Args;
use crate::error::{Error, Result};
use crate::html::escape;
use crate::iter::Iter;
use crate::repr::to_str;
use crate::unicode::is_space;
use crate::value::Value;
use crate::vm::Vm;

/// Matches web addresses.
#[expect(clippy::unwrap_used, reason = "the regular expressions are constants, and the tests compile them")]
static WEB: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)^((https?://|www\.)(([\w%-]+\.)+)?([a-z]{2,63}|xn--[\w%]{2,59})",
        r"|([\w%-]{2,63}\.)+(com|net|int|edu|gov|org|info|mil)",
        r"|(https?://)((([\d]{1,3})(\.[\d]{1,3}){3})|(\[([\da-f]{0,4}:){2}([\da-f]{0,4}:?){1,6}])))",
        r"(?::[\d]{1,5})?(?:[/?#]\S*)?$"
    ))
    .unwrap()
});
#[expect(clippy::unwrap_used, reason = "the regular expressions are constants, and the tests compile them")]
static MAIL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\S+@\w[\w.-]*\.\w+$").unwrap());
#[expect(clippy::unwrap_used, reason = "the regular expressions are constants, and the tests compile them")]
static SCHEME: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^([\w.+-]{2,}:(/){0,2})$").unwrap());

/// Evaluates the filter `urlize`. Source: `do_urlize`.
pub(crate) fn urlize(vm: &mut Vm, value: &Value, args: Args) -> Result<Value> {
    let params = ["trim_url_limit", "nofollow", "target", "rel", "extra_schemes"];
    let [limit, nofollow, target, rel, schemes] = args.bind("urlize", params, 0)?;
    let limit = limit.filter(|limit| !matches!(limit, Value::None));
    let mut rels: Vec<String> = match rel {
        Some(Value::Str(text)) => {
            text.text.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        }
        None => Vec::new(),
        Some(other) if !other.is_true() => Vec::new(),
        Some(other) => {
            return Err(Error::type_error(format!("'{}' object has no attribute 'split'", other.type_name())));
        }
    };
    if nofollow.is_some_and(|nofollow| nofollow.is_true()) {
        rels.push("nofollow".to_owned());
    }
    rels.push("noopener".to_owned());
    rels.sort_unstable();
    rels.dedup();
    let mut attributes = format!(" rel=\"{}\"", escape(&rels.join(" "), &mut vm.budget)?);
    if let Some(target) = target.filter(Value::is_true) {
        let target = to_str(&target, &mut vm.budget)?;
        attributes += &format!(" target=\"{}\"", escape(&target, &mut vm.budget)?);
    }
    let mut extra = Vec::new();
    if let Some(schemes) = schemes.filter(|schemes| !matches!(schemes, Value::None)) {
        for scheme in Iter::new(&schemes)?.collect(vm)? {
            let Some(scheme) = scheme.as_str().filter(|scheme| SCHEME.is_match(scheme)) else {
                return Err(Error::value("urlize() argument 'extra_schemes' contains an invalid URI scheme prefix"));
            };
            extra.push(scheme.to_owned());
        }
    }
    let text = match value {
        value if value.is_safe() => to_str(value, &mut vm.budget)?.to_string(),
        value => {
            let text = to_str(value, &mut vm.budget)?;
            escape(&text, &mut vm.budget)?
        }
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = &*text;
    while !rest.is_empty() {
        let word = rest.find(is_space).unwrap_or(rest.len());
        vm.budget.scan(word.saturating_mul(16) + attributes.len())?;
        vm.budget.check_value(out.len())?;
        link(&rest[..word], &attributes, limit.as_ref(), &extra, &mut out)?;
        let end = rest[word..].find(|character| !is_space(character)).map_or(rest.len(), |length| word + length);
        out += &rest[word..end];
        rest = &rest[end..];
    }
    vm.budget.build(out.len())?;
    Ok(Value::text(out, vm.autoescape))
}

fn link(word: &str, attributes: &str, limit: Option<&Value>, schemes: &[String], out: &mut String) -> Result<()> {
    let mut middle = word;
    while let Some(rest) = ["(", "<", "&lt;"].iter().find_map(|open| middle.strip_prefix(open)) {
        middle = rest;
    }
    out.push_str(&word[..word.len() - middle.len()]);
    let from = middle;
    while let Some(rest) = [")", ">", ".", ",", "\n", "&gt;"].iter().find_map(|close| middle.strip_suffix(close)) {
        middle = rest;
    }
    let mut tail = &from[middle.len()..];
    for (open, close) in [("(", ")"), ("<", ">"), ("&lt;", "&gt;")] {
        let opened = middle.matches(open).count();
        if opened <= middle.matches(close).count() {
            continue;
        }
        for _ in 0..opened.min(tail.matches(close).count()) {
            let end = tail.find(close).map_or(tail.len(), |start| start + close.len());
            middle = &from[..middle.len() + end];
            tail = &from[middle.len()..];
        }
    }
    let trimmed = |text: &str| -> Result<String> {
        let Some(limit) = limit else { return Ok(text.to_owned()) };
        let (limit, length) = (limit.index()?, text.chars().count() as i64);
        if length <= limit {
            return Ok(text.to_owned());
        }
        let kept = if limit < 0 { length.saturating_add(limit) } else { limit };
        Ok(format!("{}...", text.chars().take(kept.max(0) as usize).collect::<String>()))
    };
    let mailto = middle.strip_prefix("mailto:").filter(|address| MAIL.is_match(address));
    if WEB.is_match(middle) {
        let scheme = if middle.starts_with("https://") || middle.starts_with("http://") { "" } else { "https://" };
        *out += &format!("<a href=\"{scheme}{middle}\"{attributes}>{}</a>", trimmed(middle)?);
    } else if let Some(address) = mailto {
        *out += &format!("<a href=\"{middle}\">{address}</a>");
    } else if middle.contains('@')
        && !middle.starts_with("www.")
        && !middle.starts_with('@')
        && !middle.contains(':')
        && MAIL.is_match(middle)
    {
        *out += &format!("<a href=\"mailto:{middle}\">{middle}</a>");
    } else {
        let mut linked = middle.to_owned();
        for scheme in schemes {
            if linked != *scheme && linked.starts_with(scheme.as_str()) {
                linked = format!("<a href=\"{linked}\"{attributes}>{linked}</a>");
            }
        }
        *out += &linked;
    }
    *out += tail;
    Ok(())
}
