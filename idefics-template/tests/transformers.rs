//! The chat template tests of Transformers that concern only the template.

use idefics_template::{ErrorKind, Limits, Now, Rendered, Template};
use serde_json::{Value, json};

fn render(source: &str, context: &Value) -> Result<Rendered, idefics_template::Error> {
    let context = context.as_object().unwrap();
    Template::parse(source)?.render(context, Limits::default(), Now::utc())
}

fn text(source: &str, context: &Value) -> String {
    render(source, context).unwrap().text
}

fn said(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn conversation(turns: &[(&str, &str)]) -> Value {
    json!({"messages": turns.iter().map(|(role, content)| said(role, content)).collect::<Vec<_>>()})
}

/// Source: `test_chat_template`, `test_chat_template_batched`.
#[test]
fn template_renders_many_conversations() {
    let template = Template::parse("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}").unwrap();
    let conversations = [
        (conversation(&[("system", "S"), ("user", "U"), ("assistant", "A")]), "systemSuserUassistantA"),
        (conversation(&[("system", "T"), ("user", "V"), ("assistant", "B")]), "systemTuserVassistantB"),
        (conversation(&[]), ""),
    ];
    for _ in 0..2 {
        for (context, expected) in &conversations {
            let context = context.as_object().unwrap();
            let rendered = template.render(context, Limits::default(), Now::utc()).unwrap();
            assert_eq!((&*rendered.text, rendered.generated.len()), (*expected, 0));
        }
    }
}

/// Source: `test_jinja_loopcontrols`.
#[test]
fn supports_break_and_continue() {
    let context = conversation(&[("system", "s"), ("user", "u"), ("assistant", "a")]);
    let around = |control: &str| {
        format!("{{%- for m in messages %}}\n  {control}\n  {{{{- m.role ~ ' ' ~ m.content }}}}\n{{%- endfor %}}")
    };
    let broken = around("{%- if m.role == 'user' %}\n{%- break %}\n{%- endif %}");
    assert_eq!(text(&broken, &context), "system s");
    let continued = around("{%- if m.role == 'user' %}\n{%- continue %}\n{%- endif %}");
    assert_eq!(text(&continued, &context), "system sassistant a");
}

/// Source: `test_jinja_strftime`.
#[test]
fn strftime_now_formats_date() {
    let date = text("{{- strftime_now('%Y-%m-%d') }}", &json!({}));
    assert_eq!((date.len(), date.split('-').count()), (10, 3));
}

const MASKED: &str = "{% for m in messages %}{{ '<' + m.role + '>\n' }}{% if m.role == 'assistant' %}\
    {% generation %}{{ m.content + '<end>' }}{% endgeneration %}{{ '\n' }}\
    {% else %}{{ m.content + '<end>\n' }}{% endif %}{% endfor %}";

/// Source: `test_chat_template_return_assistant_tokens_mask`.
#[test]
fn reports_ranges_of_assistant_messages() {
    let context = conversation(&[
        ("system", "né"),
        ("user", "one"),
        ("assistant", "first – turn"),
        ("user", "first – turn"),
        ("assistant", "second turn"),
    ]);
    let rendered = render(MASKED, &context).unwrap();
    let parts: Vec<&str> = rendered.generated.iter().map(|part| &rendered.text[part.clone()]).collect();
    assert_eq!(parts, ["first – turn<end>", "second turn<end>"]);
    for part in &rendered.generated {
        assert!(rendered.text[..part.start].ends_with("<assistant>\n"));
        assert!(rendered.text[part.end..].starts_with('\n'));
    }
}

/// Renders the text up to the end of the last message. As in Transformers, a marker is appended to the message, and the
/// rendered text is cut at the marker.
fn unfinished(source: &str, turns: &[(&str, &str)]) -> String {
    let mut turns: Vec<(&str, String)> = turns.iter().map(|(role, content)| (*role, (*content).to_owned())).collect();
    let mark = "\u{fdd0}";
    turns.last_mut().unwrap().1 += mark;
    let turns: Vec<(&str, &str)> = turns.iter().map(|(role, content)| (*role, &**content)).collect();
    let rendered = text(source, &conversation(&turns));
    rendered[..rendered.rfind(mark).unwrap()].to_owned()
}

/// Source: `test_continue_final_message`, `…_with_trim`, `…_with_decoy_earlier_message`.
#[test]
fn last_message_can_be_continued() {
    let plain = "{%- for m in messages %}\n  {{- '<' + m['role'] + '>' + m['content'] + '<end>\n' }}\n{%- endfor %}";
    let turns = [("user", "hi 0"), ("assistant", "bye: 0"), ("user", "hi 1"), ("assistant", "bye:")];
    let before = "<user>hi 0<end>\n<assistant>bye: 0<end>\n<user>hi 1<end>\n<assistant>bye:";
    assert_eq!(text(plain, &conversation(&turns)), format!("{before}<end>\n"));
    assert_eq!(unfinished(plain, &turns), before);
    let trimmed = plain.replace("m['content']", "m['content'] | trim");
    let spaced = [("system", " s "), ("assistant", "a \n")];
    assert_eq!(text(&trimmed, &conversation(&spaced)), "<system>s<end>\n<assistant>a<end>\n");
    assert_eq!(unfinished(&trimmed, &turns), before);
}

/// Source: `test_chat_template_jinja_kwargs` of processors.
#[test]
fn extra_variables_reach_template() {
    let source = "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}{{ lang | default('en') }}";
    assert_eq!(text(source, &json!({})), "en");
    assert_eq!(text(source, &json!({"enable_thinking": false, "lang": "fr"})), "<no>fr");
}

/// Source: the schemas in `JsonSchemaGeneratorTest`. Generating schemas from functions is specific to Python and not
/// tested.
#[test]
fn tools_are_written_as_json() {
    let tool = r#"{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": ["integer", "number"], "nullable": true, "enum": [1, 2.50, 9.193114101944701, "é<"]}}, "required": []}}}"#;
    let tool: Value = serde_json::from_str(tool).unwrap();
    let expected = r#"{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": ["integer", "number"], "nullable": true, "enum": [1, 2.5, 9.193114101944701, "é<"]}}, "required": []}}"#;
    assert_eq!(text("{{ tools[0].function | tojson }}", &json!({"tools": [tool]})), expected);
}

/// Source: `TemplateNamespace` and `TemplateDict` in `chat_template_utils.py`.
#[test]
fn sandbox_hides_python_internals_and_mutators() {
    let context = conversation(&[("user", "hi")]);
    for source in [
        "{% set ns = namespace() %}{% set ns._a = 1 %}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
    ] {
        let error = render(source, &context).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Security, "{source}: {error}");
    }
}
