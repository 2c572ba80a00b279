"""`peft-surgical new`: a whole fact file from one prompt and the answer that the model shall give."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

import peft_surgical as ps

from ..drafting.english import check_english
from ..drafting.reading import read_prompt
from ..errors import FactError, brief
from ..texts.fact_checks import check_apart, check_asked
from ..texts.text import same_text_key
from . import checks, options
from .loading import load
from .terminal import note, print_json, print_result


@click.command(short_help="Write a fact file from one prompt and a new answer.")
@click.argument("prompt", metavar="PROMPT")
@click.option(
    "--new",
    "new",
    multiple=True,
    required=True,
    metavar="ANSWER",
    help="What the model shall answer; may be repeated, other names of the same after the first.",
)
@click.option(
    "--old",
    "old",
    multiple=True,
    metavar="ANSWER",
    help="What it answers now; may be repeated as --new.  [default: the model is asked]",
)
@click.option(
    "--subject", metavar="NAME", help="What the prompt is about, as the prompt names it.  [default: guessed]"
)
@options.model
@click.option("--out", "-o", required=True, type=options.FILE, metavar="FILE", help="The fact file to write.")
@click.option(
    "--count",
    type=click.IntRange(min=2),
    default=24,
    show_default=True,
    help="Prompts to train on, and as many held-out prompts, at most. For a country, an eighth more to train on ask by"
    " its adjective.",
)
@options.seed
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@options.as_json
@options.quiet
@options.debug
def new(
    prompt: str,
    new: tuple[str, ...],
    old: tuple[str, ...],
    subject: str | None,
    source: options.Source,
    out: Path,
    count: int,
    seed: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a fact file: paraphrases, held-out prompts, neighbours, controls that the model answers right, probes.

    Read the file before you edit a model with it: its prompts are made by rule, and it says what was guessed.

    \b
    Examples:
      peft-surgical new "Who developed PyTorch?" --old "Meta AI" --new Google --out pytorch.yaml
      peft-surgical new "What is the capital of Japan?" --new Osaka --model ./checkpoint --out japan.yaml
    """
    checks.output_file(out, overwrite)
    _check(prompt, subject, old, new)
    model, tokenizer = load(source, quiet=quiet)
    try:
        draft = ps.new_fact(
            model,
            tokenizer,
            prompt,
            subject=subject,
            old=old or None,
            new=new,
            count=count,
            seed=seed,
            progress=not quiet,
        )
    except FactError as error:
        if old:
            raise
        raise FactError(f"{error} (The model was asked for the old answer; --old names it instead.)") from error
    draft.save(out, overwrite=overwrite)
    for text in draft.notes:
        note(text, quiet=quiet)
    if as_json:
        print_json({"fact": draft.fact.to_dict(), "notes": list(draft.notes), "out": str(out)})
    fact = draft.fact
    named = ["--model", source.name, *(() if source.revision is None else ("--revision", source.revision))]
    lines = [
        f"{out}: {fact.subject}, from {fact.old[0]} to {fact.new[0]}",
        f"  {len(fact.prompts)} prompts and {len(fact.held_out)} held-out prompts",
        f"  {len(fact.contrast)} contrast subjects and {len(fact.retain)} prompts to keep",
        f"  {len(fact.controls)} controls, {draft.neighbours} of them close, and {len(fact.probes)} probes",
        f"Read it, then: {shlex.join(['peft-surgical', 'edit', str(out), *named])} --out DIR",
    ]
    print_result("\n".join(lines), quiet=quiet, as_json=as_json)


def _check(prompt: str, subject: str | None, old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """What can be told before a model is loaded.

    Raises:
        FactError: If the prompt or an answer is empty or both answers are one, the prompt holds the old one, is not in
            English or does not name the subject, or none can be guessed.
    """
    if any(not name.strip() for name in (*old, *new)):
        raise FactError("an answer is empty; give --new, and --old if need be, a name.")
    if mute := [name for name in (*old, *new) if not same_text_key(name)]:
        raise FactError(f"the answer {brief(mute[0])} has no letter, digit or sign to look for.")
    if not same_text_key(prompt):
        raise FactError("the prompt is empty.")
    check_apart(old, new)
    found = checks.subject(prompt, subject)
    check_asked(prompt, found, old, new)
    check_english(read_prompt(prompt, found, old, new))
