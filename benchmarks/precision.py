"""Does bfloat16 keep the ranking? Exact effects and estimates in it, against exact effects in float32.

    python -m benchmarks.precision --model demo

All heads and MLPs of all layers, on the same prompts: the model's float32 weights; the same weights rounded to
bfloat16, with float32 arithmetic (what `localize` does for exact scores) and with bfloat16 arithmetic. Agreement is of
the means over prompts. Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

import peft_surgical as ps
from peft_surgical.dtypes import dtype_name
from peft_surgical.localizing.bridge import wrap
from peft_surgical.localizing.corruption import template_ids
from peft_surgical.localizing.patching import targets_of
from peft_surgical.localizing.runs import Runs, sites_of

from .localization import FACT, Timed, attributed, count, grown, overlap, spearman, swapped, told


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--fact", default=str(FACT))
    parser.add_argument("--prompts", type=count, default=8, help="how many of the fact's prompts to average over")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-tokens", type=int, default=2048)
    options = parser.parse_args()
    scored, seconds, used = {}, {}, 0
    with told(parser):
        fact = ps.Fact.from_file(options.fact)
        for dtype in ("float32", "bfloat16"):
            # Loaded anew: `model.to` would round the rotary frequencies, which a bfloat16 model keeps in float32.
            model, tokenizer = ps.load_model(options.model, dtype=dtype, device=options.device)
            made, used = scores(model, tokenizer, fact, options.prompts, options.max_tokens)
            for name, (means, spent) in made.items():
                label = f"{name}, {dtype} weights"
                scored[label], seconds[label] = means, spent
    reference = scored["exact in float32, float32 weights"]
    agreement = {
        label: {
            "spearman": spearman(means, reference),
            "top10_overlap": overlap(means, reference, 10),
            "seconds_per_prompt": seconds[label],
        }
        for label, means in scored.items()
    }
    result = {
        "model": str(model.config._name_or_path or type(model).__name__),
        "components": len(reference),
        "prompts": used,
        "threads": torch.get_num_threads(),
        "against": "exact in float32, float32 weights",
        "agreement": agreement,
    }
    print(f"{result['model']}: {len(reference)} components, {result['prompts']} prompts")
    print(f"{'scores':44}{'Spearman':>10}{'top 10':>8}{'s a prompt':>12}")
    for label, row in agreement.items():
        found = row["spearman"], row["top10_overlap"], row["seconds_per_prompt"]
        print(f"{label:44}{found[0]:>10.3f}{found[1]:>8.1f}{found[2]:>12.2f}")
    print(json.dumps(result))


def scores(
    model: Any, tokenizer: Any, fact: ps.Fact, prompts: int, max_tokens: int
) -> tuple[dict[str, tuple[Tensor, float]], int]:
    """Effects of all components, means over prompts, and seconds a prompt; in the model's own arithmetic and, for a
    model in half precision, in float32 too. And of how many prompts they are, as not all can be swapped."""
    targets = targets_of(sites_of(ps.ModelShape.from_config(model.config), ("z", "post")))
    bridge, template = wrap(model), template_ids(tokenizer)
    own = dtype_name(model.dtype)
    kinds = {own: Runs(bridge, template), "float32": Runs(bridge, template, precise=True)}
    made: dict[str, tuple[Tensor, float]] = {}
    for arithmetic, runs in kinds.items():
        pairs = swapped(runs, tokenizer, fact, prompts, max_tokens)
        way = Timed()
        exact = torch.stack([way(grown, runs, pair, targets, max_tokens) for pair in pairs]).float().mean(0)
        made[f"exact in {arithmetic}"] = exact, way.seconds / len(pairs)
        if arithmetic == own:
            way = Timed()
            guess = way(attributed, runs, pairs, targets, max_tokens).float().mean(0)
            made[f"attribution in {arithmetic}"] = guess, way.seconds / len(pairs)
    return made, len(pairs)


if __name__ == "__main__":
    main()
