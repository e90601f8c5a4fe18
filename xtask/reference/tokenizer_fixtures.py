"""Writes results of Transformers for text: ids, decoded text, streamed chunks and rendered conversations.

    python tokenizer_fixtures.py --out ../../idefics-processor/tests/fixtures/text.json

Run it with the release in requirements.txt. A second run with `--release4`, in an environment with a 4.x release, adds the
results of that release to the same file.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, Idefics2ImageProcessor, Idefics2Processor, TextStreamer

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "checkpoints" / "mistral-tokenizer"
IMAGE_SEQ_LEN = 2
SPECIAL = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "Hello world",
    " Hello world",
    "  Hello  world  ",
    "User:<image>In this image?<end_of_utterance>\nAssistant:",
    "User:<image> In this image?<end_of_utterance>\nAssistant:",
    "User: What’s the difference between these two images?<image><image><end_of_utterance>\nAssistant:",
    "User:<image>What do we see in this image?<end_of_utterance>\nAssistant: In this image we can see two cats on the nets."
    "<end_of_utterance>\nUser:<image>And how about this image?<end_of_utterance>\nAssistant:",
    "<image>",
    "<image><image><image>",
    "<image> <image>",
    "<image>\n<image>",
    "text<image>text",
    "text <image> text",
    "<image><b>bold</b>",
    "<image><end_of_utterance>x",
    "<image>\u001cfile separator",
    "<image>\u00a0no-break space",
    "<image>\u200bzero width",
    "<image>▁marked",
    "<image>日本語",
    "<fake_token_around_image>alone",
    "<fake_token_around_image><fake_token_around_image><fake_token_around_image>three",
    "<fake_token_around_image> <fake_token_around_image>",
    "<end_of_utterance>after<end_of_utterance> spaced <end_of_utterance>\n<end_of_utterance>",
    "<s>doubled start</s>end</s></s><unk>unknown",
    "</s",
    "<ima ge>",
    "<IMAGE> < image > <images> <image",
    "▁",
    "▁▁ ▁",
    "a▁b ▁c",
    "tabs\tand\r\nline\nbreaks\n\n\n",
    "trailing newline\n",
    "Ünïcödé façade naïve œuvre ß",
    "日本語 中文 한국어 ภาษาไทย हिन्दी العربية עברית",
    "👩‍👩‍👧 🏳️‍🌈 😀😀😀",
    "e\u0301 versus \u00e9",
    "\u0000 zero \u0001\u001f\u007f",
    "\u202e right to left \ufeff",
    "\ud7ff\ue000\ufdd0\ufffd\U0010ffff",
    "1234567890 3.14159 1,000,000 $5.00 50%",
    "def f(x):\n        return x ** 2  # code",
    "https://example.org/a?b=c&d=e#f",
    "CamelCaseAndSNAKE_case and-kebab-case",
    "!!!??? ... --- ''' \"\"\"",
    "(a[b{c<d>e}f]g)",
    "<0x0A> <0xFF> [INST] [/INST] <|im_start|>",
    "Assistant: User: System:",
    "a" * 70,
    "  " * 20,
    "\n" * 9,
    "ab " * 25,
    "I can't won't shouldn't've",
    "x<end_of_utterance>\n\n<end_of_utterance> \n",
]

CONVERSATIONS = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do we see in this image?"}]}],
    [{"role": "user", "content": [{"type": "text", "text": "Compare:"}, {"type": "image"}, {"type": "image"}]}],
    [
        {"role": "system", "content": [{"type": "text", "text": "You are terse."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " leading space, a < b > c\n"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Zwei Katzen.\n\nEnde"}]},
        {"role": "user", "content": [{"type": "text", "text": "And\there?"}, {"type": "image"}]},
    ],
    [{"role": "USER", "content": [{"type": "text", "text": "日本語 <b>x</b> </div> <"}]}],
    [{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "image"}]}],
]

VARIANTS: dict[str, dict[str, Any]] = {
    "legacy": {},
    "legacy false": {"legacy": False},
    "legacy absent": {"legacy": None},
    "no prefix space": {"add_prefix_space": False},
    "fast class": {"tokenizer_class": "LlamaTokenizerFast"},
    "as it is": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "no class": {"tokenizer_class": None},
    "no added tokens": {"added_tokens_decoder": None},
    "splitting": {},
}


def random_texts(count: int) -> list[str]:
    """Random strings of pieces with all kinds of borders between them; the same in every run."""
    rng = random.Random(5)
    pieces = [*SPECIAL, "<image>", "</s>", "<s>", "<unk>", " ", "  ", "\n", "a", "The", "▁", "<", ">", ".", "é", "語", "🐈", "\t", "it's", "9"]
    return ["".join(rng.choices(pieces, k=rng.randint(1, 9))) for _ in range(count)]


class Chunks(TextStreamer):
    """Collects the text that a `TextStreamer` would print."""

    def __init__(self, tokenizer: Any, **decode: Any) -> None:
        super().__init__(tokenizer, **decode)
        self.chunks: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.chunks.append(text)


class Ids(list):
    """The part of a tensor's interface that a streamer uses."""

    shape = (1,)

    def tolist(self) -> list[int]:
        return list(self)


def processor(folder: Path, change: dict[str, Any], splitting: bool) -> Any:
    """A processor with the real vocabulary and some keys of `tokenizer_config.json` changed or removed."""
    config = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())
    config |= change
    config = {key: value for key, value in config.items() if value is not None}
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json"):
        shutil.copy(CHECKPOINT / name, folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    template = json.loads((CHECKPOINT / "chat_template.json").read_text())["chat_template"]
    return Idefics2Processor(
        Idefics2ImageProcessor(do_image_splitting=splitting),
        AutoTokenizer.from_pretrained(folder),
        image_seq_len=IMAGE_SEQ_LEN,
        chat_template=template,
    )


def of_variant(name: str, texts: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        built = processor(Path(folder), VARIANTS[name], name == "splitting")
        ids = [built(text=[text]).input_ids[0] for text in texts]
        return {
            "change": VARIANTS[name],
            "do_image_splitting": name == "splitting",
            "ids": ids,
            "decoded": [built.tokenizer.decode(row) for row in ids],
            "skipped": [built.tokenizer.decode(row, skip_special_tokens=True) for row in ids],
        }


def streams(texts: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = processor(Path(folder), {}, False).tokenizer
    rng = random.Random(6)
    sequences = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    # Id sequences that no text produces: incomplete byte pieces, special tokens, random ids.
    sequences += [[rng.randrange(3, 259) for _ in range(12)] for _ in range(8)]
    sequences += [[rng.choice([rng.randrange(32003), rng.randrange(259)]) for _ in range(20)] for _ in range(8)]
    rows = []
    for index, ids in enumerate(sequences):
        skip = index % 2 == 0
        streamer = Chunks(tokenizer, skip_special_tokens=skip)
        for token in ids:
            streamer.put(Ids([token]))
        streamer.end()
        rows.append({"ids": ids, "skip_special_tokens": skip, "chunks": streamer.chunks})
    return rows


def conversations() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        built = processor(Path(folder), {}, False)
    rows = []
    for index, messages in enumerate(CONVERSATIONS):
        prompt = index % 2 == 0
        text = built.apply_chat_template(messages, add_generation_prompt=prompt)
        ids = built(text=[text]).input_ids[0]
        rows.append({"messages": messages, "add_generation_prompt": prompt, "text": text, "ids": ids})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--release4", action="store_true")
    arguments = parser.parse_args()
    texts = TEXTS + random_texts(60)
    if arguments.release4:
        assert transformers.__version__.startswith("4."), transformers.__version__
        fixture = json.loads(arguments.out.read_text(encoding="utf-8"))
        fixture["release4"] = {"transformers": transformers.__version__}
        fixture["release4"] |= {name: of_variant(name, texts) for name in ("legacy", "as it is", "splitting")}
    else:
        fixture = {
            "transformers": transformers.__version__,
            "image_seq_len": IMAGE_SEQ_LEN,
            "texts": texts,
            "variants": {name: of_variant(name, texts) for name in VARIANTS},
            "streams": streams([text for text in texts if "<image>" not in text]),
            "conversations": conversations(),
        }
        same = fixture["variants"]["legacy"]
        for name, variant in fixture["variants"].items():
            # Most variants agree; storing them once keeps the file small.
            for key in ("ids", "decoded", "skipped"):
                if name != "legacy" and variant[key] == same[key]:
                    variant[key] = "as legacy"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(fixture, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
