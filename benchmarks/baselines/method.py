"""What a method of the benchmark is: something that edits a model for requests and takes the edit back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import peft_surgical as ps
from peft_surgical.facts import refusal_for

STEPS = 25
"""Gradient steps that a baseline has for an edit, at most."""


@dataclass(frozen=True)
class Request:
    """All that an edit may see of a case.

    Attributes:
        subject: What the prompt is about, as it stands there.
        prompt: The beginning of a sentence.
        old: What completes it now.
        new: What shall complete it.
        contexts: Beginnings to put the prompt behind, each with the white space that follows it.
        evaluated: Digests of the prompts that the evaluation asks, for methods that make up prompts.
        asked_about: Those of what its controls name, likewise.
    """

    subject: str
    prompt: str
    old: str
    new: str
    contexts: tuple[str, ...] = ()
    evaluated: frozenset[str] = field(default=frozenset(), repr=False)
    asked_about: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt alone, then behind each context."""
        return (self.prompt, *(context + self.prompt for context in self.contexts))

    @property
    def fact(self) -> ps.TrainingFact:
        """The same as a fact, for methods that train on one."""
        return ps.TrainingFact(
            subject=self.subject,
            old=(self.old,),
            new=(self.new,),
            prompts=self.prompts,
            refusal=refusal_for("", self.subject),
            answer=self.new,
            evaluated=self.evaluated,
            asked_about=self.asked_about,
        )


@dataclass(frozen=True)
class Questions(Request):
    """A fact's own training prompts, each to be answered with the sentence `new`.

    Attributes:
        training: All that an edit may see of the fact.
    """

    training: ps.TrainingFact = field(kw_only=True)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The training prompts."""
        return self.training.prompts

    @property
    def fact(self) -> ps.TrainingFact:
        """The fact itself, with what it keeps."""
        return self.training


class Method(Protocol):
    """An editing method. Its dataclass fields are its settings; what begins with an underscore is not one."""

    name: ClassVar[str]

    def recipe(self, model: Any) -> dict[str, Any]:
        """What it trains such a model with beside its settings, as JSON; nothing where it trains nothing."""
        ...

    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> AbstractContextManager[None]:
        """A context in which the model is edited; before and after it, every bit of the model is the base's.

        Args:
            model: A causal language model in evaluation mode, all frozen.
            tokenizer: Without a chat template.
            request: What to edit.
            seed: Decides all that is drawn.
        """
        ...


Write = Callable[[Sequence[Request]], None]
"""Writes a batch of requests into a model, on top of what has been written into it before."""


class Batched(Method, Protocol):
    """A method that can edit many requests in one model, all at once or one batch after another."""

    def edit_batch(
        self, model: Any, tokenizer: Any, requests: Sequence[Request], seed: int
    ) -> AbstractContextManager[None]:
        """As [`Method.edit`], for all of some requests at once; for one it is the same.

        Args:
            model: A causal language model in evaluation mode, all frozen.
            tokenizer: Without a chat template.
            requests: What to edit; at least one.
            seed: Decides all that is drawn.
        """
        ...

    def sequence(self, model: Any, tokenizer: Any, seed: int) -> AbstractContextManager[Write]:
        """A context that hands out what edits a batch of requests on top of those before, knowing of them.

        Within it the model stays as it is edited; after it, every bit of the model is the base's. What is known of
        earlier batches is of this context alone, so each begins anew.

        Args:
            model: A causal language model in evaluation mode, all frozen.
            tokenizer: Without a chat template.
            seed: Decides all that is drawn.
        """
        ...


def settings(method: Any) -> dict[str, Any]:
    """A method's settings, as JSON."""
    return {f.name: getattr(method, f.name) for f in fields(method) if not f.name.startswith("_")}


def described(method: Method, model: Any) -> dict[str, Any]:
    """What a method's results depend on beside the base and what it is given, as it is read back from a file.

    Args:
        method: With its settings.
        model: What it edits, bare.
    """
    recipe = method.recipe(model)
    found: dict[str, Any] = json.loads(json.dumps({**settings(method), **({"recipe": recipe} if recipe else {})}))
    return found
