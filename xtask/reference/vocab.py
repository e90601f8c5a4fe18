"""Tokenizer files: the real Mistral v1 vocabulary, complete or reduced to a few hundred entries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mistral_common
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import generate_merges

SPECIAL = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{message['role'].capitalize()}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
BYTE_LEVEL_SIZE = 480
BYTE_LEVEL_NAMES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
N_BYTE_PIECES = 259  # <unk>, <s>, </s> and the 256 byte pieces


@dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece BPE vocabulary in the form of `tokenizer.json`."""

    ids: dict[str, int]
    merges: list[str]

    def id(self, piece: str) -> int:
        """The id of a piece or of one of the added special tokens, which follow the pieces."""
        return len(self.ids) + SPECIAL.index(piece) if piece in SPECIAL else self.ids[piece]

    @property
    def size(self) -> int:
        return len(self.ids) + len(SPECIAL)


def mistral(pieces: int | None = None) -> Vocabulary:
    """The Mistral v1 vocabulary; with `pieces`, only that many multi-character pieces, renumbered in order."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((Path(mistral_common.__file__).parent / "data/tokenizer.model.v1").read_bytes())
    scores = {piece.piece: piece.score for piece in model.pieces}
    kept = list(scores)
    if pieces is not None:
        head = kept[: N_BYTE_PIECES + pieces]
        singles = {char for piece in head[N_BYTE_PIECES:] for char in piece} | {chr(code) for code in range(33, 127)}
        kept = head + [piece for piece in kept if piece in singles and piece not in head]
    ids = {piece: index for index, piece in enumerate(kept)}
    merges = generate_merges(ids, {piece: scores[piece] for piece in kept})
    return Vocabulary(ids, [f"{left} {right}" for left, right in merges])


def tokenizer_json(vocabulary: Vocabulary, special: list[str]) -> dict[str, Any]:
    """`tokenizer.json` as in the Idefics repositories: with the legacy normaliser and without a pre-tokenizer."""
    names = ["<unk>", "<s>", "</s>", *special]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    sequence = [{"Sequence": {"id": name, "type_id": int(name == "B")}} for name in "AB"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary.id(name), "content": name, **flags} for name in names],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, sequence[0]],
            "pair": [bos, sequence[0], {"SpecialToken": {"id": "<s>", "type_id": 1}}, sequence[1]],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary.ids,
            "merges": vocabulary.merges,
        },
    }


def write_tokenizer(
    folder: Path,
    vocabulary: Vocabulary,
    tokenizer_class: str,
    legacy: bool,
    special: list[str] = SPECIAL,
    processor_class: str = "Idefics2Processor",
) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
    files = tokenizer_json(vocabulary, special)
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in files["added_tokens"]
    }
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": special,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": legacy,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<unk>",
        "padding_side": "left",
        "processor_class": processor_class,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": tokenizer_class,
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens")
    write_json(folder / "tokenizer.json", files, compact=True)
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {name: config[name] for name in names})


def byte_level_json() -> dict[str, Any]:
    """A byte-level BPE in the style of GPT-2, trained on pieces of the Mistral vocabulary."""
    trained = Tokenizer(models.BPE())
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_LEVEL_SIZE - len(SPECIAL),
        special_tokens=BYTE_LEVEL_NAMES,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [piece.replace("▁", " ") for piece in list(mistral().ids)[N_BYTE_PIECES : N_BYTE_PIECES + 3000]]
    trained.train_from_iterator(["".join(words[start : start + 20]) for start in range(0, len(words), 20)], trainer)
    trained.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    return json.loads(trained.to_str())


def write_byte_level(folder: Path) -> None:
    """Write the tokenizer files of a folder with a byte-level BPE."""
    files = byte_level_json()
    end, start, pad = BYTE_LEVEL_NAMES
    config = {
        "add_prefix_space": False,
        "additional_special_tokens": SPECIAL,
        "bos_token": start,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[2],
        "model_max_length": 8192,
        "pad_token": pad,
        "padding_side": "left",
        "processor_class": "Idefics2Processor",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": end,
    }
    write_json(folder / "tokenizer.json", files, compact=True)
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, value: Any, compact: bool = False) -> None:
    """Write JSON with a final line break; `compact` omits all optional spaces."""
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    path.write_text(json.dumps(value, ensure_ascii=False, **layout) + "\n", encoding="utf-8")
