"""Writes fixtures for the host side of generation: logits processors, beam search and stop strings of the reference.

    python xtask/reference/generation_fixtures.py [--out FOLDER] [--seed N] [--width N]

Versions: see requirements.txt. The model consists of three tables of logits, indexed by the last token, the token before it
and the position.
Output: idefics-generate/tests/fixtures/{logits,beam,stop_strings}.json, with `null` for -inf.
"""

import argparse
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.generation.stopping_criteria import StopStringCriteria
from transformers.modeling_outputs import CausalLMOutputWithPast

OUT = Path("idefics-generate") / "tests" / "fixtures"
METADATA = {"transformers": transformers.__version__, "torch": torch.__version__, "script": "generation_fixtures.py"}
VOCAB = 24  # vocabulary size of the table model
SLOTS = 16  # maximum number of positions of the table model
END_GAIN = 2.5  # added to the logits of its first end token, so that searches end early enough
PAD = 0


class TableModel(PreTrainedModel, GenerationMixin):
    """Logits of the next token: `last[ids[-1]] + before[ids[-2]] + at[slot]`, so that different orders never tie."""

    config_class = LlamaConfig
    main_input_name = "input_ids"

    def __init__(self, last: torch.Tensor, before: torch.Tensor, at: torch.Tensor):
        vocab_size = last.shape[-1]
        super().__init__(LlamaConfig(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None, pad_token_id=None))
        self.last, self.before, self.at = last, before, at
        self.nothing = torch.nn.Parameter(torch.zeros(1))  # a model needs a parameter to have a device

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutputWithPast:
        before = torch.roll(input_ids, 1, dims=1)
        logits = self.last[input_ids] + self.before[before] + self.at[: input_ids.shape[1]]
        return CausalLMOutputWithPast(logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> dict[str, torch.Tensor]:
        return {"input_ids": input_ids}


def number(value: float) -> float | str | None:
    """A JSON number; `None` stands for -inf, which JSON does not have."""
    if value == -np.inf:
        return None
    return float(f"{value:.8g}") if np.isfinite(value) else str(value)


def numbers(values: torch.Tensor) -> list:
    """Nested lists of `number`."""
    return [numbers(row) for row in values] if values.dim() > 1 else [number(value) for value in values.tolist()]


def write(out: Path, name: str, content: dict[str, Any]) -> None:
    """Writes one fixture with the versions that produced it."""
    text = json.dumps({"metadata": METADATA, **content}, separators=(",", ":"))
    (out / f"{name}.json").write_text(text + "\n")
    print(f"{name}.json: {len(text)} bytes, {len(content['cases'])} cases")


# Processors


def score_rows(random: np.random.Generator, width: int) -> torch.Tensor:
    """[7, width]: normal, peaked, flat, with ties, all equal, mostly -inf, and with invalid values."""
    normal = random.normal(size=(7, width))
    rows = np.stack([2 * normal[0], 6 * normal[1], 0.3 * normal[2], np.round(2 * normal[3]), 0 * normal[4],
                     np.where(random.random(width) < 0.8, -np.inf, normal[5]), 2 * normal[6]])  # fmt: skip
    rows[6, [3, 7, 9]] = np.nan, np.inf, -np.inf
    return torch.tensor(np.round(rows, 3) + 0.0, dtype=torch.float32)


@dataclass
class Batch:
    """Rows of one step: the token ids so far, padded on the left to one length."""

    rows: list[list[int]]
    prompt_slots: int

    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        slots = max(map(len, self.rows))
        ids = [[PAD] * (slots - len(row)) + row for row in self.rows]
        mask = [[0] * (slots - len(row)) + [1] * len(row) for row in self.rows]
        return torch.tensor(ids), torch.tensor(mask)


BATCHES = {
    "one": Batch([[1]], 1),
    "second": Batch([[1, 7]], 1),
    "short": Batch([[1, 5, 6, 5]], 4),
    "said": Batch([[1, 5, 6, 5, 6, 7, 5, 6]], 4),
    "padded": Batch([[1, 5, 6, 5, 6, 7, 5, 6], [4, 9, 9, 8, 9]], 5),
    "long": Batch([[1, 5, 6, 5] + [11, 12, 13, 12, 11, 12, 13, 9]], 4),
}
SAID = ["short", "said", "padded"]
ALL = list(BATCHES)
BEAMS = {"num_beams": 3, "eos_token_id": [2, 3]}


def processor_options() -> list[tuple[dict[str, Any], list[str]]]:
    """Options that add one processor, or several whose order matters, and the batches to run them on."""
    eos = {"eos_token_id": [2, 3]}
    bias = [[[5], 1.5], [[9], -2.25], [[5, 6], 3.0], [[5, 6, 5], -1.0], [[6, 5], 0.5], [[6, 7], 0.125], [[6], -np.inf]]
    return [
        ({}, ["said"]),
        ({"sequence_bias": bias[:6]}, SAID),
        ({"sequence_bias": bias}, ["said"]),
        ({"encoder_repetition_penalty": 1.3}, ["short", "said"]),
        ({"repetition_penalty": 1.7}, SAID),
        ({"repetition_penalty": 0.6}, SAID),
        # With n-grams of size 1, the reference also counts the padding of its rows.
        ({"no_repeat_ngram_size": 1}, ["short", "said"]),
        *(({"no_repeat_ngram_size": n}, SAID) for n in (2, 3, 5)),
        *(({"encoder_no_repeat_ngram_size": n}, ["short", "said"]) for n in (1, 2, 3)),
        ({"bad_words_ids": [[4], [2], [5, 6, 5], [6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9]], **eos}, SAID),
        *(({"min_length": n, **eos}, SAID) for n in (4, 5, 8, 9)),
        *(({"min_new_tokens": n, **eos}, ["short", "said"]) for n in (1, 4, 5)),
        ({"min_length": 30, "min_new_tokens": 2, **eos}, ["said"]),
        ({"min_length": 30}, ["said"]),
        ({"forced_bos_token_id": 7}, ["one", "short"]),
        ({"forced_eos_token_id": 2, "max_length": 9}, ALL),
        ({"forced_eos_token_id": [2, 3], "max_length": 5}, ["short", "said"]),
        ({"remove_invalid_values": True}, ["said"]),
        *(({"exponential_decay_length_penalty": [n, 1.3], **eos}, ["said", "padded", "long"]) for n in (0, 3, 4)),
        ({"suppress_tokens": [4, 5, 39]}, ["said"]),
        ({"begin_suppress_tokens": [4, 5]}, ALL),
        ({"begin_suppress_tokens": [4, 5], "forced_bos_token_id": 7}, ["one", "second", "short"]),
        ({"renormalize_logits": True}, ["said"]),
        ({"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "bad_words_ids": [[4], [8, 9]], "min_new_tokens": 5,
          "suppress_tokens": [10], "exponential_decay_length_penalty": [1, 1.1], "sequence_bias": bias[:6], **eos},
         SAID),
        ({"remove_invalid_values": True, "suppress_tokens": [10], "bad_words_ids": [[4]], **eos}, ["said"]),
    ]  # fmt: skip


def warper_options() -> list[dict[str, Any]]:
    """Sampling options that add one filter, or several whose order matters."""
    off = {"do_sample": True, "top_k": 0}
    one = [
        *({"temperature": t} for t in (0.1, 0.7, 1.9)),
        *({"top_h": h} for h in (0.2, 0.5, 0.97)),
        *({"top_k": k} for k in (1, 3, 7, 39, 100)),
        *({"top_p": p} for p in (0.0, 0.2, 0.5, 0.9, 0.99)),
        *({"min_p": p} for p in (0.0, 0.05, 0.3, 1.0)),
        *({"typical_p": p} for p in (0.1, 0.5, 0.9, 0.99)),
        *({"epsilon_cutoff": c} for c in (1e-3, 0.02, 0.3)),
        *({"eta_cutoff": c} for c in (1e-3, 0.02, 0.3)),
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "renormalize_logits": True},
        {"temperature": 1.4, "top_k": 30, "typical_p": 0.8, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
    ]
    kept = [{"top_k": 1}, {"top_p": 0.1}, {"min_p": 0.9}, {"typical_p": 0.1}, {"epsilon_cutoff": 0.5},
            {"eta_cutoff": 0.5}]  # fmt: skip
    return [{**off, **options} for options in one] + [{**off, **BEAMS, **options} for options in kept]


def processed(model: TableModel, options: dict[str, Any], batch: Batch, scores: torch.Tensor) -> torch.Tensor:
    """`scores` of each row of the batch after all processors and filters of the reference."""
    config = GenerationConfig(**options)
    if config.min_new_tokens is not None:  # as in _prepare_generated_length
        config.min_length = config.min_new_tokens + batch.prompt_slots
    ids, mask = batch.padded()
    model._prepare_special_tokens(config, device=ids.device)
    chain = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=batch.prompt_slots,
        encoder_input_ids=ids[:, : batch.prompt_slots],
        device="cpu",
        model_kwargs={"attention_mask": mask},
    )
    return chain(ids, scores.expand(len(ids), -1).clone())


def logits_cases(model: TableModel, rows: torch.Tensor) -> list[dict[str, Any]]:
    """Every option on its rows. `unordered`: torch.sort decides which of several equal scores are kept."""
    cases = []

    def add(options: dict[str, Any], name: str, index: int) -> None:
        expected = numbers(processed(model, options, BATCHES[name], rows[index]))
        json_options = dict(options)
        if "sequence_bias" in options:
            json_options["sequence_bias"] = [[ids, number(bias)] for ids, bias in options["sequence_bias"]]
        finite = rows[index][rows[index].isfinite()]
        unordered = "top_p" in options and len(finite.unique()) < len(finite)
        case = {"options": json_options, "batch": name, "scores": index, "expected": expected}
        cases.append({**case, "unordered": True} if unordered else case)

    for options, names in processor_options():
        for name in names:
            add(options, name, 6 if options.get("remove_invalid_values") else 0)
    for options in warper_options():
        # torch.topk does not specify the order of equal scores.
        indices = [0, 1, 2, 5] if "top_h" in options or "num_beams" in options else [0, 1, 2, 3, 4, 5]
        for index in indices:
            add(options, "short", index)
    return cases


def write_logits(out: Path, random: np.random.Generator, width: int) -> None:
    """Writes rows of scores and the results of each chain."""
    rows = score_rows(random, width)
    model = TableModel(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))
    batches = {name: {"rows": batch.rows, "prompt_slots": batch.prompt_slots} for name, batch in BATCHES.items()}
    write(out, "logits", {"scores": numbers(rows), "batches": batches, "cases": logits_cases(model, rows)})


# Beam search


def tables(random: np.random.Generator) -> dict[str, torch.Tensor]:
    """Two tables [VOCAB, VOCAB] and one [SLOTS, VOCAB]; the end tokens 2 and 3 are slightly more likely than others."""
    sizes = {"last": (VOCAB, 1.6), "before": (VOCAB, 0.8), "at": (SLOTS, 0.4)}
    rows = {name: np.round(random.normal(size=(n, VOCAB)) * scale, 5) for name, (n, scale) in sizes.items()}
    rows["last"][:, 2] += END_GAIN
    rows["last"][:, 3] += END_GAIN / 2
    return {name: torch.tensor(table, dtype=torch.float32) for name, table in rows.items()}


def beam_options() -> list[dict[str, Any]]:
    """Beams x length penalties x `early_stopping` x end tokens, then other options that affect a search."""
    grid = product((2, 3, 4), (0.0, 1.0, 2.0), (True, False, "never"), ([2], [2, 3]))
    names = ("num_beams", "length_penalty", "early_stopping", "eos_token_id")
    cases = [{**dict(zip(names, values)), "num_return_sequences": values[0]} for values in grid]
    base = {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": [2]}
    return cases + [
        *({**base, "length_penalty": p, "early_stopping": e} for p, e in product((-1.0, 0.5), (True, False, "never"))),
        {**base, "num_return_sequences": 1},
        {**base, "eos_token_id": None, "length_penalty": 1.0},
        {**base, "eos_token_id": [2, 3, 4, 5]},
        {**base, "no_repeat_ngram_size": 2},
        {**base, "repetition_penalty": 1.3, "min_new_tokens": 5, "bad_words_ids": [[6], [7, 8]]},
        {**base, "forced_eos_token_id": [2]},
        {**base, "max_new_tokens": 1},
        {**base, "suppress_tokens": [token for token in range(VOCAB) if token not in (2, 9)]},
        {**base, "renormalize_logits": True, "exponential_decay_length_penalty": [3, 1.2]},
        {**base, "pad_token_id": 1},
    ]


def generated(model: TableModel, options: dict[str, Any], prompts: Batch) -> dict[str, Any]:
    """A case of beam search: options, prompts, answers without their prompts."""
    ids, mask = prompts.padded()
    options = {"pad_token_id": PAD, "max_new_tokens": 10, **options}
    config = GenerationConfig(**options, use_cache=False, return_dict_in_generate=True, output_scores=True)
    result = model.generate(ids, attention_mask=mask, generation_config=config)
    sequences = result.sequences[:, ids.shape[1] :].tolist()
    options["max_length"] = ids.shape[1] + options.pop("max_new_tokens")
    found = {"sequences": sequences, "sequences_scores": numbers(result.sequences_scores)}
    return {"options": options, "prompts": prompts.rows, **found}


class RecordedDraws:
    """Replaces `torch.multinomial` and records its results."""

    def __init__(self, seed: int):
        self.random, self.draws = torch.Generator().manual_seed(seed), []
        self.multinomial = torch.multinomial

    def __call__(self, probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        drawn = self.multinomial(probs, num_samples, generator=self.random)
        self.draws.append(drawn.tolist())
        return drawn


def sampled(model: TableModel, options: dict[str, Any], prompts: Batch, seed: int) -> dict[str, Any]:
    """A case of beam sampling, with the positions drawn in each step."""
    draws = RecordedDraws(seed)
    torch.multinomial = draws
    try:
        case = generated(model, {"do_sample": True, "top_k": 0, **options}, prompts)
    finally:
        torch.multinomial = draws.multinomial
    return {**case, "draws": draws.draws}


def write_beam(out: Path, random: np.random.Generator) -> None:
    """Writes the tables and the answers of every search over them."""
    model_tables = tables(random)
    model = TableModel(**model_tables)
    prompts = [Batch([[1, 7, 9], [1, 12, 20]], 3), Batch([[1, 7, 9, 11], [14, 15]], 4), Batch([[4, 5]], 2)]
    cases = [generated(model, options, prompts[index // 18 % 3]) for index, options in enumerate(beam_options())]
    for seed, (beams, stop) in enumerate(product((2, 3), (True, False, "never"))):
        options = {"num_beams": beams, "num_return_sequences": beams, "early_stopping": stop, "eos_token_id": [2],
                   "temperature": 0.8 if seed % 2 else 1.3, "top_p": 0.95}  # fmt: skip
        cases.append(sampled(model, options, prompts[seed % 3], seed))
    write(out, "beam", {name: numbers(table) for name, table in model_tables.items()} | {"cases": cases})


# Stop strings


class Tokenizer:
    """The part of a tokenizer that `StopStringCriteria` needs; every token is its own text."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [self.tokens.index(text)]}

    def _convert_id_to_token(self, index: int) -> str:
        return self.tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def write_stop_strings(out: Path, random: np.random.Generator) -> None:
    """Writes random rows of tokens, and whether each ends with a stop string."""
    words = ["\n", "\n\n", "User", ":", "User:", " User: a", "er", "Us"]
    tokens = ["abcdef", "a", "b", "ab", "ba", "aba", *words, "é", "éa"]
    tokenizer = Tokenizer(tokens)
    stops = [["aba"], ["ab", "\n\n"], ["User:"], ["\nUser"], ["abab", "b\n"], ["éa"], ["a"]]
    cases = []
    for stop_strings in stops:
        criteria = StopStringCriteria(tokenizer, stop_strings)
        ids = random.integers(1, len(tokens), size=(60, 6))
        hits = criteria(torch.tensor(ids), None).tolist()
        cases.append({"stop_strings": stop_strings, "input_ids": ids.tolist(), "hits": hits})
    write(out, "stop_strings", {"tokens": tokens, "cases": cases})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / OUT)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--width", type=int, default=40, help="width of the rows of scores")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    args.out.mkdir(parents=True, exist_ok=True)
    write_logits(args.out, np.random.default_rng([args.seed, 0]), args.width)
    write_beam(args.out, np.random.default_rng([args.seed, 1]))
    write_stop_strings(args.out, np.random.default_rng([args.seed, 2]))


if __name__ == "__main__":
    main()
