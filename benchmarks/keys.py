"""How far held-out prompts meet what keyed edits read a subject off by, and how far controls do.

    python -m benchmarks.keys examples/facts/france_capital.yaml --model demo

For each fact and some layers: the mean, standard deviation and least at the subject's last tokens of the held-out
prompts, and the root of the mean square and the largest at all tokens of the controls but the first, of how far the
neuron fires that `edit-keyed` rewrites, as a multiple of its mean over the training prompts, and of `a·k` for ROME's
direction among the neurons that there are, told apart from the same texts: `a ∝ C⁻¹ k`, of a mean of 1 at the subject.
Nothing is trained. Prints a Markdown table and, as its last line, JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from jaxtyping import Float
from torch import Tensor

import peft_surgical as ps
from peft_surgical.architectures import output_projections
from peft_surgical.cli.options import SEED
from peft_surgical.keying.keyed import KeyedRecipe
from peft_surgical.keying.keys import Marked, marked_neurons, modules_in_turn, moments, neuron_count
from peft_surgical.keying.neurons import find_neurons, place_neurons, set_neurons
from peft_surgical.keying.telling import named_by_any, run_from, told_apart
from peft_surgical.staging.retained import base_rows
from peft_surgical.staging.trained_rows import training_rows
from peft_surgical.staging.whole_answers import in_sentences_of
from peft_surgical.texts.prompts import EncodedAnswer, encode, encode_answer
from peft_surgical.texts.subjects import subject_ends
from peft_surgical.texts.topics import relation_prompts

from .baselines.covariances import with_ridge
from .baselines.restoring import adapters_taken_off
from .fact_files import read_facts

NEURON, DIRECTION = "neuron", "ROME's direction"


def met(model: Any, tokenizer: Any, fact: ps.Fact, layers: Sequence[int] | None, seed: int) -> list[dict[str, Any]]:
    """A row a layer and kind of reading.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        fact: The fact.
        layers: Whose MLPs; all when None.
        seed: As for an edit.
    """
    recipe, modules = KeyedRecipe(), output_projections(model, layers)
    known = in_sentences_of(model, tokenizer, fact.training)
    kept = base_rows(model, tokenizer, known, recipe, seed, progress=False, besides=relation_prompts(known))
    prompts, trained = training_rows(model, tokenizer, known, recipe, known.answer)
    own = _named(tokenizer, known, prompts, trained)
    asked = _named(tokenizer, known, fact.held_out, [encode_answer(tokenizer, p, known.answer) for p in fact.held_out])
    controls = Marked.whole([EncodedAnswer(tuple(encode(tokenizer, c.prompt)), 1) for c in fact.controls])
    named = named_by_any(tokenizer, known, prompts, own)
    starts, _ = run_from(named, kept.rows)
    names, kinds, first = told_apart(
        model, tokenizer, known, own, named, starts, kept, namesakes=recipe.namesakes, seed=seed
    )
    vectors = directions(model, modules, names, kinds, recipe.ridge, first)
    rows = _rows(model, modules, DIRECTION, vectors, asked, controls)
    neurons = find_neurons(model, modules, names, kinds, recipe.ridge, besides=[first])
    with adapters_taken_off(model):
        base = place_neurons(model, modules).get_base_model()
        set_neurons(base, neurons)
        fired = [*marked_neurons(base, modules, own)]
        vectors = {}
        for name, neuron in neurons.items():
            vectors[name] = torch.zeros(neuron_count(base.get_submodule(name)))
            vectors[name][neuron.index] = 1 / torch.cat([batch[name][:, neuron.index] for batch in fired]).mean()
        rows += _rows(base, modules, NEURON, vectors, asked, controls)
    return sorted(rows, key=lambda row: row["layer"])


def directions(
    model: Any,
    modules: Mapping[str, int],
    names: Sequence[Marked],
    kept: Sequence[Marked],
    ridge: float,
    first: Marked,
) -> dict[str, Float[Tensor, " neuron"]]:
    """For each module ROME's direction (arXiv 2202.05262), of a covariance over the texts that neurons are told from.

    Args:
        model: The base.
        modules: From [`~peft_surgical.architectures.output_projections`].
        names: As for [`find_neurons`].
        kept: As for [`find_neurons`].
        ridge: As for [`find_neurons`].
        first: First tokens of texts, of which the ridge is not measured.
    """
    found = {}
    for chosen in modules_in_turn(model, modules):
        away, more, own = (moments(model, chosen, kinds) for kinds in (kept, [first], names))
        for name, (moment, _) in away.items():
            key = own[name][1]
            direction = torch.linalg.solve(with_ridge(moment, ridge) + more[name][0], key)
            found[name] = (direction / (direction @ key)).float()
    return found


def _rows(
    model: Any,
    modules: Mapping[str, int],
    kind: str,
    vectors: Mapping[str, Tensor],
    asked: Marked,
    controls: Marked,
) -> list[dict[str, Any]]:
    """What a vector a module makes of the neurons."""
    at, away = (
        {name: torch.cat([batch[name] for batch in batches]) @ vector for name, vector in vectors.items()}
        for batches in (list(marked_neurons(model, modules, texts)) for texts in (asked, controls))
    )
    return [
        {
            "layer": layer,
            "kind": kind,
            "mean": float(at[name].mean()),
            # One has none.
            "deviation": float(at[name].std()) if len(at[name]) > 1 else None,
            "least": float(at[name].min()),
            "n": len(at[name]),
            "controls": float(away[name].square().mean().sqrt()),
            "most": float(away[name].abs().max()),
        }
        for name, layer in modules.items()
    ]


def _named(tokenizer: Any, fact: ps.TrainingFact, prompts: Sequence[str], rows: Sequence[EncodedAnswer]) -> Marked:
    """Prompts with the answer, and where their subjects end, as `edit-keyed` has them."""
    return Marked(rows, subject_ends(tokenizer, prompts, fact.subject, rows, fact.contrast))


@click.command()
@click.argument("facts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default="demo", show_default=True, help="A hub id, a folder, a GGUF file or demo.")
@click.option("--layer", "layers", multiple=True, type=click.IntRange(min=0), help="All layers when not given.")
@click.option("--seed", type=SEED, default=0, show_default=True)
def main(facts: tuple[Path, ...], model: str, layers: tuple[int, ...], seed: int) -> None:
    """Reads the options, runs, prints."""
    found = {}
    try:
        read = {path.name: fact for path, fact in read_facts(facts).items()}
        loaded, tokenizer = ps.load_model(model, dtype="float32")
        for name, fact in read.items():
            found[name] = met(loaded, tokenizer, fact, layers or None, seed)
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        "| Fact | layer | what | mean | standard deviation | least | N | controls, rms | most |\n" + "|---" * 9 + "|"
    )
    for name, rows in found.items():
        for row in rows:
            figures = " | ".join(
                "–" if row[key] is None else f"{row[key]:.2f}" for key in ("mean", "deviation", "least")
            )
            where = f"{name} | {row['layer']} | {row['kind']}"
            click.echo(f"| {where} | {figures} | {row['n']} | {row['controls']:.3f} | {row['most']:.2f} |")
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
