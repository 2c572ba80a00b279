"""How the cost of a training step and of a localization grows, on small random models, and those models themselves."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

import peft_surgical as ps
from peft_surgical.localizing.scores import SECONDS
from peft_surgical.staging import training

from ..localization import synchronize
from .case import Case, Sizes
from .training import learn

WORDS = 256
_ALPHABET = 200
LOCALIZERS = ("attribution", "logit_drop")
# What is faster is measured so often, unless that takes so many seconds.
RUNS, ENOUGH = 3, 1.5
CHANGED = {
    **{"steps": 6, "target_loss": -1.0, "retain_tokens": 1},
    **dict.fromkeys(("variants", "neighbours", "near_batch", "far_batch", "general"), 0),
}


@dataclass(frozen=True)
class Grid:
    """The sizes, of which one grows while the others stay at their second value.

    Attributes:
        prompts: How many.
        length: Tokens a prompt.
        layers: How many.
        width: Hidden size; heads are 64 wide, so there are more of them in a wider model.
    """

    prompts: tuple[int, ...] = (8, 16, 32, 64)
    length: tuple[int, ...] = (16, 32, 64, 128)
    layers: tuple[int, ...] = (2, 4, 8, 16)
    width: tuple[int, ...] = (128, 256, 512, 1024)

    def points(self, grown: str) -> list[dict[str, int]]:
        """The measured combinations along one axis."""
        fixed = {name: values[1] for name, values in vars(self).items()}
        return [{**fixed, grown: value} for value in vars(self)[grown]]


def scaling(grid: Grid, seed: int = 0) -> dict[str, Any]:
    """Seconds along each axis, and the exponents that fit them: cost ~ size to the power of the exponent.

    Where a part of the cost does not grow, the exponent through all sizes is too low for large ones, and that of the
    last two is nearer to it.
    """
    found: dict[str, Any] = {}
    for axis in vars(grid):
        points = grid.points(axis)
        seconds = [cost(point, seed) for point in points]
        sizes = [point[axis] for point in points]
        columns = {name: [each[name] for each in seconds] for name in seconds[0]}
        exponents = {name: exponent(sizes, values) for name, values in columns.items()}
        last = {name: exponent(sizes[-2:], values[-2:]) for name, values in columns.items()}
        found[axis] = {"sizes": sizes, "seconds": columns, "exponents": exponents, "last_exponents": last}
    return found


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The slope of a line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def cost(point: Mapping[str, int], seed: int) -> dict[str, float]:
    """Seconds of a training step over all prompts, and of scoring by them; the least of several, after one that is not
    counted."""
    case = Case(
        small_model(point["width"], point["layers"], seed),
        word_tokenizer(),
        made_up_fact(point["prompts"], point["length"]),
        Sizes(changed={**CHANGED, "fact_batch": point["prompts"]}),
        seed,
    )
    found = {"step": min(step_seconds(case))}
    for name in LOCALIZERS:
        ps.localize(case.fresh(), case.tokenizer, case.fact, [name], prompts=1, progress=False)
        found[name] = least(partial(scorer_seconds, case, name))
    # A clock of thousandths shows nothing of what is faster.
    return {name: max(seconds, 1e-3) for name, seconds in found.items()}


def step_seconds(case: Case) -> list[float]:
    """What each step of a stage but the first took, by a clock that is not rounded as a record's is."""
    ended: list[float] = []
    step = training._step

    def watched(*arguments: Any) -> None:
        step(*arguments)
        synchronize()
        ended.append(time.perf_counter())

    with patch.object(training, "_step", watched):
        learn(case)
    # Before the first one stands what is done once.
    return [after - before for before, after in pairwise(ended)]


def scorer_seconds(case: Case, name: str) -> float:
    """What a scorer takes itself, without what every localization does before it."""
    found = ps.localize(case.fresh(), case.tokenizer, case.fact, [name], progress=False)
    return float(found.tables[name].notes[SECONDS])


def least(measure: Callable[[], float], runs: int = RUNS, enough: float = ENOUGH) -> float:
    """The least of several measurements; of one alone where that takes so long that little disturbs it.

    Args:
        measure: Returns seconds.
        runs: How many at most.
        enough: Seconds after which no other is begun.
    """
    seconds: list[float] = []
    while len(seconds) < runs and sum(seconds) < enough:
        seconds.append(measure())
    return min(seconds)


def small_model(width: int, layers: int, seed: int = 0) -> Any:
    """A random Llama."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        **_common(),
    )
    return _random(LlamaForCausalLM, config, seed)


def wide_model(width: int, layers: int, seed: int = 0) -> Any:
    """A random Phi-3, as wide as a real one (3,072) unless told otherwise, and not as deep."""
    config = Phi3Config(
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 96),
        num_key_value_heads=max(1, width // 96),
        **{**_common(), "vocab_size": 32064},
    )
    return _random(Phi3ForCausalLM, config, seed)


def word_tokenizer() -> Any:
    """One token a word: w0, w1, … and what the package itself puts in is unknown."""
    names = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{number}" for number in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def made_up_fact(prompts: int, length: int) -> ps.Fact:
    """A fact about the word w0, with prompts of one length that all differ."""
    asked = [_words(number, length) for number in range(prompts + 2)]
    return ps.Fact.from_dict(
        {
            "subject": "w0",
            "old": ["w1"],
            "new": ["w2"],
            "answer": "w2",
            "refusal": "w3",
            "prompts": asked[:prompts],
            "held_out": asked[prompts : prompts + 1],
            "controls": [{"prompt": asked[prompts + 1], "answer": ["w1"]}],
            "contrast": ["w4", "w5", "w6"],
        }
    )


def _words(number: int, length: int) -> str:
    """A text that names w0 and differs from every other number's from its beginning on: no prefix is shared."""
    drawn = random.Random(number)
    begin = [f"w{8 + number % _ALPHABET}", f"w{8 + number // _ALPHABET}", "w0"]
    return " ".join([*begin, *(f"w{drawn.randrange(8, WORDS)}" for _ in range(length - len(begin)))])


def _common() -> dict[str, Any]:
    return {
        "vocab_size": WORDS + 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }


def _random(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[-1]))
    return model
