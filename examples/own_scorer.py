"""A scorer of one's own, found and used like the built-in ones.

    python examples/own_scorer.py --out out/own_scorer

A scorer comes with an installed package. So that this file runs as it is, `install` writes what `pip install` would
write: the name of the entry point. `plugins/peft-surgical-direct-logit` is a real package to copy from.
"""

import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

import torch

import peft_surgical as ps

FACT = Path(__file__).parent / "facts" / "france_capital.yaml"


@torch.no_grad()
def subject_change(context, *, power: int = 1):
    """How much a component's output at the answer position changes with the subject."""
    totals = dict.fromkeys(context.sites, 0)
    for window in context.windows():
        clean, _ = context.runs.capture(window, window.clean, context.sites)
        other, _ = context.runs.capture(window, window.corrupted, context.sites)
        for site in context.sites:
            change = (clean[site][:, -1] - other[site][:, -1]).float()  # [prompt, head, d_head] or [prompt, d_mlp]
            sizes = change.norm(dim=-1) if site.of_heads else change.abs()  # [prompt, head] or [prompt, d_mlp]
            totals[site] += sizes.pow(power).sum(0) / len(context.pairs)
    # An MLP would be scored by the sum over its neurons, of which it has far more than a head has widths.
    return {site: sums if site.of_heads else ps.MLPScores(float(sums.norm()), sums) for site, sums in totals.items()}


@ps.hookimpl
def register_scorers(register):
    register("subject_change", subject_change)


def install(folder):
    info = Path(folder) / "own_scorer-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-scorer\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[peft_surgical]\nown_scorer = own_scorer\n")
    sys.path += [str(folder), str(Path(__file__).parent)]


def main(model="demo", fact=FACT, out="out/own_scorer", prompts=4):
    """Returns the localization by this scorer and by `attribution`."""
    network, tokenizer = ps.load_model(model)
    with tempfile.TemporaryDirectory() as folder:
        install(folder)
        scorers = ["subject_change", "attribution"]  # or with an option: "subject_change:power=2"
        found = ps.localize(network, tokenizer, ps.Fact.from_file(fact), scorers, prompts=prompts)
    header, rows = found.rows(10)
    for row in [header, *rows]:
        print(*(f"{cell:>14}" for cell in row))
    Path(out).mkdir(parents=True, exist_ok=True)
    found.save(Path(out) / "localization.json")
    return found


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a hub id, a folder, a .gguf file or demo")
    parser.add_argument("--fact", default=FACT, type=Path, help="a fact file")
    parser.add_argument("--out", default="out/own_scorer", help="the folder to write")
    parser.add_argument("--prompts", default=4, type=int, help="use only the first so many prompts of the fact")
    try:
        main(**vars(parser.parse_args()))
    except ps.SurgicalError as error:
        raise SystemExit(f"Error: {error}") from error
