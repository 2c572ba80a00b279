"""`peft-surgical ask`: put a question to the base and the edited model, side by side."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import AdapterError
from ..measuring.attached import TURNED, attach, attach_dials, check_together
from ..running.generation import generate_answers
from . import options
from .loading import load, quiet_libraries
from .tables import Answers
from .terminal import print_json, print_result


@click.command(short_help="Ask the base and the edited model, side by side.")
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@options.model
@options.adapter
@click.option(
    "--dial",
    "dials",
    multiple=True,
    type=options.DIAL,
    metavar="T",
    help="Turn an edit, of scales or LoRA, down or up: 0 is the base, 0.5 half of it, 1 the edit, 1.5 the most; may be"
    " repeated.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Longer answers are cut."
)
@options.as_json
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but answers, errors and warnings.")
@options.debug
def ask(
    prompts: tuple[str, ...],
    source: options.Source,
    adapters: tuple[Path, ...],
    dials: tuple[float, ...],
    max_tokens: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Answer prompts greedily, without the adapters and with them.

    \b
    Examples:
      peft-surgical ask --model demo --adapter out/edit "What is the capital of France?"
      peft-surgical ask --adapter out/edit --dial 0.5 --dial 1 --dial 1.5 "Where is the Louvre?"
    """
    if dials and not adapters:
        raise click.UsageError("--dial turns an edit; name one with --adapter.")
    if any(not prompt.strip() for prompt in prompts):
        raise click.UsageError("a prompt is empty.")
    kinds, turned = check_together(adapters), f"{', '.join(TURNED[:-1])} and {TURNED[-1]}"
    for folder, kind in zip(adapters, kinds, strict=True):
        if dials and kind not in TURNED:
            raise AdapterError(f"{folder} holds a {kind} adapter; --dial turns {turned} adapters.")
    model, tokenizer = load(source, quiet=quiet)
    if dials:
        model, states = attach_dials(model, adapters, dials, quiet_libraries)
    else:
        model, states = attach(model, adapters, quiet_libraries)
        # What two stages are called in a report says nothing to somebody who asks a question.
        states = {name: state for name, state in states.items() if name in ("base", "edited")}
    answers = {}
    for name, state in states.items():
        with state():
            answers[name] = generate_answers(
                model, tokenizer, prompts, max_new_tokens=max_tokens, progress=not quiet, description=name
            )
    if as_json:
        print_json({"prompts": list(prompts), "answers": answers})
        return
    several = len(prompts) > 1
    rows = [[prompt] * several + [said[number] for said in answers.values()] for number, prompt in enumerate(prompts)]
    print_result(Answers(["prompt"] * several + list(answers), rows, named=several))
