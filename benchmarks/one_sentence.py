"""Writes facts from one sentence each that are judged by other people's questions.

    python -m benchmarks.one_sentence examples/facts/*.yaml --model demo --out out/from_one
    python -m benchmarks.facts out/from_one/*.yaml --model demo --out out/from_one_edits

Of a fact file only the first prompt and the new answer go into the draft (`peft_surgical.new_fact`). The draft's
training half is then put together with the file's held-out prompts, controls and names, by which answers are counted.
What the file's evaluation asks, and other subjects and questions whose names its controls name, leave the draft. A
fact that cannot be drafted from so little is told of and left out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import yaml

import peft_surgical as ps
from peft_surgical.cli.options import SEED
from peft_surgical.drafting.names import neighbours_of
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.staging.retain import names_asked
from peft_surgical.texts.tables import bare
from peft_surgical.texts.text import contains, prompt_key
from peft_surgical.writing.files import write_text

from .fact_files import read_facts


def judged_by(draft: ps.Fact, judge: ps.Fact) -> ps.Fact:
    """The training half of a drafted fact with what another fact on the same subject evaluates.

    Args:
        draft: The drafted fact.
        judge: Gives held-out prompts, controls, probes, portability questions and the forms of both answers.
    """
    records: tuple[Any, ...] = (*judge.controls, *judge.probes, *judge.portability)
    asked = {prompt_key(text) for text in (*judge.held_out, *(record.prompt for record in records))}
    controls = " \0 ".join(control.prompt for control in judge.controls)
    met = [subject for subject in (*draft.contrast, *_same_relation(draft)) if contains(controls, [subject])]

    def free(prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(p for p in prompts if prompt_key(p) not in asked and not contains(p, met))

    return replace(
        draft,
        old=judge.old,
        new=judge.new,
        held_out=judge.held_out,
        controls=judge.controls,
        probes=judge.probes,
        portability=judge.portability,
        prompts=free(draft.prompts),
        retain=tuple(p for p in free(draft.retain) if contains(p, judge.names) or not names_asked(judge.training, p)),
        contrast=tuple(subject for subject in draft.contrast if subject not in met),
    )


def _same_relation(draft: ps.Fact) -> list[str]:
    """The subjects that the package knows of the draft's relation, which its retained prompts are about."""
    reading = read_prompt(draft.prompts[0], draft.subject, draft.old, draft.new)
    names = map(bare, neighbours_of(reading.relation.name))
    return [name for name in names if not contains(name, [draft.subject]) and not contains(draft.subject, [name])]


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.argument("facts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default="demo", show_default=True, help="A hub id, a folder, a GGUF file or demo.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="A folder for the facts.")
@click.option("--seed", type=SEED, default=0, show_default=True)
def main(facts: tuple[Path, ...], model: str, out: Path, seed: int) -> None:
    """Drafts each fact, and writes it as a fact file."""
    try:
        read = read_facts(facts)
        for path in facts:
            if (out / path.name).exists():
                raise ps.OutputError(f"the file {out / path.name} exists; name another folder.")
        loaded, tokenizer = ps.load_model(model)
        for path, judge in read.items():
            try:
                draft = ps.new_fact(loaded, tokenizer, judge.prompts[0], new=judge.new[0], seed=seed, progress=True)
            except ps.FactError as error:
                click.echo(f"{path.name} is left out: {error}", err=True)
                continue
            fact = judged_by(draft.fact, judge)
            out.mkdir(parents=True, exist_ok=True)
            note = (
                f"# Trained from the first prompt and the new answer of {path.name}, judged by what that evaluates.\n"
            )
            write_text(out / path.name, note + yaml.safe_dump(fact.to_dict(), sort_keys=False, allow_unicode=True))
            click.echo(f"{path.name}: {len(fact.prompts)} prompts, {len(fact.retain)} to keep")
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
