//! What a chat template may do and how much of it.
//!
//! A template is a program from a downloaded folder. The engine counts its steps, but one step can double a string, so
//! sizes are counted as well: everything that builds a value goes through a function here that weighs what it is given
//! first. Operators are led through such functions by exchanging instructions after compiling; filters and methods by
//! registering our own under their names. What cannot be bounded that way is not there.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::machinery::{CodeGenerator, Instruction, Token, eval, make_string_output, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use crate::prompt::functions::{raise_exception, strftime_now, to_json};

/// How deep calls, blocks and values may nest.
const DEPTH: usize = 64;
/// Bytes that the template's own text may put into the output, in all.
const MAX_RAW_BYTES: usize = 256 << 20;

/// Filters whose work and result are proportional to what they are given.
const FILTERS: [&str; 36] = [
    "abs",
    "attr",
    "bool",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "groupby",
    "int",
    "items",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "sort",
    "split",
    "string",
    "title",
    "unique",
    "upper",
];
/// Filters that can build more than they are given; they exist only in the guarded form, or not at all.
const UNBOUNDED_FILTERS: [&str; 12] =
    ["batch", "chain", "format", "indent", "join", "pprint", "replace", "slice", "sum", "tojson", "urlencode", "zip"];
/// Statements that read other templates.
const STATEMENTS: [&str; 5] = ["block", "extends", "from", "import", "include"];

/// What one rendering may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Steps.
    pub(crate) steps: u64,
    /// Largest value, in bytes.
    pub(crate) value_bytes: usize,
    /// All values that are built, in bytes.
    pub(crate) total_bytes: usize,
}

impl Cost {
    /// Enough for any template that writes a conversation of so many parts and bytes.
    pub(crate) fn of(parts: usize, bytes: usize) -> Self {
        Self {
            steps: 200_000 + 400 * parts as u64,
            value_bytes: (1 << 20) + 4 * bytes,
            total_bytes: (64 << 20) + 64 * bytes,
        }
    }
}

/// Why a template was stopped, as the source of the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Exceeded(String);

/// What a template may not contain.
#[derive(Debug)]
pub(crate) struct Forbidden {
    pub(crate) what: String,
    pub(crate) line: u32,
}

/// The delimiters and white space rules of the reference. Source: `_cached_compile_jinja_template`.
fn syntax() -> SyntaxConfig {
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    syntax.build().expect("the default delimiters are valid")
}

/// Looks for what no chat template needs: other templates, and `*`, which makes long strings of short ones before a
/// step is counted.
pub(crate) fn check(source: &str) -> Result<Option<Forbidden>, Error> {
    let mut after_block_start = false;
    for token in tokenize(source, false, syntax()) {
        let (token, span) = token?;
        let what = match token {
            Token::Mul | Token::Pow => Some("the operator *".to_owned()),
            Token::Ident(word) if after_block_start && STATEMENTS.contains(&word) => Some(format!("{{% {word} %}}")),
            _ => None,
        };
        if let Some(what) = what {
            return Ok(Some(Forbidden { what, line: u32::from(span.start_line) }));
        }
        after_block_start = matches!(token, Token::BlockStart);
    }
    parse(source, NAME, syntax())?;
    Ok(None)
}

const NAME: &str = "chat_template";

/// Runs a template that passed [`check`].
pub(crate) fn render(source: &str, context: Value, cost: Cost) -> Result<String, Error> {
    let template = parse(source, NAME, syntax())?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&template);
    let (mut instructions, blocks) = generator.finish();
    let mut longest_raw = 1;
    let mut index = 0;
    while let Some(instruction) = instructions.get_mut(index) {
        // Names of functions that no template can write, and so none can replace.
        match instruction {
            Instruction::Add => *instruction = Instruction::CallFunction("+", Some(2)),
            Instruction::StringConcat => *instruction = Instruction::CallFunction("~", Some(2)),
            Instruction::EmitRaw(raw) => longest_raw = longest_raw.max(raw.len()),
            _ => {}
        }
        index += 1;
    }
    let mut environment = environment(cost);
    let steps = cost.steps.min((MAX_RAW_BYTES / longest_raw) as u64);
    environment.set_fuel(Some(steps));
    let mut text = String::new();
    eval(&environment, &instructions, context, &blocks, &mut make_string_output(&mut text), AutoEscape::None)
        .map(|_| ())?;
    Ok(text)
}

/// Which limit an error comes from, if any.
pub(crate) fn limit(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Exceeded(limit)) = error.downcast_ref::<Exceeded>() {
            return Some(limit.clone());
        }
        if let Some(error) = error.downcast_ref::<Error>() {
            if error.kind() == ErrorKind::OutOfFuel {
                return Some("steps".to_owned());
            }
            if error.detail().is_some_and(|detail| detail.contains("recursion limit")) {
                return Some(format!("{DEPTH} nested calls"));
            }
        }
        cause = error.source();
    }
    None
}

/// The unguarded filters, which the guarded ones call.
static FILTERS_INSIDE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    for filter in UNBOUNDED_FILTERS {
        environment.remove_filter(filter);
    }
    environment.add_filter("trim", minijinja::filters::trim);
    environment
});

fn environment(cost: Cost) -> Environment<'static> {
    let budget = Arc::new(Budget { value_bytes: cost.value_bytes, left: AtomicUsize::new(cost.total_bytes) });
    let mut environment = Environment::new();
    environment.set_recursion_limit(DEPTH);
    environment.set_debug(false);
    environment.remove_global("debug");
    for filter in UNBOUNDED_FILTERS {
        environment.remove_filter(filter);
    }
    for filter in FILTERS.into_iter().chain(["trim"]) {
        let budget = budget.clone();
        environment.add_filter(filter, move |Rest(mut arguments): Rest<Value>, options: Kwargs| {
            if options.args().next().is_some() {
                arguments.push(Value::from(options));
            }
            budget.charge(&arguments)?;
            FILTERS_INSIDE.empty_state().apply_filter(filter, &arguments)
        });
    }
    let of_budget = budget.clone();
    environment.add_filter("join", move |values: &Value, separator: Option<&str>| {
        of_budget.join(separator.unwrap_or_default(), values)
    });
    let of_budget = budget.clone();
    environment.add_filter("replace", move |text: &str, old: &str, new: &str| of_budget.replace(text, old, new, None));
    let of_budget = budget.clone();
    environment.add_filter("tojson", move |value: &Value, indent: Option<Value>, options: Kwargs| {
        of_budget.charge(std::slice::from_ref(value))?;
        to_json(value, indent, options)
    });
    let of_budget = budget.clone();
    environment.add_function("+", move |left: &Value, right: &Value| of_budget.add(left, right));
    let of_budget = budget.clone();
    environment.add_function("~", move |left: &Value, right: &Value| of_budget.concatenate(left, right));
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    let of_budget = budget.clone();
    environment.set_formatter(move |output, state, value| {
        of_budget.charge(std::slice::from_ref(value))?;
        minijinja::escape_formatter(output, state, value)
    });
    environment.set_unknown_method_callback(move |state, value, method, arguments| {
        call_method(&budget, state, value, method, arguments)
    });
    environment
}

/// The methods of Python's strings, maps and lists.
fn call_method(
    budget: &Budget,
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    budget.charge(std::slice::from_ref(value))?;
    budget.charge(arguments)?;
    match (value.as_str(), method, arguments) {
        (Some(separator), "join", [values]) => budget.join(separator, values),
        (Some(text), "replace", [old, new, rest @ ..]) => {
            let word = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| wrong("replace takes strings"));
            let count = rest.first().map(|count| i64::try_from(count.clone())).transpose()?;
            let count = count.and_then(|count| usize::try_from(count).ok()); // a negative one means all
            budget.replace(text, &word(old)?, &word(new)?, count)
        }
        (Some(_), "format", _) => Err(Error::from(ErrorKind::UnknownMethod)),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

/// Bytes that may still be built.
struct Budget {
    value_bytes: usize,
    left: AtomicUsize,
}

impl Budget {
    /// Weighs values that are about to be used together.
    fn charge(&self, values: &[Value]) -> Result<(), Error> {
        let mut weight = 0;
        values.iter().try_for_each(|value| self.weigh(value, &mut weight, DEPTH))?;
        self.spend(weight)
    }

    fn spend(&self, bytes: usize) -> Result<(), Error> {
        if bytes > self.value_bytes {
            return Err(exceeded(format!("{} bytes in one value", self.value_bytes)));
        }
        let spent = self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        spent.map(|_| ()).map_err(|_| exceeded("bytes in all values".to_owned()))
    }

    /// Adds about as many bytes as `value` has when it is written out; stops at the limit of one value.
    fn weigh(&self, value: &Value, weight: &mut usize, depth: usize) -> Result<(), Error> {
        *weight += value.as_str().map_or(16, str::len);
        if *weight > self.value_bytes {
            return Err(exceeded(format!("{} bytes in one value", self.value_bytes)));
        }
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
            return Ok(());
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Err(exceeded(format!("{DEPTH} nested values")));
        };
        for item in value.try_iter()?.checked() {
            let item = item?;
            if value.kind() == ValueKind::Map {
                self.weigh(&value.get_item(&item)?, weight, depth)?;
            }
            self.weigh(&item, weight, depth)?;
        }
        Ok(())
    }

    fn add(&self, left: &Value, right: &Value) -> Result<Value, Error> {
        self.charge(&[left.clone(), right.clone()])?;
        let sequences = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
        match (left.as_str(), right.as_str()) {
            (Some(left), Some(right)) => Ok(Value::from(format!("{left}{right}"))),
            _ if sequences(left) && sequences(right) => left
                .try_iter()?
                .checked()
                .chain(right.try_iter()?.checked())
                .collect::<Result<Vec<_>, _>>()
                .map(Value::from),
            _ if left.is_number() && right.is_number() => add_numbers(left, right),
            _ => Err(wrong(&format!("cannot add {} and {}", left.kind(), right.kind()))),
        }
    }

    fn concatenate(&self, left: &Value, right: &Value) -> Result<Value, Error> {
        self.charge(&[left.clone(), right.clone()])?;
        Ok(Value::from(format!("{left}{right}")))
    }

    fn join(&self, separator: &str, values: &Value) -> Result<Value, Error> {
        self.charge(std::slice::from_ref(values))?;
        let values =
            values.try_iter()?.checked().map(|value| Ok(value?.to_string())).collect::<Result<Vec<_>, Error>>()?;
        self.spend(separator.len().saturating_mul(values.len()))?;
        Ok(Value::from(values.join(separator)))
    }

    fn replace(&self, text: &str, old: &str, new: &str, count: Option<usize>) -> Result<Value, Error> {
        let found = text.matches(old).count().min(count.unwrap_or(usize::MAX));
        self.spend(found.saturating_mul(new.len()).saturating_add(text.len()))?;
        Ok(Value::from(text.replacen(old, new, found)))
    }
}

fn add_numbers(left: &Value, right: &Value) -> Result<Value, Error> {
    match (i64::try_from(left.clone()), i64::try_from(right.clone())) {
        (Ok(left), Ok(right)) if left.checked_add(right).is_some() => Ok(Value::from(left + right)),
        _ => Ok(Value::from(f64::try_from(left.clone())? + f64::try_from(right.clone())?)),
    }
}

fn exceeded(limit: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, "limit").with_source(Exceeded(limit))
}

pub(crate) fn wrong(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.to_owned())
}
