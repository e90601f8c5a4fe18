"""Definitions of the committed cases: checkpoints, samples and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from checkpoints import VOCABULARY

Row = dict[str, Any]
Size = tuple[int, int]

IMAGE_IDS = [[VOCABULARY.id("<fake_token_around_image>")], [VOCABULARY.id("<image>")]]
END_OF_UTTERANCE = VOCABULARY.id("<end_of_utterance>")
OBSERVED = -1  # placeholder for an eos id that the reference generates, so that a row stops early
OBSERVED_TOO = -2  # placeholder for a second eos id that the reference generates
STRICT = {"*": 1e-4, "loss": 1e-5, "processor.pixel_values": 1e-6}
TRAINING = {**STRICT, "train.losses": 1e-3, "train.grad_norms": 1e-2, "train.lrs": 1e-8}

QUESTIONS = [
    "What is this?",
    "Describe the picture.",
    "How many are there?",
    "Is it the same  one?",
    "3.14 + 2,5 = ?",
    "Où est-ce?",
    "- one\n- two",
    "这 😀",
]


@dataclass(frozen=True)
class Train:
    """Settings of a training case: AdamW on one batch, with all parameters in one group."""

    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    schedule: str = "constant"  # or "linear" or "cosine"
    warmup_steps: int = 0
    steps: int = 20
    labels: str = "transformers5"  # image tokens count in the loss; with "ignore_image_tokens" they do not
    frozen: tuple[str, ...] = ()  # name prefixes of tensors that are not trained


@dataclass(frozen=True)
class Case:
    """One case folder. `{q}` in a text is replaced by one of `QUESTIONS`, chosen by the seed."""

    about: str
    checkpoint: str
    rows: list[Row]
    pictures: dict[str, Size] = field(default_factory=dict)  # name -> width, height of a drawn image
    photographs: tuple[str, ...] = ()  # names in pictures.RECIPES
    splitting: bool = False
    generate: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: bool = True  # false: only the tensors of the processor
    stages: bool = True  # false: only the results of `generate`, without texts
    train: Train | None = None  # if set, the model tensors are labels, loss and training results only
    pixels: bool = True  # false: omit pixel tensors, for cases about ids
    attentions: bool = False  # store attentions.{i}; they are large
    quantize: str | None = None  # nf4, fp4 or int8, or a key of int4.INT4
    double_quant: bool = False
    on_disk: bool = False  # the checkpoint stores quantised weights; otherwise they are quantised while they load
    alpha: str | None = None
    tolerance: dict[str, float] = field(default_factory=lambda: dict(STRICT))
    exact_sizes: bool = False  # a new seed must not change the image sizes
    end_of_utterance: bool = False  # IDEFICS v1: add <end_of_utterance> between texts
    add_eos: bool = False  # IDEFICS v1: end prompts with </s>
    gradients: bool = False  # IDEFICS v1: the model tensors are labels, loss and gradients only
    note: str | None = None


def row(text: str, *images: str) -> Row:
    """A sample with rendered text that contains one `<image>` for each of `images`."""
    return {"text": text, "images": [f"images/{name}" for name in images]}


def turn(role: str, *items: str) -> dict[str, Any]:
    """A chat message. Items that end in an image suffix are images, others are text."""
    content = [
        {"type": "image", "path": f"images/{item}"}
        if item.endswith((".png", ".jpg"))
        else {"type": "text", "text": item}
        for item in items
    ]
    return {"role": role, "content": content}


def chat(*turns: dict[str, Any]) -> Row:
    """A sample of messages with a generation prompt."""
    return {"messages": list(turns), "add_generation_prompt": True}


def answered(*turns: dict[str, Any]) -> Row:
    """A sample of messages that ends with an answer."""
    return {"messages": list(turns)}


def greedy(tokens: int = 12, **more: Any) -> dict[str, dict[str, Any]]:
    """A `generate` section with one greedy run that never produces image tokens."""
    settings = {"max_new_tokens": tokens, "bad_words_ids": IMAGE_IDS, "eos_token_id": [2, END_OF_UTTERANCE]}
    return {"greedy": {**settings, **more}}


def tall_and_wide(name: str, sizes: list[int], side: int) -> tuple[dict[str, Size], dict[str, Size]]:
    """Two sets of images: one with `sizes` as heights, one with `sizes` as widths; the other side is `side`."""
    names = [f"{name}-{size}.png" for size in sizes]
    tall = {file: (side, size) for file, size in zip(names, sizes)}
    return tall, {file: (height, width) for file, (width, height) in tall.items()}


def photographs(about: str, *names: str, **more: Any) -> Case:
    """A processor-only case: one row with these photographs and the real tokenizer."""
    sample = chat(turn("user", *names, "Compare these photographs."))
    return Case(about, "mistral-tokenizer", [sample], photographs=names, model=False, **more)


def training(
    about: str, checkpoint: str, rows: list[Row], pictures: dict[str, Size], note: str | None = None, **settings: Any
) -> Case:
    """A training case."""
    return Case(about, checkpoint, rows, pictures, train=Train(**settings), tolerance=dict(TRAINING), note=note)


def quantized(checkpoint: str, quantize: str, double_quant: bool = False, on_disk: bool = False) -> Case:
    """A case with quantised linear layers."""
    by = "a checkpoint of bitsandbytes" if on_disk else "linear layers"
    return Case(
        f"{by} as {quantize}{', scales quantised too' if double_quant else ''}; blocks span rows",
        checkpoint,
        [chat(turn("user", "wide.png", "{q}")), row("<image>{q}", "tall.png")],
        {"wide.png": (20, 15), "tall.png": (9, 18)},
        generate=greedy(8),
        quantize=quantize,
        double_quant=double_quant,
        on_disk=on_disk,
    )


def packed(about: str, checkpoint: str, quantize: str) -> Case:
    """A case with a text model that is stored in four bits."""
    rows = [chat(turn("user", "wide.png", "{q}")), row("<image>{q}", "tall.png")]
    pictures = {"wide.png": (20, 15), "tall.png": (9, 18)}
    return Case(about, checkpoint, rows, pictures, generate=greedy(8), quantize=quantize, on_disk=True)


def strings(about: str, checkpoint: str) -> Case:
    """A tokenizer-only case."""
    return Case(about, checkpoint, [row(text) for text in STRINGS], model=False)


def rope_cases() -> dict[str, Case]:
    """A case for each kind of rotary scaling, and long prompts for kinds that depend on the length."""

    def case(kind: str, rows: list[Row], tokens: int) -> Case:
        pictures = {"wide.png": (20, 15), "tall.png": (9, 18)}
        about = f"rotary scaling {kind}, a left-padded batch"
        return Case(about, f"rope-{kind}", rows, pictures, generate=greedy(tokens, eos_token_id=[2]))

    short = [row("<image>What is in this picture?", "wide.png"), row("One, two, three")]
    long = [row("<image>What is this, and what<image> is that? One, two, three, four", "tall.png", "wide.png"), *short]
    cases = {f"rope-{kind}": case(kind, short, 40) for kind in ("linear", "dynamic", "yarn", "llama3", "longrope")}
    return cases | {f"rope-{kind}-long": case(kind, long, 12) for kind in ("dynamic", "longrope")}


FIRST, SECOND, THIRD = (VOCABULARY.id(token) for token in ("▁the", "▁a", "▁in"))
PROCESSORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequence-bias": {"sequence_bias": [[[FIRST], 3.5], [[SECOND, THIRD], 9.0], [[THIRD], -4.0]]},
    "encoder-repetition": {"encoder_repetition_penalty": 1.7},
    "repetition": {"repetition_penalty": 1.6},
    "repetition-reward": {"repetition_penalty": 0.6},
    "no-repeat-2": {"no_repeat_ngram_size": 2},
    "no-repeat-1": {"no_repeat_ngram_size": 1},
    "encoder-no-repeat": {"encoder_no_repeat_ngram_size": 1},
    "min-length": {"min_length": 40},
    "min-new-tokens": {"min_new_tokens": 9},
    "forced-eos": {"forced_eos_token_id": [OBSERVED_TOO]},
    "remove-invalid": {"remove_invalid_values": True, "repetition_penalty": 1.2},
    "decay": {"exponential_decay_length_penalty": [2, 1.6]},
    "suppress": {"suppress_tokens": [OBSERVED]},
    "begin-suppress": {"begin_suppress_tokens": list(range(3, 240))},
    "renormalize": {"renormalize_logits": True, "repetition_penalty": 1.3},
    "all": {
        "sequence_bias": [[[FIRST], 2.5], [[SECOND, THIRD], 5.0]],
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 4,
        "exponential_decay_length_penalty": [6, 1.3],
        "begin_suppress_tokens": [FIRST],
    },
    "max-length": {"max_new_tokens": None, "max_length": 50},
}
FILTERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6, "top_k": 0},
    "top-h": {"top_h": 0.4, "top_k": 0},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.8, "top_k": 0},
    "min-p": {"min_p": 0.15, "top_k": 0},
    "typical": {"typical_p": 0.7, "top_k": 0},
    "epsilon": {"epsilon_cutoff": 0.004, "top_k": 0},
    "eta": {"eta_cutoff": 0.01, "top_k": 0},
    "all": {
        "repetition_penalty": 1.3,
        "temperature": 1.4,
        "top_k": 60,
        "top_p": 0.95,
        "min_p": 0.02,
        "typical_p": 0.95,
        "renormalize_logits": True,
    },
}


def runs(variants: dict[str, dict[str, Any]], **common: Any) -> dict[str, dict[str, Any]]:
    """One run per variant of the common settings; `None` removes a setting."""
    merged = {name: {"bad_words_ids": IMAGE_IDS, **common, **variant} for name, variant in variants.items()}
    return {name: {key: value for key, value in run.items() if value is not None} for name, run in merged.items()}


def beams() -> dict[str, dict[str, Any]]:
    """All combinations of beams, length penalties, `early_stopping` and end tokens, and a few special runs."""
    variants: dict[str, dict[str, Any]] = {
        f"beams{n}-penalty{penalty:g}-{str(stopping).lower()}-eos{len(eos)}": {
            "num_beams": n,
            "length_penalty": penalty,
            "early_stopping": stopping,
            "eos_token_id": eos,
        }
        for n in (2, 3, 4)
        for penalty in (0.0, 1.0, 2.0)
        for stopping in (True, False, "never")
        for eos in ([OBSERVED], [OBSERVED, OBSERVED_TOO])
    }
    variants["three-answers"] = {"num_beams": 4, "num_return_sequences": 3, "eos_token_id": [OBSERVED]}
    variants["processors"] = {"num_beams": 3, **PROCESSORS["all"], "eos_token_id": [OBSERVED]}
    variants["renormalize"] = {"num_beams": 2, **PROCESSORS["renormalize"], "eos_token_id": [OBSERVED]}
    return runs(variants, max_new_tokens=9)


MIXED = [
    row("User:<image>{q}<end_of_utterance>\nAssistant:", "small.png"),
    row("User: {q}<end_of_utterance>\nAssistant:"),
]


ALPHA = ("rgba.png", "grey-alpha.png", "palette-alpha.png", "palette-key.png", "grey-key.png", "colour-key.png")
STRINGS = [
    "User: What’s the difference between a cat and a dog?<end_of_utterance>\nAssistant:",
    " leading,  double and trailing spaces  ",
    "one\n\ttab\r\ntwo\u00a0and a no-break space",
    "Ünïcödé, 日本語, العربية, हिन्दी, 👩‍👩‍👧 and \u0000 a zero byte",
    "def f(x):\n        return x ** 2  # code",
    "1234567890 3.14159 1,000,000",
    "<end_of_utterance>after<end_of_utterance> spaced <end_of_utterance>\n<end_of_utterance><s>in the text</s> <unk>",
    "<not a token> < image > <IMAGE> </s",
    "▁already▁marked",
    "Doppelgänger Straße naïve façade œuvre",
    "",
    " ",
]
CLOSE = [
    "<image>word",
    "<image> word",
    "<image>\nword",
    "<image><b>",
    "<image>,",
    "<image>é",
    "a<image>b<image><image>c",
    "<image><end_of_utterance>\n<image>",
    "<fake_token_around_image>x<image>",
]


# 25, 49, 50 and 55 are the patch counts for which the position buckets differ from integer division on the real grid.
GRID = [2 * count for count in (1, 2, 3, 24, 25, 26, 48, 49, 50, 55, 58, 69, 70)]
GRID_TALL, GRID_WIDE = tall_and_wide("n", GRID, 3)


def grid_rows(pictures: dict[str, Size]) -> list[Row]:
    return [row("<image>" * len(pictures) + "{q}", *pictures)]


CASES: dict[str, Case] = {
    "two-images": Case(
        "a left-padded batch with 2, 1 and 0 images: text with <image>, messages, text alone",
        "odd-heads",
        [
            row("User:<image>{q}<image> and this?<end_of_utterance>\nAssistant:", "wide.png", "tall.png"),
            chat(turn("user", "{q}", "small.png")),
            row("User: {q}<end_of_utterance>\nAssistant:"),
        ],
        {"wide.png": (90, 31), "tall.png": (17, 52), "small.png": (9, 13)},
        generate=greedy(12),
    ),
    "head-dim": Case(
        "head_dim apart from hidden / heads; a chat of two turns beside adjacent images",
        "wide-heads",
        [
            chat(turn("user", "one.png", "{q}"), turn("assistant", "Two."), turn("user", "two.png", "{q}")),
            row("<image><image> {q}", "three.png", "one.png"),
        ],
        {"one.png": (40, 30), "two.png": (31, 33), "three.png": (200, 40)},
        generate=greedy(10),
    ),
    "sliding-window": Case(
        "a window of 7 keys, shorter than every prompt; one row stops at an eos id and is filled with pads",
        "sliding-sharded",
        [
            row("User:<image>{q}<end_of_utterance>\nAssistant:", "square.png"),
            row("<image> {q}\n<image>{q}", "square.png", "strip.png"),
            row("{q}"),
        ],
        {"square.png": (33, 33), "strip.png": (61, 18)},
        generate=greedy(12, eos_token_id=[OBSERVED, 2]),
        attentions=True,
    ),
    "splitting": Case(
        "image splitting: five sub-images an image, settings of generation_config.json",
        "tiny-idefics2",
        [chat(turn("user", "photo.png", "{q}"))],
        {"photo.png": (45, 33)},
        splitting=True,
        generate={"greedy": {"max_new_tokens": 8}},
    ),
    "max-length": Case(
        "one image in one row, no padding; the length limit counts the prompt",
        "tiny-idefics2",
        [chat(turn("user", "photo.png", "{q}"))],
        {"photo.png": (70, 30)},
        generate={"greedy": {"max_length": 48}},
    ),
    "text-only": Case(
        "no image in the whole batch: the vision side is never run",
        "odd-heads",
        [row("{q}"), chat(turn("system", "Be brief."), turn("user", "{q}"))],
        generate=greedy(10),
    ),
    "quantized-int8": quantized("small", "int8"),
    "quantized-nf4": quantized("small", "nf4"),
    "quantized-nf4-double": quantized("small-wide-heads", "nf4", double_quant=True),
    "quantized-fp4": quantized("small-wide-heads", "fp4"),
    "quantized-on-disk": quantized("small", "nf4", double_quant=True, on_disk=True),
    "quantized-gptq-act-order": packed(
        "GPTQ with desc_act: inputs sorted by group; zero points stored minus one", "tiny-idefics2", "gptq-act-order"
    ),
    "generate-processors": Case(
        "greedy search with each processor, a padded batch with one and no image",
        "odd-heads",
        MIXED,
        {"small.png": (9, 13)},
        generate=runs(PROCESSORS, max_new_tokens=12, eos_token_id=[OBSERVED]),
        stages=False,
    ),
    "generate-window": Case(
        "greedy search and beams with a window of 7 keys, shorter than every prompt",
        "sliding-sharded",
        MIXED,
        {"small.png": (9, 13)},
        generate=runs(
            {"greedy": {}, "beams": {"num_beams": 3}, "answers": {"num_beams": 2, "num_return_sequences": 2}},
            max_new_tokens=12,
            eos_token_id=[OBSERVED],
        ),
        stages=False,
    ),
    "generate-beams": Case(
        "2 to 4 beams, length penalties 0, 1 and 2, the three ways to stop, one and two end tokens",
        "odd-heads",
        MIXED,
        {"small.png": (9, 13)},
        generate=beams(),
        stages=False,
    ),
    "generate-filters": Case(
        "the scores that each filter of a draw leaves of the first token",
        "odd-heads",
        MIXED,
        {"small.png": (9, 13)},
        generate=runs(FILTERS, max_new_tokens=1, do_sample=True, eos_token_id=[2]),
        stages=False,
        tolerance={**STRICT, **{f"generate.{name}.filtered_scores": 1e-5 for name in FILTERS}},
    ),
    **rope_cases(),
    "base": Case(
        "a base checkpoint, which lacks <end_of_utterance>: text with pictures, text alone",
        "base",
        [row("<image>In this picture, {q}", "wide.png"), row("The capital of"), row("<image><image>", "wide.png", "tall.png")],
        {"wide.png": (20, 15), "tall.png": (9, 18)},
        generate={"greedy": {"max_new_tokens": 10}, "beams": {"max_new_tokens": 6, "num_beams": 2}},
    ),
    "grid-980-tall": Case(
        "heights of 350 and 210 pixels on the real grid, bfloat16 weights computed in float32",
        "grid-980",
        [row("<image>{q}<image>", "h210.png", "h350.png")],
        {"h350.png": (14, 350), "h210.png": (15, 210)},
        generate=greedy(6),
        exact_sizes=True,
    ),
    "grid-980-wide": Case(
        "a width of 700 pixels on the real grid, bfloat16 weights computed in float32",
        "grid-980",
        [row("<image> {q}", "w700.png")],
        {"w700.png": (700, 14)},
        generate=greedy(6),
        exact_sizes=True,
    ),
    "grid-70-tall": Case(
        "patch counts from 1 to 70 down a 70-position grid",
        "grid-70",
        grid_rows(GRID_TALL),
        GRID_TALL,
        exact_sizes=True,
    ),
    "grid-70-wide": Case(
        "patch counts from 1 to 70 across a 70-position grid",
        "grid-70",
        grid_rows(GRID_WIDE),
        GRID_WIDE,
        exact_sizes=True,
    ),
    "photo-png": photographs("photographs of two shapes as PNG", "cat.png", "astronaut.png"),
    "photo-jpeg": photographs(
        "JPEG: 4:2:0, 4:4:4 progressive, turned by EXIF, grey",
        *("cup.jpg", "cup-444.jpg", "cup-turned.jpg", "grey.jpg"),
    ),
    "photo-splitting": photographs("image splitting with 64 tokens a sub-image", "small.png", splitting=True),
    "photo-turned": photographs(
        "EXIF orientations 2, 5, 6 and 8, in PNG files so that the pixels are exact",
        *(f"turned-{value}.png" for value in (2, 5, 6, 8)),
    ),
    "photo-modes": photographs("palette, grey and bilevel PNG", "palette.png", "grey.png", "bilevel.png"),
    "photo-sixteen-bit": photographs(
        "a grey PNG of 16 bits",
        "grey-16.png",
        note="Pillow clips 16-bit grey at 255 when it converts to RGB, and so does the reference.",
    ),
    "photo-alpha-drop": photographs(
        "six kinds of transparency in files, opened as the reference's loader does",
        *ALPHA,
        alpha="drop",
        note="Alpha bands and palettes with partial alpha are dropped; a single clear colour becomes white.",
    ),
    "photo-alpha-white": photographs(
        "the same pictures handed to the image processor itself, which lays them over white",
        *ALPHA,
        alpha="white",
    ),
    "text-real": strings("the whole real vocabulary, LlamaTokenizer with legacy = true", "mistral-tokenizer"),
    "text-as-is": strings("the same strings through tokenizer.json as it is", "odd-heads"),
    "text-legacy-false": strings("the same strings, LlamaTokenizer with legacy = false", "wide-heads"),
    "text-resaved": strings("the same strings, tokenizer files as the reference saves them", "sliding-sharded"),
    "text-byte-level": strings("the same strings through a byte-level BPE that adds no start token", "byte-level"),
    "image-neighbours": Case(
        "what may stand right after <image>, LlamaTokenizer with legacy = true",
        "mistral-tokenizer",
        [row(text, *["dot.png"] * text.count("<image>")) for text in CLOSE],
        {"dot.png": (6, 5)},
        model=False,
        pixels=False,
    ),
    "image-neighbours-as-is": Case(
        "what may stand right after <image>, tokenizer.json as it is",
        "odd-heads",
        [row(text, *["dot.png"] * text.count("<image>")) for text in CLOSE],
        {"dot.png": (6, 5)},
        model=False,
        pixels=False,
    ),
    "image-neighbours-byte-level": Case(
        "what may stand right after <image>, byte-level BPE",
        "byte-level",
        [row(text, *["dot.png"] * text.count("<image>")) for text in CLOSE],
        {"dot.png": (6, 5)},
        model=False,
        pixels=False,
    ),
    "train-whole": training(
        "everything trained: rows with 2, 1 and 0 images; no clipping; cosine after a warm-up",
        "small",
        [
            answered(turn("user", "wide.png", "tall.png", "{q}"), turn("assistant", "Two.")),
            answered(turn("user", "wide.png", "{q}"), turn("assistant", "A dot.")),
            row("User: {q}<end_of_utterance>\nAssistant: No."),
        ],
        {"wide.png": (13, 8), "tall.png": (9, 12)},
        lr=2e-3,
        max_grad_norm=None,
        schedule="cosine",
        warmup_steps=3,
    ),
    "train-frozen": training(
        "the vision tower frozen; rows with 2, 0 and 1 images; clipping at 0.5; constant after a warm-up",
        "small-wide-heads",
        [
            row("<image>{q}<image> {q}", "square.png", "wide.png"),
            row("{q}"),
            answered(turn("user", "wide.png", "{q}"), turn("assistant", "Three.")),
        ],
        {"square.png": (8, 9), "wide.png": (14, 6)},
        lr=5e-3,
        weight_decay=0.1,
        max_grad_norm=0.5,
        warmup_steps=2,
        frozen=("model.vision_model.",),
    ),
    "train-connector": training(
        "only the connector trained, below a frozen text model; adjacent images; no clipping; constant",
        "small",
        [
            answered(turn("user", "small.png", "{q}"), turn("assistant", "One.")),
            row("<image><image>{q}", "wide.png", "small.png"),
        ],
        {"wide.png": (14, 9), "small.png": (8, 8)},
        lr=2e-3,
        weight_decay=0.0,
        max_grad_norm=None,
        labels="ignore_image_tokens",
        frozen=("model.vision_model.", "model.text_model.", "lm_head."),
    ),
    "train-tied": training(
        "tied embeddings, all but the position embedding trained; clipping at 1; linear",
        "grid-70",
        [
            row("<image>{q}<image> {q}", "tall.png", "wide.png"),
            row("{q}"),
            row("{q}<image>", "wide.png"),
        ],
        {"tall.png": (4, 9), "wide.png": (8, 6)},
        lr=5e-3,
        betas=(0.9, 0.95),
        schedule="linear",
        labels="ignore_image_tokens",
        frozen=("model.vision_model.embeddings.position_embedding.",),
        note="The gradient of the 4900 positions, most of it zero, would be larger than all others together.",
    ),
}
