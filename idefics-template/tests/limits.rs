//! Every template terminates within the limits on time and memory.

use idefics_template::{ErrorKind, Limits, Now, Template};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn context() -> Map<String, Value> {
    let context = json!({"s": "text <b>", "n": 7, "xs": [3, 1, 2], "d": {"a": 1, "b": [1, 2]}, "none": null});
    context.as_object().unwrap().clone()
}

fn render(source: &str, limits: Limits) -> Result<String, idefics_template::Error> {
    Ok(Template::parse(source)?.render(&context(), limits, Now::from_seconds(0))?.text)
}

#[test]
fn rejects_large_values_before_building_them() {
    for expression in [
        "'a' * 10 ** 12",
        "[1] * 10 ** 12",
        "10 ** (10 ** 6)",
        "'a'.center(10 ** 12)",
        "'a'.ljust(10 ** 12)",
        "'a'.zfill(10 ** 12)",
        "'\\t'.expandtabs(10 ** 12)",
        "'a' | center(10 ** 12)",
        "'a\\nb' | indent(10 ** 12)",
        "'%*d' % (10 ** 9, 1)",
        "'%.*f' % (10 ** 9, 1.5)",
        "'%0999999999d' % 1",
        "'{:>1000000000}'.format('a')",
        "'{:.1000000000f}'.format(1.5)",
        "[1] | tojson(indent=10 ** 12)",
        "[1] | batch(10 ** 12, 0) | list",
        "[1] | slice(10 ** 12, 0) | list",
        "range(10 ** 12)",
        "'aaaaaaaa'.replace('a', 'b' * 10 ** 6)",
        "('a' * 10 ** 5).join('a' * 10 ** 5)",
        "('a' * 4000000) ~ ('b' * 4000000)",
        "['a' * 4000000, 'b' * 4000000] | join",
        "'a b' | wordwrap(1, true, 'x' * 10 ** 7)",
    ] {
        for (before, after) in [("{{ (", ") | string | length }}"), ("{% set x = ", " %}")] {
            let error = render(&format!("{before}{expression}{after}"), Limits::default()).expect_err(expression);
            assert_eq!(error.kind(), ErrorKind::Limit, "{expression}: {error}");
            assert_eq!(error.line(), Some(1), "{expression}");
        }
    }
}

#[test]
fn shared_items_count_each_time() {
    for double in ["[x, x]", "(x, x)", "{'a': x, 'b': x}", "x + x", "x * 2", "dict(a=x, b=x)", "[x]|list * 2"] {
        let source = format!("{{% set x = [1] %}}{}{{{{ x }}}}", format!("{{% set x = {double} %}}").repeat(50));
        let error = render(&source, Limits::default()).expect_err(double);
        assert!(matches!(error.kind(), ErrorKind::Limit | ErrorKind::Type), "{double}: {error}");
    }
}

#[test]
fn rejects_deep_nesting_without_stack_overflow() {
    let nested =
        |open: &str, inner: &str, close: &str| format!("{}{inner}{}", open.repeat(100_000), close.repeat(100_000));
    let mut sources = vec![
        format!("{{{{ {} }}}}", nested("(", "1", ")")),
        format!("{{{{ {} }}}}", nested("[", "1", "]")),
        format!("{{{{ {} }}}}", nested("{1:", "1", "}")),
        format!("{{{{ {} }}}}", nested("not ", "1", "")),
        format!("{{{{ {} }}}}", nested("- ", "1", "")),
        format!("{{{{ {} }}}}", nested("f(", "1", ")")),
        format!("{{{{ {} }}}}", nested("a[", "1", "]")),
        format!("{{{{ {} }}}}", nested("1 if 1 else ", "1", "")),
        format!("{{{{ 1{} }}}}", "+1".repeat(100_000)),
        format!("{{{{ 1{} }}}}", " is odd".repeat(100_000)),
        format!("{{{{ 1{} }}}}", "|abs".repeat(100_000)),
        format!("{{{{ x{} }}}}", ".a".repeat(100_000)),
        format!("{{{{ x{} }}}}", "()".repeat(100_000)),
        format!("{{{{ 1{} }}}}", " if 1".repeat(100_000)),
        format!("{{% set {} = 1 %}}", nested("(", "a", ")")),
        nested("{% if 1 %}", "", "{% endif %}"),
        nested("{% for x in xs %}", "", "{% endfor %}"),
        nested("{% filter upper %}", "", "{% endfilter %}"),
        "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}".to_owned(),
        "{% macro m(x) %}{% call m(x) %}{{ caller }}{% endcall %}{% endmacro %}{{ m(1) }}".to_owned(),
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        "{% block a %}{{ self.a() }}{% endblock %}".to_owned(),
        "{% set n = namespace(x=xs) %}{% for i in range(9999) %}{% set n.x = n.x|map('string') %}{% endfor %}{{ n.x|list }}".to_owned(),
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}".to_owned(),
    ];
    for wrap in ["[n.x]", "(n.x,)", "{1: n.x}", "[n.x].index"] {
        let step = format!("{{% set n.x = {wrap} %}}");
        sources.push(format!("{{% set n = namespace(x=1) %}}{{% for i in range(9999) %}}{step}{{% endfor %}}"));
    }
    // 2 MiB is the default stack size of spawned threads, a quarter of the usual stack size of the main thread.
    let checked = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        for source in sources {
            let error = render(&source, Limits::default()).expect_err(&source[..60.min(source.len())]);
            let is_bound = matches!(error.kind(), ErrorKind::Limit | ErrorKind::Syntax);
            assert!(is_bound, "{}: {error}", &source[..60.min(source.len())]);
        }
    });
    checked.unwrap().join().unwrap();
}

#[test]
fn limits_run_time() {
    for source in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}",
        "{% set x = 'ab' * 500000 %}{% for i in range(99999) %}{% if 'c' in x %}{% endif %}{% endfor %}",
        "{% set x = 'ab' * 500000 %}{% for i in range(99999) %}{% if x[9] %}{% endif %}{% endfor %}",
        "{% set x = range(99999)|list %}{% for i in range(99999) %}{% if -1 in x %}{% endif %}{% endfor %}",
        "{% set x = range(99999)|list %}{% for i in range(99999) %}{% if x|sort %}{% endif %}{% endfor %}",
        "{% set x = range(99999) %}{% for i in range(99999) %}{% if x|sum %}{% endif %}{% endfor %}",
        "{% set x = ',' * 500000 %}{% for i in range(99999) %}{% if []|sort(attribute=x) %}{% endif %}{% endfor %}",
        "{% set x = ',' * 500000 %}{% for i in range(99999) %}{% if 'a'|replace(old=x, new='') %}{% endif %}{% endfor %}",
    ] {
        let error = render(source, Limits::default()).expect_err(source);
        assert_eq!(error.kind(), ErrorKind::Limit, "{source}: {error}");
    }
}

#[test]
fn errors_have_line_and_message() {
    for (source, line, message) in [
        ("a\n{{ x.y.z }}", 2, "'x' is undefined"),
        ("{% if n %}\n\n{{ n + s }}{% endif %}", 3, "unsupported operand type(s) for +: 'int' and 'str'"),
        ("\n{% for x in xs %}", 2, "unexpected end of template, expected endfor or else"),
        ("\n\n{{ s | nosuch }}", 3, "no filter named 'nosuch'"),
        ("{{ raise_exception('roles\nalternate') }}", 1, "roles\nalternate"),
        ("{% include 'a' %}", 1, "{% include %} is not supported: it loads another template"),
    ] {
        let error = render(source, Limits::default()).expect_err(source);
        assert_eq!((error.line(), error.message()), (Some(line), message), "{source}");
    }
}

#[test]
fn reports_ranges_of_generation_blocks() {
    let source = "{% for x in xs %}é{% generation %}[{{ x }}]{% endgeneration %}{% endfor %}";
    let rendered = Template::parse(source).unwrap().render(&context(), Limits::default(), Now::utc()).unwrap();
    let parts: Vec<&str> = rendered.generated.iter().map(|part| &rendered.text[part.clone()]).collect();
    assert_eq!(parts, ["[3]", "[1]", "[2]"]);
}

/// Generates fragments of templates in random order.
fn pieces() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{%- ",
        " -%}",
        "for x in ",
        "endfor",
        "if ",
        "else",
        "elif ",
        "endif",
        "set x = ",
        "set ns.x = ",
        "macro m(a, b=1) ",
        "endmacro",
        "call m(1) ",
        "endcall",
        "filter upper",
        "endfilter",
        "with a = ",
        "endwith",
        "raw",
        "endraw",
        "generation",
        "endgeneration",
        "block a",
        "endblock",
        "namespace(x=1)",
        "m(x)",
        "xs",
        "s",
        "d",
        "n",
        "x",
        "loop",
        "loop.last",
        "loop.nextitem",
        "'a'",
        "\"\\u00e9\"",
        "1",
        "2.5",
        "10 ** 20",
        "none",
        "true",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        ":",
        ",",
        ".",
        "|",
        "~",
        "+",
        "-",
        "*",
        "/",
        "//",
        "%",
        "**",
        "==",
        "<",
        " in ",
        " is ",
        " not ",
        " and ",
        " or ",
        "'%s'",
        "upper",
        "join",
        "map('upper')",
        "list",
        "sort",
        "tojson",
        "format(1)",
        "center(9)",
        "indent(2)",
        "range(9)",
        "items()",
        "split()",
        "odd",
        "defined",
        "=",
        "{# ",
        " #}",
        "\n",
        "é",
        "😀",
        "break",
        "continue",
        "recursive",
        "loop(x)",
        "caller()",
        "self.a()",
        "pprint",
        "wordwrap(3)",
        "urlize",
        "-1",
        "::2",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn random_text_does_not_panic(source in ".{0,80}") {
        let _ = render(&source, Limits::default());
    }

    #[test]
    fn random_tag_does_not_panic(inner in ".{0,60}", block in any::<bool>()) {
        let source = if block { format!("{{% {inner} %}}") } else { format!("{{{{ {inner} }}}}") };
        let _ = render(&source, Limits::default());
    }

    #[test]
    fn random_template_does_not_panic_or_exceed_limits(source in pieces()) {
        let limits = Limits::default().with_steps(20_000).with_bytes(1 << 14, 1 << 16).with_depth(100);
        if let Ok(text) = render(&source, limits) {
            prop_assert!(text.len() <= 1 << 16);
        }
    }
}
