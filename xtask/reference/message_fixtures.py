"""Writes the results of Transformers for messages: the text of the chat template, and the ids of the whole prompt.

    python message_fixtures.py

Versions: see requirements.txt. Output: idefics-processor/tests/fixtures/messages.json.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.modules["torchvision"] = None  # force the image processor that uses Pillow

import transformers
from PIL import Image
from transformers import AutoProcessor

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "checkpoints" / "tiny-idefics2"
OUT = HERE.parents[1] / "idefics-processor" / "tests" / "fixtures" / "messages.json"

PARTS = (
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %} {{ m.content }}{% else %}"
    "{% for p in m.content or [] %}{% if p.type == 'image' %}<image>{% elif p.type == 'text' %} {{ p.text }}"
    "{% else %} ({{ p.type }} {{ p.value }}){% endif %}{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEMPLATES = {
    "parts": PARTS,
    "start token": "{{ bos_token }}" + PARTS,
    "json": "{{ messages | tojson }}",
    "names": "{% for m in messages %}{{ m.role }}{% if m.name is defined %} ({{ m.name }}){% endif %}: {{ m.content }}\n{% endfor %}",
    "keys": "{% for m in messages %}{% for k in m %}{{ k }} {% endfor %}/{% for p in m.content %}{% for k in p %}{{ k }} {% endfor %}{% endfor %};{% endfor %}",
    "calls": (
        "{% for m in messages %}{{ m.role }}:{% if m.content %} {{ m.content }}{% endif %}"
        "{% for c in m.tool_calls or [] %} {{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}\n{% endfor %}"
    ),
    "content is": (
        "{% for m in messages %}{{ m.content is defined }} {{ m.content is none }} {{ m.content is string }} "
        "{{ 'content' in m }}\n{% endfor %}"
    ),
    "variables": (
        "{{ tools is defined }} {{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} {{ other is defined }} "
        "{{ bos_token }} {{ eos_token }} {{ unk_token is defined }} {{ sep_token is defined }} {{ image_token is defined }}"
    ),
    "tools": (
        "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
        "{% for d in documents or [] %}[{{ d.title }}] {{ d.text }}\n{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}<no thinking>{% endif %}{{ messages[0].content }}"
    ),
    "reasoning": (
        "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }}|{{ m | tojson }}\n{% endfor %}"
    ),
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"q": "it", "n": 2, "deep": [True, None, 1.5]}}}
IMAGE = {"type": "image", "path": "dot.png"}
TEXT = {"type": "text", "text": "What is it?"}

SAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("parts", {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [IMAGE, TEXT]}]}),
    ("parts", {"messages": [{"role": "user", "content": "One  string "}], "add_generation_prompt": True}),
    ("parts", {"messages": [{"role": "user", "content": [TEXT, {"type": "note", "value": 3}, IMAGE, IMAGE]}], "add_generation_prompt": True}),
    ("parts", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "dot.png", "detail": "low"}}, TEXT]}]}),
    ("parts", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "dot.png"}, {"type": "image", "url": "dot.png"}]}]}),
    ("parts", {"messages": [{"role": "user", "content": []}, {"role": "assistant", "content": " "}]}),
    ("start token", {"messages": [{"role": "user", "content": [IMAGE, TEXT]}], "add_generation_prompt": True}),
    ("start token", {"messages": [{"role": "user", "content": "Hello"}]}),
    ("json", {"messages": [{"role": "user", "name": "Ada", "content": [{"text": "first", "type": "text", "lang": "en"}, IMAGE]}]}),
    ("json", {"messages": [{"content": "é < ü", "role": "user", "n": 1, "x": None, "deep": {"a": [None, {}]}}]}),
    ("json", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "dot.png"}, "lang": "en"}]}]}),
    ("names", {"messages": [{"role": "user", "name": "Ada", "content": "Hi."}, {"role": "assistant", "content": "Hi."}]}),
    ("keys", {"messages": [{"role": "user", "content": [{"type": "image", "path": "dot.png", "alt": None}, TEXT]}]}),
    ("calls", {"messages": [{"role": "user", "content": "Look."}, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "name": "look", "content": "42"}]}),
    ("calls", {"messages": [{"role": "assistant", "tool_calls": [CALL, CALL]}, {"role": "assistant", "content": "x", "tool_calls": None}]}),
    ("content is", {"messages": [{"role": "a", "content": None}, {"role": "b"}, {"role": "c", "content": ""}, {"role": "d", "content": []}]}),
    ("variables", {"messages": [{"role": "user", "content": "x"}]}),
    ("variables", {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True, "chat_template_kwargs": {"other": 1, "eos_token": "END"}}),
    ("tools", {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL], "documents": [{"title": "A", "text": "b"}]}),
    ("tools", {"messages": [{"role": "user", "content": "x"}], "tools": [], "chat_template_kwargs": {"enable_thinking": False}}),
    ("reasoning", {"messages": [{"role": "assistant", "content": "x", "reasoning": "because"}, {"role": "assistant", "content": "y", "thinking": "so", "reasoning_content": "thus"}]}),
]


def main() -> None:
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Image.new("RGB", (8, 6), (10, 20, 30)).save("dot.png")
        for name, sample in SAMPLES:
            options = {key: sample[key] for key in ("add_generation_prompt", "tools", "documents") if key in sample}
            options |= sample.get("chat_template_kwargs", {})
            # a new copy for each call: the reference modifies its messages
            messages = lambda: json.loads(json.dumps(sample["messages"]))
            template = TEMPLATES[name]
            text = processor.apply_chat_template(messages(), chat_template=template, tokenize=False, **options)
            ids = None  # with `tokenize=True`, the reference turns empty or missing content into an empty list
            if name in ("parts", "start token", "names"):
                ids = processor.apply_chat_template(messages(), chat_template=template, tokenize=True, **options)[0]
            cases.append({"template": template, "sample": sample, "text": text, "ids": ids})
    fixture = {"transformers": transformers.__version__, "image_seq_len": processor.image_seq_len, "cases": cases}
    OUT.write_text(json.dumps(fixture, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
