"""Videos of SmolVLM2, with those parts of the reference that run without torchvision.

The class `SmolVLMVideoProcessor` needs torchvision, so this script puts its steps together:

- **Sampling** is the reference's: the source of `sample_frames` is taken from its file and run on its own.
- **Text** is the reference's: `SmolVLMProcessor.replace_video_token`, called for each video by itself. In a batch the
  reference writes the number of frames of the longest video into every text; here each video has its own number.
- **The chat template** is the reference's own for videos.
- **Pixels** are those of the image processor on Pillow, without splitting. The class for videos does the
  same steps with torchvision; its pixel values differ from these by up to two of 255 levels.
- **The shape of `pixel_values`** is that of the image processor: one row of frames per row of the batch, filled up with zeros.
  The reference has one row per video. The model drops the zeros in both cases.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from pictures import open_upright
from transformers import Idefics3ImageProcessorPil, Idefics3Processor
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE, SmolVLMProcessor
from transformers.video_utils import VideoMetadata

VIDEO = "<video>"


def reference_sampling() -> Any:
    """The function `sample_frames` of the reference's class."""
    path = Path(transformers.__file__).parent / "models/smolvlm/video_processing_smolvlm.py"
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    found = next(node for node in functions if node.name == "sample_frames")
    names = {"np": np, "VideoMetadata": VideoMetadata}
    exec(compile(ast.Module([found], []), str(path), "exec"), names)
    return names["sample_frames"]


def videos_of(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """The videos of a sample, in order."""
    if "text" in sample:
        return sample.get("videos", [])
    return [item for message in sample["messages"] for item in message["content"] if item["type"] == "video"]


def process(samples: list[dict[str, Any]], processor: Idefics3Processor, checkpoint: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Run the processor on samples with at most one video each and no pictures, rows padded on the left."""
    files = json.loads((checkpoint / "processor_config.json").read_text(encoding="utf-8"))
    settings = files["video_processor"]
    names = ("image_mean", "image_std", "max_image_size", "resample", "size", "do_resize")
    images = Idefics3ImageProcessorPil(
        do_image_splitting=False, **{name: settings[name] for name in names if name in settings}
    )
    sample_frames = reference_sampling()
    sampling = SimpleNamespace(num_frames=settings["num_frames"], fps=settings["fps"])
    tokens = SimpleNamespace(
        image_seq_len=processor.image_seq_len,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )
    processor.tokenizer.padding_side = "left"
    texts, frames, indices = [], [], []
    for sample in samples:
        if "text" in sample:
            text = sample["text"]
        else:
            prompt = sample.get("add_generation_prompt", False)
            text = processor.apply_chat_template(
                sample["messages"], chat_template=DEFAULT_CHAT_TEMPLATE, add_generation_prompt=prompt
            )
        shown: list[Any] = []
        for video in videos_of(sample):
            pictures = [open_upright(folder / path) for path in video["frames"]]
            metadata = VideoMetadata(
                total_num_frames=video.get("total_num_frames"), fps=video.get("fps"), duration=video.get("duration")
            )
            if "frames_indices" in video:
                chosen = video["frames_indices"]
            else:
                chosen = [int(index) for index in sample_frames(sampling, metadata)]
                pictures = [pictures[index] for index in chosen]
            metadata.frames_indices = chosen
            inputs = {"pixel_values": np.zeros((1, len(chosen))), "video_metadata": [metadata]}
            text = text.replace(VIDEO, SmolVLMProcessor.replace_video_token(tokens, inputs, 0), 1)
            shown += pictures
            indices.append(chosen)
        texts.append(text)
        frames.append(shown)
    most = max(map(len, indices))
    return {
        **processor.tokenizer(texts, padding=True, return_tensors="pt"),
        **images(frames, return_tensors="pt"),
        "frames_indices": torch.tensor([[*chosen, *[-1] * (most - len(chosen))] for chosen in indices]),
    }
