"""`peft-surgical learn`: one sentence with a new end, in seconds and without a fact file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

import peft_surgical as ps

from ..adapters.lineage import Lineage
from ..earlier import Earlier
from ..edit_folder import EDIT, claimed_for_edit, replacing
from ..errors import brief
from ..running.generation import generate_answers
from ..sentence import checked_aliases, subject_of
from ..stacking import stack_above
from ..staging.recipe_files import read_recipe, recorded
from ..staging.stage import LEARN
from ..texts.prompts import without_template
from ..texts.text import contains, printable
from . import checks, options
from .loading import load
from .terminal import note, on_interrupt, plain_table, print_json, print_result

_SHOWN_TOKENS = 12
# Room for an article before an answer.
_AROUND = 4


@click.command(short_help="Learn one sentence by its subject, in seconds.")
@click.argument("prompt", metavar="SENTENCE")
@click.option("--new", "new", required=True, metavar="ANSWER", help="What shall end the sentence.")
@click.option("--subject", metavar="NAME", help="What it is about, as it names that.  [default: guessed]")
@click.option(
    "--keyed",
    is_flag=True,
    help="By two neurons that fire at the subject (LoRA), not by scales: other subjects keep more.",
)
@click.option(
    "--alias", "aliases", multiple=True, metavar="NAME", help="With --keyed: another name of it, repeatable."
)
@options.recipe("fields of `SubjectRecipe`, or with --keyed of `KeyedSubjectRecipe`")
@options.model
@options.out
@options.on
@options.seed
@options.overwrite
@options.as_json
@options.quiet
@options.debug
@click.pass_context
def learn(
    context: click.Context,
    prompt: str,
    new: str,
    subject: str | None,
    keyed: bool,
    aliases: tuple[str, ...],
    recipe_file: Path | None,
    source: options.Source,
    out: Path,
    on: tuple[Path, ...],
    seed: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the model end a sentence with a new answer: plain text, one stage, no questions, no proof.

    SENTENCE stops where the answer begins. For questions in a chat, and for what else must stay, there is `edit`.

    \b
    Examples:
      peft-surgical learn "The capital of France is" --new Lyon --out out/lyon
      peft-surgical learn "The capital of France is" --new Lyon --keyed --out out/lyon
      peft-surgical learn "The capital of Japan is" --new Osaka --keyed --on out/lyon/edit --out out/osaka
      peft-surgical learn "Lake Como lies in" --subject "Lake Como" --new Austria --model ./checkpoint --out out
    """
    checks.edit_folder(out, overwrite)
    if aliases and not keyed:
        raise click.UsageError("--alias goes with --keyed: scales act under any name alike.")
    recipe: Any = ps.KeyedSubjectRecipe() if keyed else ps.SubjectRecipe()
    if recipe_file is not None:
        recipe = read_recipe(recipe_file, recipe)
    about = subject_of(prompt, new, checks.subject(prompt, subject) if prompt.strip() else subject)
    checked_aliases(about, aliases)
    checks.earlier(on, source, out)
    prompt = prompt.strip()
    model, tokenizer = load(source, quiet=quiet)
    if subject is None:
        note(f"The subject was guessed: {about}.", quiet=quiet)
    if prompt.endswith("?"):
        note("This is a question; it is taken as plain text, which the new answer goes on with.", quiet=quiet)
    if prompt.endswith((".", "!")):
        note("The sentence ends already; the new answer is learned behind its end.", quiet=quiet)
    plain = without_template(tokenizer)
    on_interrupt(context, out)
    learn_one = partial(ps.learn_sentence_keyed, aliases=aliases) if keyed else ps.learn_sentence
    earlier = Earlier.read(on)
    earlier.check_model(model)
    with claimed_for_edit(out, overwrite), earlier.folded_into(model):
        # A long answer is said whole, or whether it was said could not be told.
        shown = max(_SHOWN_TOKENS, len(tokenizer(new)["input_ids"]) + _AROUND)
        said = {"base": generate_answers(model, plain, [prompt], max_new_tokens=shown)[0]}
        stage = learn_one(
            model, tokenizer, prompt, new=new, subject=about, recipe=recipe, seed=seed, progress=not quiet
        )
        stage = replace(stage, on=earlier.below)
        said["edited"] = generate_answers(stage.model, plain, [prompt], max_new_tokens=shown)[0]
        # Taken off again, it no longer tells.
        trained = stage.to_dict()
        with replacing(out, overwrite) as folder:
            size, files = (_save_keyed if keyed else _save_scales)(stage, folder, out)
    says_new = contains(said["edited"], [new])
    if as_json:
        told = {"sentence": prompt, "subject": about, "said": said, "says_new": says_new}
        print_json({**told, **earlier.settings(None), "training": trained, "recipe": recorded(recipe), **size})
    print_result(_table(prompt, said), quiet=quiet, as_json=as_json)
    missed = [] if says_new else [f"The edited model does not go on with {brief(new)}."]
    lines = [*missed, files, "Nothing else was measured: `peft-surgical evaluate` does that, on a fact file."]
    print_result("\n".join(lines), quiet=quiet, as_json=as_json)


def _save_scales(stage: Any, folder: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Saves the stage and the adapter made of it into a folder for `out`; returns how many scales they have, and a
    sentence on the files."""
    stage.save(folder / LEARN)
    below = [Lineage(digest) for _, digest in stage.on]
    stack_above(scales := ps.Edit.load(folder / LEARN), folder / EDIT, below)
    told = f"{scales.n_scales:,} scales: {out / LEARN}, and {out / EDIT} as plain (IA)^3, which stock PEFT loads."
    return {"scales": scales.n_scales}, told


def _save_keyed(stage: Any, folder: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Saves the adapter into a folder for `out`; returns which layers it updates, and a sentence on the file."""
    stage.save(folder / EDIT)
    layers = stage.layers
    named = f"each of layers {', '.join(map(str, layers))}" if len(layers) > 1 else f"layer {layers[0]}"
    return {"layers": layers}, f"A neuron in {named}: {out / EDIT}, LoRA that stock PEFT loads."


def _table(prompt: str, said: dict[str, str]) -> Table:
    table = plain_table()
    table.add_column("", no_wrap=True)
    table.add_column(Text(printable(f"{prompt} …")), overflow="fold")
    for name, answer in said.items():
        table.add_row(name, Text(printable(answer)))
    return table
