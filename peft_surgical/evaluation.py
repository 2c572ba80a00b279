"""What an edit did, measured: all that a fact asks and unrelated text, the same way for base and edited.

```py
>>> states = {"base": adapter_state(peft_model, []), "edited": adapter_state(peft_model, ["unlearn", "learn"])}
>>> report = evaluate(peft_model, tokenizer, fact, states=states)
>>> report.stages["edited"]["new_answer_rate"]
Figure(value=1.0, n=26, low=0.87..., high=1.0)
```
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import islice
from typing import Any

from .adapters.bases import cached_commit, hub_id_of, revision_of
from .adapters.merged_edits import edits_in
from .architectures import check_causal
from .counts import check_counts, check_seed, check_text_tokens
from .dtypes import dtype_name
from .errors import ModelError, brief, first_line
from .facts import Fact, check_fact
from .measuring.checkpoints import EditedModel, edited_checkpoint
from .measuring.fluency import check_fluency_fits, continuations, fluency_metrics, fluency_prompts
from .measuring.margins import Contest, Pair, margin_metrics, measure_margins
from .measuring.metrics import prompt_metrics
from .measuring.portability import portability_metrics
from .measuring.relearning import relearning_recovery
from .measuring.retention import check_text_fits, measure_retention
from .measuring.soft_forgetting import probe_metrics
from .measuring.states import State, adapter_state, adapters_act
from .profiling import phase
from .report import Report
from .running.alike import check_alike
from .running.generation import MAX_NEW_TOKENS, generate_answers
from .running.modes import base_model_of, learned_tokens
from .running.precision import without_autocast
from .staging.whole_answers import whole_answer
from .texts.lengths import check_asked_fits
from .texts.prompts import has_chat_template
from .wrapped import check_unwrapped

_PACKAGES = ("peft-surgical", "torch", "transformers", "peft", "transformer-lens", "safetensors")


@dataclass(frozen=True)
class Answers:
    """What a model in one state says to every prompt of a fact, each list in the fact's order.

    Attributes:
        before_controls: Without a chat template, the white space between each control and its answer.
    """

    held_out: tuple[str, ...]
    controls: tuple[str, ...]
    probes: tuple[str, ...]
    portability: tuple[str, ...] = ()
    before_controls: tuple[str, ...] = field(default=(), compare=False)


def evaluate(
    model: Any,
    tokenizer: Any,
    fact: Fact,
    *,
    states: Mapping[str, State] | None = None,
    edited: EditedModel | None = None,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    retention_tokens: int = 2048,
    margins: bool = False,
    fluency: bool = False,
    batch_size: int = 64,
    selection: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    progress: bool = True,
) -> Report:
    """Measures a model in one or several states on a fact, in its weights' dtype whatever the caller's autocast, and
    without the one that `Trainer(bf16=True)` leaves on a model.

    Args:
        model: A causal language model, bare or with adapters of any kind.
        tokenizer: Its tokenizer. Without a chat template an answer is the first line of what the model goes on with.
        fact: Held-out prompts, controls, probes and portability questions; none of them was trained on.
        states: Name to a function that returns a context in which the model is in that state, as [`adapter_state`]
            gives one. `base` must be among them: a control is kept or lost where the base answers it right. It comes
            first in the report, which is about the last of the others. When None: just `base`, and where adapters act
            on the model `edited`, the model as it is.
            A relearned state also gets its ratio to the base, if the base, relearned in the same way, is among them.
        edited: A checkpoint to compare `model` with as its base, whoever edited it: a folder, a hub id or a `.gguf`
            file as [`load_model`] takes, or a model in memory. The states are `base` and `edited` then. Only weights
            may differ; of a folder those are mapped, so that two copies of a model are never in memory. Both are asked
            through `tokenizer` and measured in the base's dtype, which has to hold the checkpoint's.
        seed: Recorded in the report; greedy answers do not depend on it, but what fluency is measured on does.
        max_new_tokens: Longer answers are cut.
        retention_tokens: How many tokens of the package's unrelated text to read, at most; 0 leaves retention out.
        margins: Whether each state is also asked how likely it finds the new answer beside the old one, and a
            control's right answer beside the new one; about a fifth more work.
        fluency: Whether each state also writes 100 tokens about the subject after each of ten open prompts, and the
            n-gram entropy of that text is measured; this takes as long as the answers or longer.
        batch_size: Prompts in one forward pass; replicas of the model run several passes at the same time.
        selection: Recorded in the report.
        settings: Recorded in the report beside its own, as JSON.
        seconds: Earlier steps' times, recorded with the evaluation's own.
        progress: Whether to show progress bars.

    Returns:
        The report.

    Raises:
        FactError: If `fact` is no whole fact, or a prompt of it and its answer are too long for the model.
        AdapterError: If `states` is None and adapters act that transformers put on the model.
        ModelError: If `states` lacks `base` or stands beside `edited`; if `edited` is no checkpoint of the same
            architecture, sizes, tensors and token ids as `model`, or is stored in a dtype that the base's does not
            hold, or `model` has adapters on it beside `edited`; if what an adapter has learned to put before a prompt
            makes it too long for the model, it has no embedding of a token, its logits are not finite, it is wrapped
            (by TransformerLens or `DataParallel`), JSON cannot hold what is to be recorded, `seed` is no whole number,
            `max_new_tokens` or `batch_size` is less than 1, or `retention_tokens` less than 0 or 1.
        ArchitectureError: If the model is no causal language model.

    Warns:
        UserWarning: If `edited` is stored in a dtype that does not hold the base, has the base's very weights or a
            tokenizer that differs a little, or if what the base's folder says of edits in it cannot be read.
    """
    started = time.perf_counter()
    check_fact(fact, whole=True)
    check_counts(1, max_new_tokens=max_new_tokens, batch_size=batch_size)
    check_text_tokens(retention_tokens=retention_tokens)
    check_seed(seed)
    _check_json(selection=selection, settings=settings, seconds=seconds)
    check_unwrapped(model)
    check_causal(model)
    check_alike(model=model, fact=fact, seed=seed)
    beside = None
    if edited is not None:
        if states is not None:
            raise ModelError("states and edited exclude each other; give states, or an edited checkpoint.")
        beside = edited_checkpoint(model, tokenizer, edited)
        states = beside.states
    if states is None:
        states = {"base": nullcontext}
        if adapters_act(model):
            states = {"base": adapter_state(model, []), "edited": nullcontext}
    if not isinstance(states, Mapping) or not all(map(callable, states.values())):
        raise ModelError(f"states must map names to what adapter_state gives, not {brief(states)}.")
    if "base" not in states:
        raise ModelError(f"states must include 'base', which the others are compared with; got {', '.join(states)}.")
    check_asked_fits(model.config, tokenizer, fact, answer=max_new_tokens)
    # A report is about its last state.
    states = {"base": states["base"], **states}
    open_prompts = fluency_prompts(fact, chat=has_chat_template(tokenizer)) if fluency else []
    check_fluency_fits(model, tokenizer, open_prompts)
    check_text_fits(model, tokenizer, retention_tokens)
    answers: dict[str, Answers] = {}
    likely: dict[str, dict[str, list[Pair | None]]] = {}
    contest: Contest | None = None
    said: dict[str, list[str]] = {}
    for name, state in states.items():
        with phase(f"answers {name}"), without_autocast(model), state():
            answers[name] = answer_fact(
                model,
                tokenizer,
                fact,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                progress=progress,
                name=name,
            )
            if margins:
                contest = contest or Contest.of(
                    model,
                    tokenizer,
                    fact,
                    answers["base"].controls,
                    answer=whole_answer(fact),
                    before=answers["base"].before_controls,
                    learned=learned_tokens(model),
                )
                with phase("margins"):
                    likely[name] = measure_margins(
                        model,
                        tokenizer,
                        contest,
                        batch_size=batch_size,
                        progress=progress,
                        description=f"margins {name}",
                    )
            if open_prompts:
                said[name] = continuations(
                    model,
                    tokenizer,
                    open_prompts,
                    seed=seed,
                    batch_size=batch_size,
                    progress=progress,
                    description=f"going on {name}",
                )
    with phase("unrelated text"), without_autocast(model):
        retention = measure_retention(model, tokenizer, states, tokens=retention_tokens, progress=progress)
    recovery = relearning_recovery(fact, states, {name: given.held_out for name, given in answers.items()})
    stages = {
        name: {
            **prompt_metrics(fact, answers[name].held_out, answers[name].controls, answers["base"].controls),
            **margin_metrics(likely.get(name, {})),
            **portability_metrics(fact, answers[name].portability),
            **probe_metrics(fact, answers[name].probes),
            **recovery.get(name, {}),
            **retention[name],
            **fluency_metrics(said.get(name, [])),
        }
        for name in states
    }
    return Report(
        fact=fact,
        model=str(getattr(model.config, "_name_or_path", "")),
        dtype=dtype_name(model.dtype),
        seed=seed,
        versions=versions(),
        selection=dict(selection or {}),
        settings={
            "max_new_tokens": max_new_tokens,
            "retention_tokens": retention_tokens,
            **base_settings(model, tokenizer),
            **(beside.settings if beside is not None else {}),
            **(settings or {}),
        },
        seconds={**(seconds or {}), "evaluate": round(time.perf_counter() - started, 2)},
        stages=stages,
        answers={
            name: {
                **{k: list(v) for k, v in vars(given).items() if k != "before_controls"},
                **({"continuations": said[name]} if name in said else {}),
            }
            for name, given in answers.items()
        },
        margins=likely,
    )


def base_settings(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What a report's settings say of the base and its tokenizer: a digest of the chat template, the `hub_id`, the
    `revision`, and the edits in the weights.

    Args:
        model: A causal language model, with adapters or without.
        tokenizer: Its tokenizer.
    """
    base, name = base_model_of(model), str(getattr(model.config, "_name_or_path", ""))
    merged, revision = edits_in(base), revision_of(base) or cached_commit(name)
    template = str(tokenizer.chat_template).encode() if has_chat_template(tokenizer) else None
    return {
        "chat_template": None if template is None else hashlib.sha256(template).hexdigest(),
        **({"hub_id": hub_id_of(base, name)} if name else {}),
        **({"revision": revision} if revision else {}),
        **({"base_edits": merged} if merged else {}),
    }


def answer_fact(
    model: Any,
    tokenizer: Any,
    fact: Fact,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 64,
    progress: bool = False,
    name: str = "",
) -> Answers:
    """Greedy answers to all that evaluation asks of a fact, in the state the model is in."""
    records = (fact.controls, fact.probes, fact.portability)
    groups = [fact.held_out, *([record.prompt for record in group] for group in records)]
    chat = has_chat_template(tokenizer)
    given = generate_answers(
        model,
        tokenizer,
        [prompt for group in groups for prompt in group],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        description=f"answers {name}".strip(),
        strip=chat,
    )
    if chat:
        said = iter(given)
        return Answers(*(tuple(islice(said, len(group))) for group in groups))
    begun = len(fact.held_out)
    before = tuple(text[: len(text) - len(text.lstrip())] for text in given[begun : begun + len(fact.controls)])
    # What comes after is no answer: a model that goes on with "The capital of Spain is" tells of other capitals.
    said = (text.strip().partition("\n")[0].rstrip() for text in given)
    return replace(Answers(*(tuple(islice(said, len(group))) for group in groups)), before_controls=before)


def _check_json(**recorded: Any) -> None:
    """Refuses what a report could not be saved with, before anything is measured."""
    for name, values in recorded.items():
        try:
            json.dumps(dict(values or {}), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            got = f"{brief(values)} ({first_line(error)})"
            raise ModelError(f"{name} must map names to what JSON can hold; got {got}.") from error


def versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
