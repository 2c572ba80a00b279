"""Localize a fact: which heads and MLPs hold the old answer up.

    loc = localize(model, tokenizer, fact)
    loc.top(10).components

Every layer is scored, averaged over the fact's prompts, by scorers that are plugins (`peft-surgical scorers` lists
them). Localization sees the training part of a fact only, never its held-out prompts and controls.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from .dtypes import dtype_name
from .errors import ModelError, ScorerError, said
from .facts import Fact, TrainingFact
from .localizing.asked import Asked, asked, checked
from .localizing.context import ScorerContext
from .localizing.controls import control_pairs
from .localizing.corruption import PromptPair
from .localizing.results import Localization
from .localizing.scores import SECONDS, Scores, check_notes, check_scores
from .localizing.specs import ScorerSpec, read_scorers
from .plugins import Catalogue, PluginWarning, load_scorers
from .profiling import phase
from .progress import tracked
from .texts.text import printable

DEFAULT_SCORERS = ("verified", "attribution")
"""Estimate all, measure the promising exactly, keep what is specific; attribution breaks ties and ranks neurons."""


@phase("localize")
def localize(
    model: nn.Module,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    scorers: Sequence[str] | None = None,
    *,
    seed: int = 0,
    prompts: int | None = None,
    max_tokens: int = 2048,
    progress: bool = True,
) -> Localization:
    """Score every head and MLP of a model for one fact.

    Args:
        model: A Hugging Face causal language model, without adapters and not quantized. It is left as it was, and its
            weights are not copied; only GPT-NeoX's `query_key_value` are, which TransformerLens splits. Hooks on its
            modules fire, those on fused projections and those that act by a token's position are refused, and autocast
            is set aside, also that which `Trainer(bf16=True)` leaves on a model.
        tokenizer: Its tokenizer.
        fact: The fact; only its training part is used. Where the tokenizer has a chat template, the answers are
            compared within a sentence, also where the fact gives a bare one and its first prompt can be read.
        scorers: Names of installed scorers, with options after a colon: `"attribution"`, `"attribution:steps=5"`,
            `"logit_drop:measure=old,sites=v+pre"`. `sites` (any scorer) says which projections to score: one of `z`,
            `v`, `q`, `k` for heads and one of `post`, `pre`, `pre_linear` for MLPs; `z+post` unless given. The first
            scorer is the one that `Localization.top` goes by. A single name is one scorer. [`DEFAULT_SCORERS`] unless
            given.
        seed: For the order of contrast subjects, for noise, and for scorers that draw.
        prompts: Use only the first so many of the fact's prompts.
        max_tokens: Bounds the memory above the weights: rows × positions of one forward pass; an eighth of it with
            gradients.
        progress: Show a progress bar on a terminal or in a notebook.

    Returns:
        The scores. A scorer that fails is left out with a [`PluginWarning`], and stands in `errors`; the others go on.

    Raises:
        ScorerError: When `scorers` are no names, one is not installed or has no such option, a built-in one takes no
            such value of an option, when all failed, or when `seed` or `max_tokens` is no whole number or out of
            range.
        FactError: When a prompt has no token that distinguishes the answers or is too short to be corrupted, or
            `prompts` is no positive whole number.
        ModelError: When it is no model, carries an adapter, is quantized, sharded, of float64, offloaded, not loaded
            or loaded under `torch.inference_mode()`, cannot be run or copied, gives logits that are not finite,
            computes something else than under TransformerLens, has a module whose replaced forward runs nothing under
            its hooks, or a hook that depends on a token's position or on how long a pass is, when a prompt is too long
            for it, or under `torch.inference_mode()`.
        ArchitectureError: When its architecture is not known or its modules are laid out otherwise, or it is no causal
            language model.
    """
    fact = checked(model, tokenizer, fact, seed=seed, prompts=prompts, max_tokens=max_tokens)
    if torch.is_inference_mode_enabled():
        raise ModelError("localization takes gradients, which torch.inference_mode() rules out; call it outside.")
    catalogue = load_scorers()
    specs = read_scorers(DEFAULT_SCORERS if scorers is None else scorers, catalogue)
    with asked(model, tokenizer, fact, seed=seed, prompts=prompts, max_tokens=max_tokens) as started:
        session = _Session(started, tokenizer, fact, catalogue, seed, max_tokens, progress)
        tables, errors = session.run(specs)
    # What a scorer asked another for before it failed is none of those that were to be.
    if not any(spec.text in tables for spec in specs):
        raise ScorerError("; ".join(errors.values()))
    for fault in errors.values():
        # Not before it is known that no error says the same.
        warnings.warn(fault, PluginWarning, stacklevel=2)
    return Localization(
        model=str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
        dtype=dtype_name(session.runs.dtype),
        shape=session.shape,
        subject=fact.subject,
        scorers=tuple(spec.text for spec in specs),
        tables=tables,
        corruption=tuple(session.records()),
        seed=seed,
        errors=errors,
    )


class _Session:
    """One localization under way: the prompts, and the scores so far."""

    def __init__(
        self,
        started: Asked,
        tokenizer: Any,
        fact: TrainingFact,
        catalogue: Catalogue,
        seed: int,
        max_tokens: int,
        progress: bool,
    ) -> None:
        self.runs, self.precise = started.runs, started.precise
        self.shape, self.pairs = started.shape, started.pairs
        self.tokenizer, self.fact, self.catalogue = tokenizer, fact, catalogue
        self.seed, self.max_tokens, self.progress = seed, max_tokens, progress
        self._tables: dict[str, Scores] = {}
        self._shared: dict[Hashable, Any] = {}
        self._under_way: list[str] = []

    def run(self, specs: Sequence[ScorerSpec]) -> tuple[dict[str, Scores], dict[str, str]]:
        """Tables of all scorers, the requested ones first, and the reasons of those that failed."""
        errors: dict[str, str] = {}
        for spec in specs:
            try:
                self.score(spec)
            except ScorerError as error:
                # What a plugin says goes into a file and onto a terminal.
                errors[spec.text] = printable(said(error))
        requested = [spec.text for spec in specs if spec.text in self._tables]
        return {name: self._tables[name] for name in [*requested, *self._tables]}, errors

    def score(self, spec: ScorerSpec) -> Scores:
        """The scores of one scorer, computed once."""
        if spec.text in self._under_way:
            circle = " → ".join([*self._under_way[self._under_way.index(spec.text) :], spec.text])
            raise ScorerError(f"scorers ask for each other's scores in a circle: {circle}.")
        if spec.text not in self._tables:
            notes: dict[str, Any] = {}
            started = time.perf_counter()
            context = ScorerContext(
                runs=self.runs,
                precise=self.precise,
                shape=self.shape,
                sites=spec.sites(self.shape),
                pairs=_own(self.pairs),
                controls=lambda: _own(self.controls),
                seed=self.seed,
                max_tokens=self.max_tokens,
                score=lambda text: copy.deepcopy(self.score(ScorerSpec.parse(text, self.catalogue, spec.projections))),
                once=self._once,
                notes=notes,
                track=partial(tracked, description=spec.text, enabled=self.progress),
            )
            self._under_way.append(spec.text)
            try:
                with self.runs.apart():
                    raw = spec.installed.scorer(context, **spec.options)
            except ScorerError as error:
                raise ScorerError(f"{spec.installed}: {said(error)}") from error
            except (Exception, SystemExit) as error:  # a plugin may raise anything
                raise ScorerError(f"{spec.installed} failed with {type(error).__name__}: {said(error)}") from error
            finally:
                self._under_way.pop()
            found = check_scores(raw, context.sites, self.shape, str(spec.installed))
            kept = {**check_notes(notes, str(spec.installed)), SECONDS: round(time.perf_counter() - started, 3)}
            self._tables[spec.text] = Scores(found.components, found.neurons, kept)
        return self._tables[spec.text]

    def _once(self, key: Hashable, function: Callable[[], Any]) -> Any:
        if key not in self._shared:
            with self.runs.apart():
                self._shared[key] = function()
        return self._shared[key]

    @cached_property
    def controls(self) -> tuple[PromptPair, ...]:
        """Control-like prompts, made on first use."""
        with self.runs.apart():
            generator = torch.Generator().manual_seed(self.seed)
            return control_pairs(self.tokenizer, self.fact, self.precise, generator, self.max_tokens)

    def records(self) -> Iterator[dict[str, Any]]:
        """How each prompt was corrupted, and what that did to the logit difference."""
        for pair in self.pairs:
            clean, corrupted = (round(value, 4) for value in pair.differences)
            rival = self.tokenizer.decode([pair.rival])
            record = {"prompt": pair.prompt, "method": pair.method, "other": pair.other, "rival": rival}
            # Not every token is a text of its own.
            yield {**record, "rival_token": pair.rival, "clean": clean, "corrupted": corrupted}


def _own(pairs: Iterable[PromptPair]) -> tuple[PromptPair, ...]:
    """Copies for one scorer: what it writes into them must not reach the next one."""
    return tuple(
        replace(
            pair,
            clean=pair.clean.clone(),
            corrupted=pair.corrupted.clone(),
            shift=None if pair.shift is None else pair.shift.clone(),
        )
        for pair in pairs
    )
