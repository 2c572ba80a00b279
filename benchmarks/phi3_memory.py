"""How much memory localizing takes above the weights of a model as wide as Phi-3-mini, and so what all of it takes.

    python -m benchmarks.phi3_memory

A random Phi-3 in bfloat16 with the sizes of Phi-3-mini but fewer layers, as memory depends on sizes alone. Each depth
is measured in a process of its own: `localize` with its defaults, and then by itself each of the two phases that they
have. `attribution` keeps what all layers did for its backward pass, in chunks of `max_tokens`, so it may grow with
depth where exact patching does not. A straight line through the depths, a phase each, gives the model's 32 layers; as
the phases come one after the other, the whole is then the largest of the three lines. Prints a table and, as its last
line, JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import click
import numpy as np
import torch

import peft_surgical as ps

from .localization import peak_above
from .speed.scaling import made_up_fact, wide_model, word_tokenizer

LAYERS = 32
"""Of Phi-3-mini."""

PHASES: dict[str, tuple[list[str] | None, int | None]] = {
    "above_mib": (None, None),
    "attribution_mib": (["attribution"], None),
    "exact_mib": (["logit_drop"], 1),
}
"""What is measured -> scorers, and prompts: exact patching goes prompt by prompt, so that one shows what all take. The
first comes first, as a user would run it, and includes what importing TransformerLens takes."""

COLUMNS = {
    "layers": "layers",
    "weights_mib": "weights, MiB",
    "above_mib": "localizing, MiB above them at the peak",
    "attribution_mib": "attribution alone",
    "exact_mib": "exact patching alone",
}


def measure(width: int, layers: int, prompts: int, tokens: int) -> dict[str, float]:
    """MiB of the weights, and of what `localize` and its phases take above them at their peaks."""
    model = wide_model(width, layers).to(torch.bfloat16)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20
    fact, tokenizer = made_up_fact(prompts, tokens), word_tokenizer()
    peaks = {
        name: peak_above(model, partial(ps.localize, prompts=first, progress=False), model, tokenizer, fact, scorers)
        for name, (scorers, first) in PHASES.items()
    }
    return {"layers": layers, "weights_mib": weights, **peaks}


def at_depth(layers: int, found: Sequence[dict[str, float]]) -> dict[str, float]:
    """A straight line through each that was measured, at a depth that was not."""
    depths = [each["layers"] for each in found]
    lines = {key: np.polyfit(depths, [each[key] for each in found], 1) for key in found[0] if key != "layers"}
    return {"layers": layers, **{key: float(np.polyval(line, layers)) for key, line in lines.items()}}


@click.command(help=__doc__.splitlines()[0])
@click.option("--width", default=3072, show_default=True)
@click.option("--layers", "depths", default=(2, 4, 8), multiple=True, show_default=True, type=click.IntRange(1))
@click.option("--prompts", default=24, show_default=True)
@click.option("--tokens", default=46, show_default=True, help="Of a prompt.")
@click.option("--one", is_flag=True, hidden=True)
def main(width: int, depths: tuple[int, ...], prompts: int, tokens: int, one: bool) -> None:
    """Measure and print."""
    if one:
        click.echo(json.dumps(measure(width, depths[0], prompts, tokens)))
        return
    if len(depths) < 2:
        raise click.UsageError("a line needs two depths or more: give --layers twice.")
    found = []
    for depth in depths:
        given = ["--one", "--width", width, "--layers", depth, "--prompts", prompts, "--tokens", tokens]
        command = [sys.executable, "-m", "benchmarks.phi3_memory", *map(str, given)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    found.append(at_depth(LAYERS, found))
    click.echo(f"| {' | '.join(COLUMNS.values())} |\n|{'---|' * len(COLUMNS)}")
    for each in found:
        said = " (from the lines)" if each is found[-1] else ""
        figures = " | ".join(f"{each[key]:,.0f}" for key in COLUMNS if key != "layers")
        click.echo(f"| {each['layers']}{said} | {figures} |")
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
