"""How far an edit moves the questions that it kept, and others like them that nothing was trained on.

    python -m benchmarks.facts examples/facts/*.yaml --model demo --out out/facts
    python -m benchmarks.unseen examples/facts/*.yaml --model demo --edits out/facts

If those that were kept moved less than the others, more of them would help. Asked are the questions near the fact and
the general ones that training kept, as many general ones of the package that it did not keep, and the controls. Of
each the base's own greedy answer is read as far as training keeps it: the divergence of the edit from the base there,
nats a token, and whether the edit's likeliest tokens are the same all along. Prints a Markdown table and, as its last
line, JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from peft import PeftModel
from torch import Tensor, nn

import peft_surgical as ps
from peft_surgical.cli.options import SEED
from peft_surgical.measuring.metrics import Figure, mean, rate
from peft_surgical.running.beginnings import shared_prefix
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.stages import RECIPES
from peft_surgical.staging.retain import (
    TopDistribution,
    base_answers,
    everyday_prompts,
    general_prompts,
    retain_prompts,
)
from peft_surgical.staging.retained import base_rows
from peft_surgical.staging.stage import LEARN
from peft_surgical.texts.prompts import EncodedAnswer, encode, span
from peft_surgical.texts.text import mentions, prompt_key

from .fact_files import read_facts
from .plain_text import answer_logits

SHOWN = ("kl_per_token", "unchanged")


def others(fact: ps.TrainingFact, recipe: ps.Recipe, seed: int) -> list[str]:
    """General questions of the package that training did not keep, though it might have; as many as it might keep."""
    near, far = retain_prompts(fact, recipe.neighbours, recipe.general, seed)
    kept = {prompt_key(prompt) for prompt in (*near, *far)}
    found = [
        prompt
        for prompt in general_prompts()[recipe.general :]
        if fact.may_train_on(prompt) and not mentions(prompt, fact.subject) and prompt_key(prompt) not in kept
    ]
    return found[: recipe.general]


def measure(
    model: Any, tokenizer: Any, fact: ps.Fact, edit: Path, recipe: ps.Recipe, seed: int
) -> dict[str, dict[str, Figure]]:
    """Both figures for each kind of question, over questions.

    Args:
        model: The base; afterwards it has the edit.
        tokenizer: Its tokenizer.
        fact: What was edited.
        edit: The folder of the adapter.
        recipe: What the edit was trained by.
        seed: Of the edit.
    """
    kept = base_rows(model, tokenizer, fact.training, recipe, seed, progress=False)
    everyday = {tuple(encode(tokenizer, prompt)) for prompt in everyday_prompts()}
    rows: dict[str, Sequence[EncodedAnswer]] = {
        "near, kept": kept.rows[: kept.near],
        "general, kept": [row for row in kept.rows[kept.near :] if row.ids[: row.answer_start] not in everyday],
    }
    asked = {"general, others": others(fact.training, recipe, seed), "controls": [c.prompt for c in fact.controls]}
    for kind, prompts in asked.items():
        rows[kind] = base_answers(model, tokenizer, prompts, max_new_tokens=recipe.retain_tokens)
    rows = {kind: own for kind, own in rows.items() if own}
    before = {kind: [TopDistribution.of(logits) for logits in read(model, own)] for kind, own in rows.items()}
    edited = PeftModel.from_pretrained(model, edit).eval()
    found = {}
    for kind, own in rows.items():
        pairs = list(zip(before[kind], read(edited, own), strict=True))
        found[kind] = {
            "kl_per_token": mean([float(base.kl(logits).mean()) for base, logits in pairs]),
            "unchanged": rate([bool((logits.argmax(-1) == base.tokens[:, 0]).all()) for base, logits in pairs]),
        }
    return {kind: {name: figure for name, figure in own.items() if figure is not None} for kind, own in found.items()}


def read(model: Any, rows: Sequence[EncodedAnswer]) -> Iterator[Tensor]:
    """Logits that predict each row's answer, `[token, vocab]`."""
    shared = shared_prefix([row.ids for row in rows], [span(row)[0] for row in rows])
    runner = SuffixRunner(model, nn.ModuleList(), 0, rows[0].ids[:shared])
    runner.add([row.read for row in rows])
    return answer_logits(runner, rows)


def table(found: Mapping[str, Mapping[str, Mapping[str, Figure]]]) -> list[str]:
    """A row for each fact and kind of question."""
    lines = ["| Fact | questions | N | KL per token, nats | same beginning |", "|---|---|---|---|---|"]
    for fact, kinds in found.items():
        for kind, figures in kinds.items():
            kl, unchanged = (figures[name] for name in SHOWN)
            cells = (f"{f.value:.{d}f} [{f.low:.{d}f}, {f.high:.{d}f}]" for f, d in ((kl, 3), (unchanged, 2)))
            lines.append(f"| {fact} | {kind} | {kl.n} | {' | '.join(cells)} |")
    return lines


@click.command(help=__doc__.splitlines()[0])
@click.argument("facts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", "name", default="demo", show_default=True)
@click.option("--edits", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the edits.")
def main(facts: tuple[Path, ...], name: str, edits: Path, seed: int) -> None:
    """Measure each fact's edit in a fresh copy of the model."""
    found = {}
    try:
        given = {path.stem: fact for path, fact in read_facts(facts).items()}
        # All of them are looked for before the first is measured: a missing one should not cost the others' time.
        for stem in given:
            if not (edits / stem / "edit").is_dir():
                raise click.ClickException(f"there is no {edits / stem / 'edit'}; edit the facts into {edits} first.")
        for stem, fact in given.items():
            model, tokenizer = ps.load_model(name)
            found[stem] = measure(model, tokenizer, fact, edits / stem / "edit", RECIPES[LEARN], seed)
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(table(found)))
    click.echo(
        json.dumps(
            {
                fact: {k: {m: f.to_dict() for m, f in v.items()} for k, v in kinds.items()}
                for fact, kinds in found.items()
            }
        )
    )


if __name__ == "__main__":
    main()
