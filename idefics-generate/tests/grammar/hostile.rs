//! Grammars made to cost much time, memory or stack. Each is rejected with an error, or the answers follow it.

use std::time::{Duration, Instant};

use idefics_generate::{Grammar, GrammarError};
use serde_json::{Map, Value, json};

use super::{Answered, LLAMA};

/// Number of tokens that are sampled under each grammar that is accepted.
const TOKENS: usize = 24;

/// A generator of grammars of growing size: its name, and a function that returns the grammar of a size from 0 to 9.
type Generator = (&'static str, fn(u32) -> Result<Grammar, GrammarError>);

fn nested(depth: usize, wrap: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(json!({"type": "null"}), |inner, _| wrap(inner))
}

fn properties(n: usize, value: &Value) -> Value {
    (0..n).map(|index| (format!("key{index}"), value.clone())).collect::<Map<_, _>>().into()
}

/// Returns `base` to the power of `size + 1`: 2, 4, … 1024 for base 2, and 10, 100, … for base 10.
fn power(base: u64, size: u32) -> u64 {
    base.saturating_pow(size + 1)
}

const GENERATORS: [Generator; 20] = [
    ("nested lists", |size| Grammar::json_schema(nested(power(2, size) as usize, |inner| json!({"items": inner})))),
    ("nested objects", |size| {
        Grammar::json_schema(nested(13 * size as usize, |inner| json!({"type": "object", "properties": {"a": inner}})))
    }),
    ("nested alternatives", |size| {
        // Each level doubles the schema.
        Grammar::json_schema(nested(
            2 * size as usize,
            |inner| json!({"anyOf": [inner, {"type": "array", "items": inner}]}),
        ))
    }),
    ("optional keys", |size| {
        Grammar::json_schema(json!({"type": "object", "additionalProperties": false,
        "properties": properties(power(3, size) as usize / 10, &json!({"type": "integer"}))}))
    }),
    ("required keys", |size| {
        let n = power(3, size) as usize / 10;
        let required: Vec<String> = (0..n).map(|index| format!("key{index}")).collect();
        Grammar::json_schema(json!({"type": "object", "properties": properties(n, &json!({})), "required": required}))
    }),
    ("long enums", |size| {
        let texts: Vec<String> = (0..power(3, size)).map(|index| format!("{index:016}")).collect();
        Grammar::json_schema(json!({"enum": texts}))
    }),
    ("long texts", |size| {
        Grammar::json_schema(json!({"type": "string", "minLength": power(10, size) / 2,
        "maxLength": power(10, size)}))
    }),
    ("long lists", |size| {
        Grammar::json_schema(json!({"type": "array", "items": {"type": "array", "items": {},
        "maxItems": power(10, size)}, "minItems": power(10, size)}))
    }),
    ("repeated patterns", |size| {
        let n = power(2, size);
        Grammar::json_schema(json!({"type": "string", "pattern": format!("^((a?b{{1,{n}}}){{1,{n}}}c*){{1,{n}}}$")}))
    }),
    ("ambiguous patterns", |size| {
        Grammar::json_schema(json!({"type": "string", "pattern": ".*x.{3}".repeat(4 * size as usize + 1)}))
    }),
    ("multiples", |size| {
        let primes = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29];
        let all: Vec<Value> = primes[..=size as usize].iter().map(|prime| json!({"multipleOf": prime})).collect();
        Grammar::json_schema(json!({"type": "integer", "allOf": all, "maximum": i64::MAX, "minimum": i64::MIN}))
    }),
    ("products of alternatives", |size| {
        let pair = |index| {
            json!({"anyOf": [{"properties": {format!("a{index}"): {"type": "null"}}},
            {"properties": {format!("b{index}"): {"type": "string"}}}]})
        };
        Grammar::json_schema(json!({"type": "object", "allOf": (0..2 * size).map(pair).collect::<Vec<_>>()}))
    }),
    ("circular references", |size| {
        let link = |index: u32| {
            json!({"$ref": format!("#/$defs/d{}", (index + 1) % (size + 1)), "type": "object",
            "properties": {"next": {"$ref": format!("#/$defs/d{index}")}}})
        };
        let definitions: Map<String, Value> = (0..=size).map(|index| (format!("d{index}"), link(index))).collect();
        Grammar::json_schema(json!({"$ref": "#/$defs/d0", "$defs": definitions}))
    }),
    ("references that double", |size| {
        let n = 6 * size;
        let pair = |index: u32| {
            json!({"type": "array", "prefixItems": [{"$ref": format!("#/$defs/d{}", index + 1)},
            {"$ref": format!("#/$defs/d{}", index + 1)}], "items": false, "minItems": 2})
        };
        let mut definitions: Map<String, Value> = (0..n).map(|index| (format!("d{index}"), pair(index))).collect();
        definitions.insert(format!("d{n}"), json!({"type": "null"}));
        Grammar::json_schema(json!({"$ref": "#/$defs/d0", "$defs": definitions}))
    }),
    ("overlapping names", |size| {
        let patterns: Map<String, Value> =
            (0..power(2, size)).map(|index| (format!("^a{{{index},}}b.*c$"), json!({"type": "null"}))).collect();
        Grammar::json_schema(json!({"type": "object", "patternProperties": patterns}))
    }),
    ("extreme numbers", |size| {
        let limits = [1e308, -1e308, 1e-308, 9.3e18, -9.3e18, 0.1 + 0.2, 1e15, 123_456_789.123_456_7, 5e-324, 4e9];
        let limit = limits[size as usize];
        Grammar::json_schema(json!({"anyOf": [{"type": "number", "minimum": limit, "multipleOf": 0.001},
            {"type": "integer", "exclusiveMaximum": limit}, {"type": "number", "maximum": limit}]}))
    }),
    ("keywords of the wrong type", |size| {
        let wrong = [
            json!(5),
            json!([]),
            json!({}),
            json!("é".repeat(200)),
            json!(null),
            json!(-1),
            json!(1.5),
            json!([["a"]]),
            json!(true),
            json!("((("),
        ][size as usize]
            .clone();
        let keys = ["type", "properties", "items", "enum", "required", "maxLength", "anyOf", "format"];
        let all: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), wrong.clone())).collect();
        Grammar::json_schema(Value::Object(all))
    }),
    ("hostile texts", |size| {
        let texts =
            ["\"", "\\", "\u{0}", "\u{7f}", "\u{2028}", "\"}]\n", "%json {}", "</s><image>", "\u{10ffff}", "/ /i"];
        let text = texts[size as usize].repeat(300);
        Grammar::json_schema(json!({"type": "object", "properties": {text.clone(): {"const": text}},
            "required": [text], "additionalProperties": false}))
    }),
    ("regular expressions", |size| {
        let expressions = [
            "(a|aa)+$",
            "(?i)\\p{L}{500}",
            "(\\w+\\s?)*x",
            "[^\\x00-\\x{10FFFF}]",
            "(?x)a #",
            "(?s:.){9999}",
            "((((((((((a{9}){9}){9}){9}){9}){9}){9}){9}){9}){9})",
            "a\\b",
            "(?=a)b",
            "(.*a){30}[^a]{30}",
        ];
        Grammar::regex(expressions[size as usize])
    }),
    ("choices", |size| {
        Grammar::choices((0..power(3, size)).map(|index| format!("{}{index}", "a".repeat(size as usize))))
    }),
];

#[test]
fn hostile_grammars_are_rejected_or_followed() {
    let mut slowest = (Duration::ZERO, String::new());
    let (mut n_accepted, mut n_rejected) = (0, 0);
    for (name, generate) in GENERATORS {
        for size in 0..10 {
            let clock = Instant::now();
            let compiled = generate(size).and_then(|grammar| grammar.compile(&LLAMA.vocabulary));
            match &compiled {
                Ok(grammar) => {
                    n_accepted += 1;
                    // The row may fail with an error, but it must not panic or overflow the stack.
                    if let Answered::Failed(error) = LLAMA.answer(grammar, 1, TOKENS) {
                        println!("{name}, size {size}: {error}");
                    }
                }
                Err(error) => {
                    n_rejected += 1;
                    let message = error.to_string();
                    assert!(!message.contains('\n') && message.len() < 1000, "{name}, size {size}: {message}");
                    println!("{name}, size {size}: {message}");
                }
            }
            slowest = slowest.max((clock.elapsed(), format!("{name}, size {size}")));
        }
    }
    println!("{n_accepted} accepted, {n_rejected} rejected; the slowest took {slowest:?}");
    assert!(n_accepted >= 50 && n_rejected >= 20, "{n_accepted} accepted, {n_rejected} rejected");
}

#[test]
fn unsupported_keywords_are_named() {
    for (schema, expected) in [
        (json!({"not": {"type": "null"}}), "not"),
        (json!({"if": {}, "then": {}}), "if"),
        (json!({"type": "object", "propertyNames": {"maxLength": 3}}), "propertyNames"),
        (json!({"type": "string", "format": "colour"}), "colour"),
        (json!({"type": "text"}), "text"),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (json!({"enum": []}), "nsatisfiable"),
    ] {
        let error = Grammar::json_schema(schema).unwrap_err();
        assert!(matches!(error, GrammarError::Rejected { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(matches!(Grammar::from_json_schema_text("{"), Err(GrammarError::NotJson { .. })));
    let long = format!("{{\"title\": \"{}\"}}", "a".repeat(300 << 10));
    assert!(matches!(Grammar::from_json_schema_text(&long), Err(GrammarError::TooLong { .. })));
    let deep = "[".repeat(100_000);
    assert!(matches!(Grammar::from_json_schema_text(&deep), Err(GrammarError::NotJson { .. })));
    assert!(matches!(Grammar::choices::<&str>([]), Err(GrammarError::NoChoices)));
    assert!(matches!(Grammar::choices(["a", ""]), Err(GrammarError::NoChoices)));
    assert!(matches!(Grammar::regex(""), Err(GrammarError::EmptyRegex)));
    assert!(matches!(Grammar::regex("a\\"), Err(GrammarError::TrailingBackslash { .. })));
    assert!(matches!(Grammar::regex("a)|(?:b"), Err(GrammarError::Invalid { .. })));
}

#[test]
fn too_many_optional_properties_are_too_complex() {
    let with = |n: usize| {
        Grammar::json_schema(json!({"type": "object", "properties": properties(n, &json!({"type": "null"})),
        "additionalProperties": false}))
    };
    assert!(with(100).is_ok());
    for n in [501, 3000] {
        let error = with(n).unwrap_err();
        assert!(matches!(error, GrammarError::TooComplex { .. }), "{error}");
    }
}
