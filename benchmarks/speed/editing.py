"""The rows about a whole edit: against the user's own way from end to end, against ROME, and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import peft_surgical as ps
from peft_surgical.errors import FactError
from peft_surgical.running.cache import FOLDER, answers_kept
from peft_surgical.running.generation import MAX_NEW_TOKENS
from peft_surgical.sentence import CONTEXTS, sample_contexts
from peft_surgical.texts.prompts import encode, without_template
from peft_surgical.texts.text import occurrences

from ..baselines import Request, build, values
from .case import Case, timed
from .stock import fit_with_trainer

STATES = 3
_FEW = 2


def own(case: Case, *, keyed: bool = False) -> dict[str, Any]:
    """Our edit: all of it, and the same without the evaluation.

    And the next edit of the model, which finds on disk what the first measured on the package's own questions.

    Args:
        case: What is edited.
        keyed: By neurons that fire at the subject, instead of scales.
    """
    sizes = case.sizes
    edit = partial(ps.edit_keyed, recipe=sizes.keyed_recipe) if keyed else partial(ps.edit, recipe=sizes.recipes)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, answers_kept(Path(folder) / FOLDER):
        for suffix, fact in (("", case.fact), ("_following", case.following or case.fact)):
            report, seconds = timed(
                edit,
                case.fresh(),
                case.tokenizer,
                fact,
                out=Path(folder) / f"out{suffix}",
                seed=case.seed,
                progress=False,
            )
            training = sum(report.seconds.get(name, 0.0) for name in ("localize", "unlearn", "learn"))
            found |= {
                f"seconds{suffix}": seconds,
                f"seconds_without_evaluation{suffix}": training,
                f"phases{suffix}": dict(report.seconds),
            }
    return found


def end_to_end(case: Case, edit: dict[str, Any], localization: dict[str, Any]) -> dict[str, Any]:
    """Against two stages of a Trainer, one forward a component on each prompt, and answers one at a time."""
    sizes = case.sizes
    fit = fit_with_trainer(case, sizes.trainer_steps)
    fact = case.fact
    asked = [*fact.held_out, *(c.prompt for c in fact.controls), *(p.prompt for p in fact.probes)]
    asked += [question.prompt for question in fact.portability]
    _, answering = timed(answer_one_by_one, case, asked[: sizes.answers])
    localizing = localization["other_seconds_a_prompt"]
    other = {
        "training": 2 * sizes.stage_steps * fit.seconds / fit.steps,
        "localization": localizing * localization["prompts_default"],
        "evaluation": STATES * len(asked) * answering / min(sizes.answers, len(asked)),
    }
    seconds = sum(other.values())
    return {
        "seconds": edit["seconds"],
        "other_seconds": seconds,
        "other_phases": other,
        "ratio": seconds / edit["seconds"],
        "ratio_following": seconds / edit["seconds_following"],
        "ratio_localized_on_one_prompt": (seconds - other["localization"] + localizing) / edit["seconds"],
        "extrapolated": {
            "trainer_steps": [fit.steps, 2 * sizes.stage_steps],
            "components": [localization["components_one_by_one"], localization["components"]],
            "prompts_localized": [1, localization["prompts_default"]],
            "answers": [min(sizes.answers, len(asked)), STATES * len(asked)],
        },
    }


@torch.no_grad()
def answer_one_by_one(case: Case, prompts: list[str]) -> None:
    """Greedy answers as a user asks for them: a prompt a call of `generate`."""
    model = case.fresh()
    for prompt in prompts:
        ids = torch.tensor([encode(case.tokenizer, prompt)], device=model.device)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=case.tokenizer.pad_token_id or 0,
        )


def of_one_sentence(case: Case, methods: Sequence[str]) -> dict[str, Any]:
    """The sentence, and the seconds that each method takes to learn it, once all of them have run; the contexts that
    they share are left out."""
    plain = without_template(case.tokenizer)
    model = case.fresh().requires_grad_(False)
    subject, prompt = beginning(case.fact)
    request = Request(
        subject,
        prompt,
        case.fact.old[0],
        case.fact.new[0],
        contexts=sample_contexts(model, plain, CONTEXTS, case.seed),
    )

    def edit(name: str) -> float:
        context = build(name).edit(model, plain, request, case.seed)
        _, seconds = timed(context.__enter__)
        context.__exit__(None, None, None)
        return seconds

    # Whichever came first would pay for what a process does once.
    with few_steps():
        for name in methods:
            edit(name)
    return {"prompt": prompt, **{name: edit(name) for name in methods}}


@contextmanager
def few_steps() -> Iterator[None]:
    """Lets ROME and what learns from one sentence take no more than a few steps."""
    scales = partial(ps.learn_by_subject, recipe=ps.SubjectRecipe(steps=_FEW))
    keyed = partial(ps.learn_keyed_by_subject, recipe=ps.KeyedSubjectRecipe(steps=_FEW))
    with (
        patch.object(values, "STEPS", _FEW),
        patch.object(ps, "learn_by_subject", scales),
        patch.object(ps, "learn_keyed_by_subject", keyed),
    ):
        yield


def one_sentence(seconds: dict[str, Any]) -> dict[str, Any]:
    """What learns from one sentence, by scales and by its subject's key, against ROME on the same one."""
    other = seconds["rome"]
    return {
        "prompt": seconds["prompt"],
        "seconds": seconds["surgical"],
        "seconds_keyed": seconds["surgical_keyed"],
        "other_seconds": other,
        "ratio": seconds["surgical"] / other,
        "ratio_keyed": seconds["surgical_keyed"] / other,
    }


def against_rome(edit: dict[str, Any], seconds: dict[str, Any]) -> dict[str, Any]:
    """Our edit without its evaluation, against ROME."""
    other = seconds["rome"]
    return {
        "prompt": seconds["prompt"],
        "seconds": edit["seconds_without_evaluation"],
        "other_seconds": other,
        "ratio": edit["seconds_without_evaluation"] / other,
        "seconds_following": edit["seconds_without_evaluation_following"],
        "ratio_following": edit["seconds_without_evaluation_following"] / other,
    }


def beginning(fact: ps.Fact | ps.TrainingFact) -> tuple[str, str]:
    """The subject and a sentence that the fact's answer completes: the answer up to it, or the first prompt that names
    the subject. It is spelled as it stands there, which may be with a capital, and evaluation does not ask it.

    Raises:
        FactError: If neither names the subject.
    """
    found = [next(occurrences(fact.answer, alias), None) for alias in fact.new]
    starts = [place[0] for place in found if place is not None]
    cut = fact.answer[: min(starts)].rstrip() if starts else ""
    for text in (cut, *fact.prompts):
        place = next(occurrences(text, fact.subject), None)
        if place and fact.training.may_train_on(text):
            return text[slice(*place)], text
    raise FactError(f"no prompt names the subject {fact.subject!r}, which ROME needs.")


def memory(model: str, fact: str, dtype: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Peak resident memory of an edit above the loaded model, in MiB: as it is with a quarter of the prompts and with
    all, and with `--low-memory`."""
    command = [sys.executable, "-m", "benchmarks.speed.memory", model, fact, dtype, json.dumps(dict(changed))]
    measured = {}
    for name, options in (("quarter", ("4",)), ("all", ("1",)), ("low_quarter", ("4", "low")), ("low", ("1", "low"))):
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            # One that was killed, as where memory runs out, says nothing.
            said = done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}."]
            raise ps.SurgicalError(f"measuring memory failed: {said[-1]}")
        measured[name] = json.loads(done.stdout.splitlines()[-1])
    return {
        "mib": measured["all"]["mib"],
        "mib_quarter": measured["quarter"]["mib"],
        "mib_low": measured["low"]["mib"],
        "mib_low_quarter": measured["low_quarter"]["mib"],
        "prompts": measured,
    }
