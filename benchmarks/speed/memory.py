"""One edit in a process of its own, and the most memory that it took above the loaded model.

    python -m benchmarks.speed.memory MODEL FACT DTYPE RECIPE SHARE [low]

RECIPE is JSON of fields to change in the stages' recipes, `{}` for their own; the edit uses one of SHARE of the fact's
prompts. With `low` it runs as `peft-surgical edit --low-memory` does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import peft_surgical as ps
from peft_surgical.cli.allocator import give_back_freed
from peft_surgical.running.replicas import without_replicas
from peft_surgical.stages import RECIPES, low_memory

from ..localization import peak_above


def main() -> None:
    """Measure and print a line of JSON."""
    name, path, dtype, recipe, share, *low = sys.argv[1:]
    fields: dict[str, Any] = json.loads(recipe)
    recipes = {stage: replace(own, **fields) for stage, own in (low_memory() if low else RECIPES).items()}
    if low:
        give_back_freed()
    model, tokenizer = ps.load_model(name, dtype=dtype)
    fact = ps.Fact.from_file(path)
    prompts = fact.prompts[: max(1, len(fact.prompts) // int(share))]
    fact = replace(fact, prompts=prompts)
    # Weights that are mapped from a file count once they have been read.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sum()
    with tempfile.TemporaryDirectory() as folder:

        def edit() -> None:
            with without_replicas() if low else nullcontext():
                ps.edit(
                    model,
                    tokenizer,
                    fact,
                    out=Path(folder) / "out",
                    recipe=recipes,
                    progress=False,
                )

        peak = peak_above(model, edit)
    print(json.dumps({"mib": peak, "prompts": len(prompts)}))


if __name__ == "__main__":
    main()
