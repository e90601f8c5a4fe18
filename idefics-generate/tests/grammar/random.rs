//! Random schemas and random scores: every complete answer satisfies its schema.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

use super::{Answered, BYTE_LEVEL, LLAMA, schema, validate};

/// Number of random schemas. The environment variable `GRAMMAR_SCHEMAS` sets another number.
const SCHEMAS: u32 = 64;

/// Maximum number of tokens of an answer.
const TOKENS: usize = 1000;

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "integer"})),
        Just(json!({"type": "number"})),
        (-50_i32..50, 0_i32..200)
            .prop_map(|(low, span)| json!({"type": "integer", "minimum": low, "maximum": low + span})),
        (-50_i32..50, 1_i32..200).prop_map(|(low, span)| {
            json!({"type": "number", "exclusiveMinimum": f64::from(low) / 4.0, "maximum": f64::from(low + span) / 4.0})
        }),
        (1_u32..40).prop_map(|of| json!({"type": "integer", "minimum": 0, "maximum": 999, "multipleOf": of})),
        (0_usize..4, 0_usize..8)
            .prop_map(|(low, span)| { json!({"type": "string", "minLength": low, "maxLength": low + span}) }),
        prop::sample::select(&["^[a-z]{1,5}$", "^\\d{4}-\\d\\d$", "^(yes|no)$", "^[A-Z]+x?$", "^\"\\\\?$"][..])
            .prop_map(|pattern| json!({"type": "string", "pattern": pattern})),
        prop::collection::vec("[a-z \"\\\\é世\\n]{0,6}", 1..5).prop_map(|texts| json!({"enum": texts})),
        prop_oneof![Just(json!(null)), Just(json!([1, "a"])), Just(json!({"b": {"c": -1.5}})), Just(json!("\u{7f}"))]
            .prop_map(|value| json!({"const": value})),
        Just(json!({"type": ["string", "null"], "maxLength": 3})),
    ]
}

/// Schemas of values whose parts have schemas drawn from `inner`.
fn nested(inner: impl Strategy<Value = Value> + Clone) -> impl Strategy<Value = Value> {
    let name = "[a-z]{1,3}|[\"\\\\ é]{1,2}";
    let properties = prop::collection::btree_map(name, (inner.clone(), any::<bool>()), 0..5);
    let object = (properties, any::<bool>()).prop_map(|(properties, is_closed)| {
        let required: Vec<&String> =
            properties.iter().filter(|(_, (_, is_required))| *is_required).map(|(name, _)| name).collect();
        let mut object = json!({"type": "object", "required": required,
            "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}});
        if is_closed {
            object["additionalProperties"] = json!(false);
        }
        let properties: Map<String, Value> = properties.into_iter().map(|(name, (schema, _))| (name, schema)).collect();
        object["properties"] = properties.into();
        object
    });
    let list = (inner.clone(), 0_usize..3, 0_usize..3).prop_map(
        |(items, low, span)| json!({"type": "array", "items": items, "minItems": low, "maxItems": low + span}),
    );
    let tuple = prop::collection::vec(inner.clone(), 1..4)
        .prop_map(|parts| json!({"type": "array", "prefixItems": parts, "items": false, "minItems": parts.len()}));
    let either = prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| json!({"anyOf": parts}));
    let tree = inner.prop_map(|leaf| {
        let tree = json!({"type": "object", "properties": {"leaf": leaf, "next": {"$ref": "#/$defs/tree"}},
            "required": ["leaf"], "additionalProperties": false});
        // References find definitions only at the root of a schema.
        json!({"$defs": {"tree": tree}, "$ref": "#/$defs/tree"})
    });
    prop_oneof![4 => object, 2 => list, 1 => tuple, 1 => either, 1 => tree]
}

fn any_schema() -> impl Strategy<Value = Value> {
    let parts = leaf().prop_recursive(2, 12, 4, |inner| nested(inner).prop_map(without_definitions));
    prop_oneof![1 => leaf(), 5 => nested(parts)]
}

/// Replaces a recursive schema, which must be the root, by the tree that it refers to, cut after one level.
fn without_definitions(mut schema: Value) -> Value {
    match schema.pointer_mut("/$defs/tree") {
        Some(tree) => {
            let mut tree = tree.take();
            tree["properties"]["next"] = json!({"type": "null"});
            tree
        }
        None => schema,
    }
}

#[test]
fn complete_answers_satisfy_random_schemas() {
    let cases = std::env::var("GRAMMAR_SCHEMAS").map_or(SCHEMAS, |text| text.parse().unwrap());
    let (n_answers, n_complete) = (Cell::new(0_u32), Cell::new(0_u32));
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let checked = runner.run(&(any_schema(), any::<u64>()), |(value, seed)| {
        let grammar = schema(value.clone());
        for tokens in [&*LLAMA, &*BYTE_LEVEL] {
            n_answers.set(n_answers.get() + 1);
            match tokens.answer(&tokens.compile(&grammar), seed, TOKENS) {
                Answered::Complete(text) => {
                    n_complete.set(n_complete.get() + 1);
                    prop_assert_eq!(validate::check(&value, &text), Ok(()), "{}", value);
                }
                Answered::Cut => {}
                Answered::Failed(error) => prop_assert!(false, "{error}: {value}"),
            }
        }
        Ok(())
    });
    checked.unwrap();
    let share = f64::from(n_complete.get()) / f64::from(n_answers.get());
    println!("{} of {} answers are complete", n_complete.get(), n_answers.get());
    assert!(share >= 0.8, "only {share:.3} of the answers are complete");
}
