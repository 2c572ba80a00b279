"""Edits the facts of fact files with every method in the same run, and measures each as `evaluate` does.

    python -m benchmarks.chat --model demo --fact examples/facts/windows_maker.yaml --out out/chat.jsonl

Adapters and fine-tuning get the fact's training prompts with its answer, a bare one as a sentence, all in every step,
for at most 25 steps; the stages of `edit` (`staged`) and rewritten neurons (`keyed`, 15 steps) get the same, wordings
that are made of them and what is kept, `lora_kept` the same and what is kept. ROME, MEMIT, AlphaEdit, `surgical` and
`surgical_keyed` edit one sentence, behind sampled beginnings, as they do on CounterFact: the fact's answer up to the
new answer. Held-out prompts and controls are asked in the chat template after each, greedily. With `--bits` and
`--relearn` held-out prompts are asked again after every edit's weights, merged, were rounded, or fine-tuned on the old
answer.

Every row is a line of `--out`; the same command goes on where it was interrupted, and is refused where the weights,
a method's settings or its recipe are others than those of the rows that are there. Prints a Markdown table a fact and,
as its last line, JSON: fact file to method to metric to `{value, n, low, high}`.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from torch import nn

import peft_surgical as ps
from peft_surgical.cli.options import SEED
from peft_surgical.evaluation import Answers, answer_fact
from peft_surgical.measuring.metrics import prompt_metrics
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.models import DTYPES
from peft_surgical.sentence import CONTEXTS, sample_contexts
from peft_surgical.staging.whole_answers import in_sentences_of
from peft_surgical.texts.prompts import without_template

from .afterwards import Afterwards
from .baselines import METHODS, Method, Questions, Request, build, described
from .baselines.fitting import stopping_at
from .broken import unless_broken
from .comparison import asked_digest, asked_only, cell
from .fact_files import read_facts
from .journal import Journal, base_told, run_told
from .settings import check_rates, check_settings, learning_rates
from .speed.editing import beginning

FROM_A_SENTENCE = ("surgical", "surgical_keyed", "rome", "rome_cov", "rome_code", "memit", "alphaedit", "ia3_closed")
NOTHING = Afterwards()
SHOWN = ("new_answer_rate", "old_answer_rate", "control_kept", "control_leak", "kl_per_token")


class Pair(nn.Module):
    """A base and the same model edited, as one model in one of two states."""

    def __init__(self, base: Any, edited: Any) -> None:
        super().__init__()
        self.base, self.edited, self.current = base, edited, base
        # Whoever reads it leaves it in the mode that it was in, and a new module is in that of training.
        self.training = base.training

    @property
    def states(self) -> dict[str, Any]:
        """State name to a function that gives its context."""
        return {"base": lambda: self._being(self.base), "edited": lambda: self._being(self.edited)}

    @contextmanager
    def _being(self, model: Any) -> Any:
        before, self.current = self.current, model
        try:
            yield
        finally:
            self.current = before

    def forward(self, **inputs: Any) -> Any:
        """As the current one's."""
        return self.current(**inputs)

    def __getattr__(self, name: str) -> Any:
        """What else a model is asked for, such as its device."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def row(
    model: Any,
    base: Any,
    tokenizer: Any,
    fact: ps.Fact,
    method: Method,
    said: Mapping[str, Any],
    seed: int,
    after: Afterwards = NOTHING,
) -> dict[str, Any]:
    """Edits, measures, and leaves the model as it was.

    Args:
        model: Is edited.
        base: The same model, which is not.
        tokenizer: With its chat template.
        fact: The fact.
        method: How it is edited.
        said: The base's answers to the controls, under `controls`, and those of `after`, under `after`.
        seed: Of the method.
        after: What is done to the edited weights.
    """
    asked = asked_only(fact)
    given, request = _request(model, tokenizer, fact, method.name, seed)
    started = time.perf_counter()
    with method.edit(model, given, request, seed):
        seconds = time.perf_counter() - started
        answers = unless_broken(lambda: answer_fact(model, tokenizer, asked), _nothing(asked))
        pair = Pair(base, model)
        try:
            retention = measure_retention(pair, tokenizer, pair.states)["edited"]
        except ps.ModelError as error:
            # An edit can break a model: its answers count all the same, and its divergence is no number.
            click.echo(f"{method.name}: {error}", err=True)
            retention = {}
        afterwards = after.answers(model, tokenizer, fact)
    found = {
        **prompt_metrics(fact, answers.held_out, answers.controls, said["controls"]),
        **retention,
        **after.figures(fact, afterwards, said.get("after")),
    }
    return {
        "figures": {metric: figure.to_dict() for metric, figure in found.items()},
        "settings": described(method, model),
        "seconds": round(seconds, 2),
        "said": _said(answers, afterwards),
    }


def _nothing(asked: ps.Fact) -> Answers:
    groups = (asked.held_out, asked.controls, asked.probes, asked.portability)
    return Answers(*(("",) * len(group) for group in groups))


def _said(answers: Answers, afterwards: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    said = {"held_out": answers.held_out, "controls": answers.controls}
    return {**said, "after": afterwards} if afterwards else said


def _request(model: Any, tokenizer: Any, fact: ps.Fact, name: str, seed: int) -> tuple[Any, Request]:
    """What a method gets of a fact, and the tokenizer that it reads it with."""
    # A bare answer is a sentence for all methods, the one that the stages of an edit teach.
    known = in_sentences_of(model, tokenizer, fact.training)
    if name not in FROM_A_SENTENCE:
        return tokenizer, Questions(fact.subject, fact.prompts[0], fact.old[0], known.answer, training=fact.training)
    plain = without_template(tokenizer)
    contexts = sample_contexts(model, plain, CONTEXTS, seed)
    subject, text = beginning(known)
    return plain, Request(subject, text, fact.old[0], fact.new[0], contexts, known.evaluated, known.asked_about)


def run(
    model: Any,
    base: Any,
    tokenizer: Any,
    fact: ps.Fact,
    file: str,
    methods: Sequence[Method],
    journal: Journal,
    seed: int,
    after: Afterwards = NOTHING,
) -> dict[str, dict[str, Any]]:
    """Measures the methods of a fact that the journal does not have yet, and returns them all, the base first.

    Args:
        model: Is edited, and is the base again after each row.
        base: The same model, which is not.
        tokenizer: Its tokenizer.
        fact: The fact.
        file: The name of its file.
        methods: In order.
        journal: Gets every row.
        seed: Of the methods.
        after: What is done to the weights of each edit, and of the base.
    """
    done = {record["method"]: record for record in journal.of_kind("row") if record["fact"] == file}
    if "base" not in done:
        answers = answer_fact(model, tokenizer, asked_only(fact))
        afterwards = after.answers(model, tokenizer, fact)
        figures = {
            **prompt_metrics(fact, answers.held_out, answers.controls, answers.controls),
            **after.figures(fact, afterwards, None),
        }
        done["base"] = {
            "figures": {name: figure.to_dict() for name, figure in figures.items()},
            "said": _said(answers, afterwards),
        }
        journal.append({"kind": "row", "fact": file, "method": "base", **done["base"]})
    for method in methods:
        if method.name in done:
            continue
        found = row(model, base, tokenizer, fact, method, done["base"]["said"], seed, after)
        done[method.name] = found
        journal.append({"kind": "row", "fact": file, "method": method.name, **found})
        click.echo(f"{file}: {method.name}: {found['seconds']:.0f} s", err=True)
    return {name: done[name] for name in ("base", *(method.name for method in methods))}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures for a person; a column's head has the number of prompts or tokens."""
    figures = {name: found["figures"] for name, found in rows.items()}
    # What the weights went through has its names from `Afterwards`.
    metrics = [*SHOWN, *dict.fromkeys(metric for f in figures.values() for metric in f if " " in metric)]
    counts = [next((f[metric]["n"] for f in figures.values() if metric in f), 0) for metric in metrics]
    heads = " | ".join(f"{metric} (n={n:,})" for metric, n in zip(metrics, counts, strict=True))
    lines = [f"| Method | {heads} | seconds |", "|---" * (len(metrics) + 2) + "|"]
    for name, found in rows.items():
        # What the base is compared with itself in is 1 or 0 by definition.
        hidden = SHOWN[2:] if name == "base" else ()
        cells = ["–" if metric in hidden else cell(figures[name].get(metric)) for metric in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} | {found.get('seconds', '–')} |")
    return "\n".join(lines)


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.option("--model", default="demo", show_default=True, help="A hub id, a folder, a GGUF file or demo.")
@click.option(
    "--fact",
    "paths",
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A fact file; repeat for more.",
)
@click.option("--method", "names", multiple=True, type=click.Choice(list(METHODS)), help="All when not given.")
@click.option("--learning-rate", "rates", multiple=True, callback=learning_rates, metavar="METHOD=LR")
@click.option(
    "--target-loss",
    type=click.FloatRange(min=0),
    help="Mean loss per token at which adapters and fine-tuning stop, instead of 0.01; ROME has its own.",
)
@click.option(
    "--bits", multiple=True, type=click.IntRange(2, 8), help="Ask again with weights of so many bits; repeat for more."
)
@click.option(
    "--relearn",
    multiple=True,
    type=click.IntRange(min=1),
    help="Ask again after so many steps of fine-tuning on the old answer; repeat for more.",
)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON lines, gone on from."
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--dtype", default="auto", show_default=True, type=click.Choice(list(DTYPES)))
@click.option("--device", default=None)
def main(
    model: str,
    paths: tuple[Path, ...],
    names: tuple[str, ...],
    rates: dict[str, float],
    target_loss: float | None,
    bits: tuple[int, ...],
    relearn: tuple[int, ...],
    out: Path,
    seed: int,
    dtype: str,
    device: str | None,
) -> None:
    """Reads the options, runs, prints."""
    try:
        click.get_current_context().with_resource(stopping_at(target_loss))
        wanted = [name for name in names or METHODS if name != "base"]
        check_rates(rates, wanted)
        methods = [build(name, rates.get(name)) for name in dict.fromkeys(wanted)]
        read = {path.name: fact for path, fact in read_facts(paths).items()}
        loaded, tokenizer = ps.load_model(model, dtype=dtype, device=device)
        loaded.requires_grad_(False)
        journal = Journal(
            out,
            {
                "benchmark": "chat",
                "facts": {name: asked_digest(fact) for name, fact in read.items()},
                **base_told(model, loaded, tokenizer),
                "seed": seed,
                **{name: list(given) for name, given in (("bits", bits), ("relearn", relearn)) if given},
            },
            run_told("chat", loaded.device),
            lambda records: check_settings(out, records, methods, loaded),
        )
        base, found, after = copy.deepcopy(loaded), {}, Afterwards(bits, relearn)
        for file, fact in read.items():
            found[file] = run(loaded, base, tokenizer, fact, file, methods, journal, seed, after)
            click.echo(f"{fact.subject}: {fact.old[0]} → {fact.new[0]} ({file})\n")
            click.echo(table(found[file]) + "\n")
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    figures = {file: {name: made["figures"] for name, made in rows.items()} for file, rows in found.items()}
    click.echo(json.dumps(figures))


if __name__ == "__main__":
    main(obj=sys.argv[1:])
