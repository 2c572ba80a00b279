"""How much memory localizing takes above the weights of a model as wide as Phi-3-mini, and so what all of it takes.

    python -m benchmarks.phi3_memory

A random Phi-3 in bfloat16 with the sizes of Phi-3-mini but fewer layers, as memory depends on sizes alone. Each depth
is measured in a process of its own; a straight line through the depths gives the model's 32 layers. Prints a table
and, as its last line, JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import click
import numpy as np
import torch

import peft_surgical as ps

from .localization import peak_above
from .speed.scaling import made_up_fact, wide_model, word_tokenizer

LAYERS = 32
"""Of Phi-3-mini."""


def measure(width: int, layers: int, prompts: int, tokens: int) -> dict[str, float]:
    """MiB of the weights, and of what `localize` with its defaults takes above them at its peak."""
    model = wide_model(width, layers).to(torch.bfloat16)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20
    fact = made_up_fact(prompts, tokens)
    peak = peak_above(model, lambda: ps.localize(model, word_tokenizer(), fact, progress=False))
    return {"layers": layers, "weights_mib": weights, "above_mib": peak}


def at_depth(layers: int, found: Sequence[dict[str, float]]) -> dict[str, float]:
    """A straight line through what was measured, at a depth that was not."""
    depths = [each["layers"] for each in found]
    lines = {key: np.polyfit(depths, [each[key] for each in found], 1) for key in ("weights_mib", "above_mib")}
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
    click.echo("| layers | weights, MiB | localizing, MiB above them |\n|---|---|---|")
    for each in found:
        said = " (from the line)" if each is found[-1] else ""
        click.echo(f"| {each['layers']}{said} | {each['weights_mib']:,.0f} | {each['above_mib']:,.0f} |")
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
