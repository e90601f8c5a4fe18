//! Parses and renders a chat template of typical size.

use criterion::{Criterion, criterion_group, criterion_main};
use idefics_template::{Limits, Now, Template};
use serde_json::{Map, Value, json};

const SOURCE: &str = r#"
{%- if tools %}
    {{- '<|system|>\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}{%- endfor %}
{%- endif %}
{%- set ns = namespace(images=0) %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('unknown role ' ~ message.role) }}
    {%- endif %}
    {{- '<|%s|>' % message['role'] }}
    {%- if message.content is string %}
        {{- message.content.strip() }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}{% set ns.images = ns.images + 1 %}<image>{%- elif part.text is defined %}
                {{- part['text'] | trim }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|end|>' if not loop.last else '' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"#;

fn context(turns: usize) -> Map<String, Value> {
    let turn = |index: usize| match index % 2 {
        0 => {
            json!({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is shown here? ".repeat(8)}]})
        }
        _ => json!({"role": "assistant", "content": "A cat on a sofa, in front of a window. ".repeat(8)}),
    };
    let messages: Vec<Value> = (0..turns).map(turn).collect();
    let context = json!({"messages": messages, "tools": [{"name": "f", "parameters": {"a": [1, 2]}}], "add_generation_prompt": true});
    context.as_object().cloned().unwrap_or_default()
}

fn benches(criterion: &mut Criterion) {
    criterion.bench_function("parse", |bencher| bencher.iter(|| Template::parse(SOURCE)));
    let Ok(template) = Template::parse(SOURCE) else { return };
    for turns in [4, 100] {
        let context = context(turns);
        criterion.bench_function(&format!("render {turns} messages"), |bencher| {
            bencher.iter(|| template.render(&context, Limits::default(), Now::from_seconds(0)));
        });
    }
}

criterion_group!(render, benches);
criterion_main!(render);
