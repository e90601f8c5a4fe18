"""Idefics3 and SmolVLM: tiny checkpoints, cases, and how the reference is run for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import smolvlm_video
import torch
from cases import OBSERVED, STRICT, TRAINING, Case, Row, answered, chat, row, training, turn
from checkpoints import derived_seed, randomise
from pictures import open_upright
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from vocab import N_BYTE_PIECES, mistral, write_json

Tensors = dict[str, torch.Tensor]

FAKE, IMAGE, END = SPECIAL = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
GRID = ["<global-img>", *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7))]
LEARNED = 400  # entries of the byte-level BPE, including the three tokens of `names`
LLAMA_NAMES = ["<|end_of_text|>", "<|begin_of_text|>", "<|finetune_right_pad_id|>"]
SMOL_NAMES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IGNORED = -100


@dataclass(frozen=True)
class Checkpoint3:
    """Properties of one checkpoint folder of this family."""

    about: str
    model_type: str
    text: dict[str, Any]
    vision: dict[str, Any]
    scale: int
    tile: int  # side of a tile in pixels
    longest: int  # longest edge of a resized picture
    top: dict[str, Any] = field(default_factory=dict)
    grid_tokens: bool = True  # the positions of tiles (row, column) are tokens; otherwise plain text
    adds_bos: bool = False  # the tokenizer adds a start token, as in Llama 3
    video: dict[str, Any] | None = None  # `video_processor` keys besides those of images; None: no section
    nested: bool = False  # image settings are in processor_config.json, as release 5 writes them
    generation: dict[str, Any] | None = None
    dtype: torch.dtype = torch.float32
    preprocessor: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of the end token, the start token and the padding token."""
        return LLAMA_NAMES if self.adds_bos else SMOL_NAMES

    @property
    def added(self) -> list[str]:
        """The added tokens in the order of their ids."""
        return [*(GRID if self.grid_tokens else []), *SPECIAL]

    def id(self, token: str) -> int:
        """The id of an added or a named token."""
        return self.names.index(token) if token in self.names else LEARNED + self.added.index(token)

    @property
    def vectors(self) -> int:
        """Image tokens per tile."""
        return (self.vision["image_size"] // self.vision["patch_size"] // self.scale) ** 2


def text(hidden: int, heads: int, kv_heads: int, layers: int, inter: int, **more: Any) -> dict[str, Any]:
    """A Llama `text_config` of the given shape."""
    shape = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    rest = {"num_hidden_layers": layers, "intermediate_size": inter, "max_position_embeddings": 2048}
    return {"model_type": "llama", **shape, **rest, **more}


def vision(image: int, patch: int, hidden: int, heads: int, layers: int, inter: int) -> dict[str, Any]:
    """A `vision_config` of the given shape."""
    shape = {"image_size": image, "patch_size": patch, "hidden_size": hidden, "num_attention_heads": heads}
    return {**shape, "num_hidden_layers": layers, "intermediate_size": inter}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CHECKPOINTS3: dict[str, Checkpoint3] = {
    "tiny-idefics3": Checkpoint3(
        "the shape of the public 8b folder: rows and columns are plain text, a start token, llama3 rotary scaling",
        "idefics3",
        text(32, 4, 2, 2, 48, rms_norm_eps=1e-5, rope_theta=5000.0, rope_scaling=LLAMA3),
        vision(24, 4, 20, 2, 2, 28),
        scale=2,
        tile=24,
        longest=48,
        grid_tokens=False,
        adds_bos=True,
        generation={"bos_token_id": 1, "eos_token_id": [0, LEARNED + 2], "pad_token_id": 2},
    ),
    "tiny-smolvlm": Checkpoint3(
        "the shape of the public 256m folder: tokens for rows and columns, three heads, one key/value head, head_dim apart",
        "idefics3",
        text(24, 3, 1, 3, 36, head_dim=12, rope_theta=100000.0),
        vision(32, 4, 18, 3, 2, 30),
        scale=4,
        tile=32,
        longest=64,
        generation={"bos_token_id": 1, "eos_token_id": LEARNED + len(GRID) + 2, "pad_token_id": 2},
    ),
    "tiny-smolvlm2": Checkpoint3(
        "SmolVLM2: its own model_type, tied embeddings, bfloat16, nested processor files, a longest edge that is no multiple",
        "smolvlm",
        text(28, 2, 2, 2, 40, rms_norm_eps=1e-5, rope_theta=130000.0),
        vision(18, 3, 16, 2, 1, 24),
        scale=3,
        tile=18,
        longest=41,
        top={"tie_word_embeddings": True},
        nested=True,
        video={"fps": 2, "num_frames": 5},
        dtype=torch.bfloat16,
    ),
}


def config_json(spec: Checkpoint3) -> dict[str, Any]:
    """`config.json` with the keys of the public checkpoints."""
    name = "SmolVLM" if spec.model_type == "smolvlm" else "Idefics3"
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "image_token_id": spec.id(IMAGE),
        "model_type": spec.model_type,
        "scale_factor": spec.scale,
        "text_config": {**spec.text, "vocab_size": LEARNED + len(spec.added), "pad_token_id": 2, "bos_token_id": 1},
        "tie_word_embeddings": False,
        "torch_dtype": str(spec.dtype).removeprefix("torch."),
        "transformers_version": "4.46.0",
        "use_cache": True,
        "vision_config": {"model_type": spec.model_type, **spec.vision},
        **spec.top,
    }


def chat_template(spec: Checkpoint3) -> str:
    """A chat template like those of the public repositories."""
    return (
        f"{spec.names[1]}{{% for message in messages %}}{{{{message['role'] | capitalize}}}}"
        "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )


def write_tokenizer(folder: Path, spec: Checkpoint3) -> None:
    """Write a byte-level BPE, trained here on pieces of the Mistral vocabulary."""
    trained = Tokenizer(models.BPE())
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED,
        special_tokens=spec.names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [piece.replace("▁", " ") for piece in list(mistral().ids)[N_BYTE_PIECES : N_BYTE_PIECES + 3000]]
    trained.train_from_iterator(["".join(words[start : start + 20]) for start in range(0, len(words), 20)], trainer)
    trained.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in spec.added])
    end, start, pad = spec.names
    if spec.adds_bos:
        template = {"single": f"{start} $A", "pair": f"{start} $A {start}:1 $B:1", "special_tokens": [(start, 1)]}
        trained.post_processor = processors.TemplateProcessing(**template)
    config = {
        "add_prefix_space": False,
        "additional_special_tokens": SPECIAL,
        "bos_token": start,
        "clean_up_tokenization_spaces": False,
        "eos_token": end if spec.adds_bos else END,
        "model_max_length": 8192,
        "pad_token": pad,
        "processor_class": "Idefics3Processor",
        "tokenizer_class": "PreTrainedTokenizerFast",  # with GPT2Tokenizer, the reference drops the step that splits digits
        "truncation_side": "left",
        "unk_token": end,
    }
    write_json(folder / "tokenizer.json", json.loads(trained.to_str()), compact=True)
    write_json(folder / "tokenizer_config.json", config)


def write_processor(folder: Path, spec: Checkpoint3) -> None:
    """Write the processor files as in the public repositories."""
    images = {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SmolVLMImageProcessor" if spec.model_type == "smolvlm" else "Idefics3ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": spec.tile},
        "resample": 1,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": spec.longest},
        **spec.preprocessor,
    }
    name = "SmolVLMProcessor" if spec.model_type == "smolvlm" else "Idefics3Processor"
    processor: dict[str, Any] = {"image_seq_len": spec.vectors, "processor_class": name}
    if spec.nested:
        processor["image_processor"] = images
        if spec.video is not None:
            shared = {key: value for key, value in images.items() if key not in ("do_image_splitting", "image_processor_type")}
            own = {"video_processor_type": "SmolVLMVideoProcessor", "do_sample_frames": False, **spec.video}
            processor["video_processor"] = {**shared, **own}
        (folder / "chat_template.jinja").write_text(chat_template(spec), encoding="utf-8")
    else:
        write_json(folder / "preprocessor_config.json", {**images, "processor_class": name})
        write_json(folder / "chat_template.json", {"chat_template": chat_template(spec)})
    write_json(folder / "processor_config.json", processor)


def make_checkpoint3(name: str, seed: int, folder: Path) -> None:
    """Write the checkpoint folder `name` with weights from `seed`."""
    spec = CHECKPOINTS3[name]
    folder.mkdir(parents=True, exist_ok=True)
    raw = config_json(spec)
    is_smol = spec.model_type == "smolvlm"
    config = (SmolVLMConfig if is_smol else Idefics3Config)(**json.loads(json.dumps(raw)))
    model = (SmolVLMForConditionalGeneration if is_smol else Idefics3ForConditionalGeneration)(config)
    randomise(model, derived_seed(seed, "weights", name))
    model.to(spec.dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_json(folder / "config.json", raw)
    if spec.generation is not None:
        write_json(folder / "generation_config.json", spec.generation)
    write_processor(folder, spec)
    write_tokenizer(folder, spec)


def open_processor(checkpoint: Path) -> Idefics3Processor:
    """The processor that uses Pillow. SmolVLM's own class does the same, but needs torchvision for videos."""
    files = json.loads((checkpoint / "processor_config.json").read_text(encoding="utf-8"))
    path = checkpoint / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.exists() else None
    if template is None:
        template = json.loads((checkpoint / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    images = files.get("image_processor") or json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    names = ("do_image_splitting", "image_mean", "image_std", "max_image_size", "resample", "size", "do_resize")
    return Idefics3Processor(
        Idefics3ImageProcessorPil(**{name: images[name] for name in names if name in images}),
        AutoTokenizer.from_pretrained(checkpoint),
        image_seq_len=files["image_seq_len"],
        chat_template=template,
    )


def process(case: Case, samples: list[Row], processor: Idefics3Processor, folder: Path) -> Tensors:
    """Run the processor on the raw samples, with rows padded on the left."""
    if any(smolvlm_video.videos_of(sample) for sample in samples):
        return smolvlm_video.process(samples, processor, Path(processor.tokenizer.name_or_path), folder)
    processor.image_processor.do_image_splitting = case.splitting
    processor.tokenizer.padding_side = "left"
    texts, images = [], []
    for sample in samples:
        if "text" in sample:
            texts.append(sample["text"])
            images.append([open_upright(folder / path) for path in sample["images"]])
            continue
        items = [item for message in sample["messages"] for item in message["content"]]
        images.append([open_upright(folder / item["path"]) for item in items if item["type"] == "image"])
        prompt = sample.get("add_generation_prompt", False)
        rendered = processor.apply_chat_template(sample["messages"], add_generation_prompt=prompt)
        # `apply_chat_template(tokenize=True)` adds no start token to a text that starts with one; a call with text does.
        bos = processor.tokenizer.bos_token
        texts.append(rendered.removeprefix(bos) if processor.tokenizer("").input_ids else rendered)
    found = any(images)
    options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
    inputs = dict(processor(text=texts, images=images if found else None, **options))
    grids: dict[str, list[list[int]]] = {"rows": [], "cols": []}
    if found:
        info = processor.image_processor(images, return_row_col_info=True, return_tensors="np")
        most = max(map(len, images))
        for name, sides in grids.items():
            sides.extend([*row, *[-1] * (most - len(row))] for row in info[name])
        inputs |= {name: torch.tensor(sides) for name, sides in grids.items()}
    return inputs


def load3(checkpoint: Path) -> torch.nn.Module:
    """The model of a checkpoint in float32 with eager attention."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return AutoModelForImageTextToText.from_pretrained(checkpoint, **options).eval()


def model_inputs(inputs: Tensors) -> Tensors:
    """The tensors of the processor that are inputs of the model."""
    return {name: value for name, value in inputs.items() if name not in ("rows", "cols", "frames_indices")}


def forward(model: torch.nn.Module, inputs: Tensors, case: Case) -> Tensors:
    """One forward pass; returns every stage that the case stores."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = ids.masked_fill((mask == 0) | (ids == model.config.image_token_id), IGNORED)
    seen: Tensors = {}
    hooks = [
        model.model.vision_model.register_forward_hook(
            lambda _module, _inputs, output: seen.update({"vision.last_hidden_state": output.last_hidden_state})
        ),
        model.model.connector.register_forward_hook(
            lambda _module, _inputs, output: seen.update({"image_hidden_states": output})
        ),
    ]
    with torch.no_grad():
        out = model(**model_inputs(inputs), labels=labels, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    tensors = {**seen, "logits": out.logits, "labels": labels, "loss": out.loss}
    for name in ("hidden_states", "attentions")[: 1 + case.attentions]:
        tensors |= {f"{name}.{index}": layer for index, layer in enumerate(out[name])}
    return tensors


def settings(checkpoint: str, tokens: int = 12, **more: Any) -> dict[str, Any]:
    """Options of a run that never produces image tokens."""
    spec = CHECKPOINTS3[checkpoint]
    bad = [[spec.id(FAKE)], [spec.id(IMAGE)]]
    return {"max_new_tokens": tokens, "bad_words_ids": bad, "eos_token_id": [0, spec.id(END)], **more}


def runs(checkpoint: str, tokens: int = 12) -> dict[str, dict[str, Any]]:
    """A run with greedy search and one with three beams."""
    return {
        "greedy": settings(checkpoint, tokens),
        "beams": settings(checkpoint, tokens, num_beams=3, length_penalty=0.5),
    }


PICTURES = {"wide.png": (50, 31), "tall.png": (17, 42), "small.png": (9, 13)}
MIXED = [
    chat(turn("user", "wide.png", "What is in this ", "tall.png", "{q}")),
    row("<image> It is", "small.png"),
    row("{q}"),
]


def mixed(about: str, checkpoint: str, rows: list[Row] = MIXED, **more: Any) -> Case:
    """A case with every stage."""
    return Case(about, checkpoint, rows, PICTURES, generate=runs(checkpoint), **more)


def packed(about: str, checkpoint: str, quantize: str) -> Case:
    """A case with a text model that is stored in four bits."""
    rows = [row("<image>{q}", "tall.png"), row("<image>in", "small.png")]
    pictures = {name: PICTURES[name] for name in ("tall.png", "small.png")}
    run = {"greedy": settings(checkpoint, 8)}
    return Case(about, checkpoint, rows, pictures, generate=run, quantize=quantize, on_disk=True)


def frame_names(video: str, count: int) -> list[str]:
    """Names of the frames of a video."""
    return [f"{video}_{index:03}.png" for index in range(count)]


def frames(video: str, count: int) -> list[str]:
    """Paths of the frames of a video."""
    return [f"images/{name}" for name in frame_names(video, count)]


CASES3: dict[str, Case] = {
    "idefics3-split": mixed(
        "rows and columns as plain text, a start token; rows with 2, 1 and 0 pictures", "tiny-idefics3", splitting=True
    ),
    "idefics3-unsplit": mixed("one tile a picture; attention maps", "tiny-idefics3", attentions=True),
    "smolvlm-split": mixed(
        "tokens for rows and columns, head_dim apart; rows with 2, 1 and 0 pictures", "tiny-smolvlm", splitting=True
    ),
    "smolvlm-unsplit": mixed("one tile a picture", "tiny-smolvlm", splitting=False),
    "smolvlm-thin": Case(
        "long thin pictures, a picture of one pixel, and one that is as large as a tile; a row that stops early",
        "tiny-smolvlm",
        [
            row("<image>{q}<image>", "line.png", "pixel.png"),
            answered(turn("user", "{q}"), turn("assistant", "tile.png", "One."), turn("user", "column.png", "{q}")),
        ],
        {"line.png": (300, 9), "pixel.png": (1, 1), "tile.png": (32, 32), "column.png": (3, 90)},
        generate={
            "greedy": settings("tiny-smolvlm"),
            "stopped": settings("tiny-smolvlm", eos_token_id=[OBSERVED]),
        },
        splitting=True,
        exact_sizes=True,
    ),
    "smolvlm-text-only": Case(
        "no picture in the whole batch",
        "tiny-smolvlm",
        [chat(turn("user", "{q}")), row("One, two")],
        generate=runs("tiny-smolvlm", 8),
    ),
    "smolvlm2-split": mixed(
        "SmolVLM2: tied embeddings, nested processor files, a longest edge that is no multiple of the tile",
        "tiny-smolvlm2",
        splitting=True,
    ),
    "smolvlm2-video": Case(
        "videos as lists of frames: one sampled, one with chosen frames, and a row without; the text names each frame's time",
        "tiny-smolvlm2",
        [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "video",
                                "frames": frames("wide", 9),
                                "fps": 4.0,
                                "total_num_frames": 9,
                                "duration": 2.25,  # 4.5 frames at two per second: rounded to 4
                            },
                            {"type": "text", "text": "What happens? {q}"},
                        ],
                    }
                ],
                "add_generation_prompt": True,
            },
            {
                "text": "<video> It is",
                "images": [],
                "videos": [{"frames": frames("tall", 3), "fps": 0.5, "frames_indices": [0, 11, 32]}],
            },
            row("{q}"),
        ],
        {name: (24, 15) for name in frame_names("wide", 9)} | {name: (9, 14) for name in frame_names("tall", 3)},
        generate=runs("tiny-smolvlm2"),
    ),
    "smolvlm2-int8": Case(
        "linear layers as int8; blocks span rows",
        "tiny-smolvlm2",
        [row("<image>{q}", "tall.png"), row("<image>in", "small.png")],
        {name: PICTURES[name] for name in ("tall.png", "small.png")},
        generate={"greedy": settings("tiny-smolvlm2", 8)},
        quantize="int8",
    ),
    "idefics3-train": training(
        "everything trained: rows with 2, 1 and 0 pictures; clipping at 1; cosine after a warm-up",
        "tiny-idefics3",
        [
            answered(turn("user", "wide.png", "{q}", "small.png"), turn("assistant", "Two.")),
            row("<image> It is {q}", "small.png"),
            row("{q}"),
        ],
        {name: PICTURES[name] for name in ("wide.png", "small.png")},
        lr=2e-3,
        schedule="cosine",
        warmup_steps=3,
    ),
    "smolvlm-train": training(
        "tied embeddings in F32 from a BF16 file, the vision tower frozen; no clipping; linear",
        "tiny-smolvlm2",
        [
            row("<image>{q} One, two", "tall.png"),
            answered(turn("user", "small.png", "{q}"), turn("assistant", "One.")),
        ],
        {name: PICTURES[name] for name in ("tall.png", "small.png")},
        lr=2e-3,
        max_grad_norm=None,
        schedule="linear",
        labels="ignore_image_tokens",
        frozen=("model.vision_model.",),
    ),
    "idefics3-awq": packed("the text model as AutoAWQ stores it, groups of 16", "tiny-idefics3", "awq"),
    "smolvlm2-compressed": packed(
        "the text model as compressed-tensors stores it, with zero points, groups of 4; rows end inside words",
        "tiny-smolvlm2",
        "compressed",
    ),
    "smolvlm-compressed-sym": packed(
        "the text model as compressed-tensors stores it, symmetric, one group per row", "tiny-smolvlm", "compressed-sym"
    ),
}

assert all(case.tolerance == (TRAINING if case.train else STRICT) for case in CASES3.values())
