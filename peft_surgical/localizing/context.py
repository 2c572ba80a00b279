"""What a scorer is given, and what it returns.

A scorer is a function `scorer(context, **options) -> {site: scores}`. It looks at some [`Site`]s of the model, on
pairs of a clean and a corrupted prompt, and returns one number a head or neuron: larger means that it matters more. A
whole scorer, the mean size of what each head writes:

    @torch.no_grad()
    def head_size(context, *, power: int = 1):
        "Mean size of a head's output at the answer position."
        totals = {site: 0 for site in context.sites if site.of_heads}
        for window in context.windows():
            activations, logits = context.runs.capture(window, window.clean, list(totals))
            for site in totals:
                totals[site] += activations[site][:, -1].norm(dim=-1).pow(power).sum(0)
        return {site: total / len(context.pairs) for site, total in totals.items()}
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..sites import ModelShape
from .corruption import PromptPair
from .runs import Runs, Site
from .window import Window

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from .scores import Scores

T = TypeVar("T")


class MLPScores(NamedTuple):
    """Scores of an MLP site whose own score is not the sum of its neurons'.

    Attributes:
        whole: The MLP's score.
        neurons: One score a neuron, `[d_mlp]`.
    """

    whole: float
    neurons: Float[Tensor, " d_mlp"]


SiteScores = Tensor | MLPScores | Sequence[float]
"""Scores of one site: `[n_heads]` (`[n_kv_heads]` for `k` and `v`); for an MLP, `[d_mlp]` whose sum is the MLP's
score, `[1]` for the MLP alone, or [`MLPScores`]."""

# Of a mapping's keys a type checker wants the very type: sites, names of hook points, or both.
Scorer = Callable[..., Mapping[Site, SiteScores] | Mapping[str, SiteScores] | Mapping[Site | str, SiteScores]]
"""`scorer(context, **options) -> {site: scores}`; a site may be named by its hook point."""


_Declared = TypeVar("_Declared", bound=Scorer)
_CHECK = "_peft_surgical_check"


def checked_by(check: Callable[..., Iterable[str] | None]) -> Callable[[_Declared], _Declared]:
    """Has a built-in scorer's options checked as they are read: a value that no model makes right waits for none.

    Args:
        check: Called with every option by its name; raises a [`ScorerError`] for such a value, and returns the other
            scorers that the options name, if any.
    """

    def declared(scorer: _Declared) -> _Declared:
        setattr(scorer, _CHECK, check)
        return scorer

    return declared


def check_of(scorer: Scorer) -> Callable[..., Iterable[str] | None] | None:
    """What a scorer was marked with by [`checked_by`], if it was."""
    return getattr(scorer, _CHECK, None)


@dataclass(frozen=True, eq=False)
class ScorerContext:
    """One localization, as a scorer sees it. Of the fact, only what training may see is in here.

    Attributes:
        runs: Forward passes in the model's own precision. `capture(window, window.clean, sites)` gives activations by
            site, `[prompt, pos, head, d_head]` or `[prompt, pos, neuron]`, and logits after the last position,
            `[prompt, vocab]`; `gradients(window, window.clean, sites)` activations and their gradients of the logit
            difference.
        precise: The same in float32, without gradients, for effects that are small differences.
        shape: The model's sizes.
        sites: What to score: at most one projection of heads and at most one of MLPs, in every layer. A scorer may
            leave some out. Each has a hook point `name`, a `layer`, a `size` and `of_heads`.
        pairs: The prompts. Each has token ids `clean` and `corrupted`, `[pos]`, and the tokens of the answers: `old`,
            `new` and `rival`, which is what the model says to the corrupted prompt.
        controls: The same for prompts about other things, with the model's own answer in the place of the old one;
            made on first use from the fact's `contrast` and `retain` prompts, and empty when it has neither.
        seed: For anything random.
        max_tokens: Rows × positions of one forward pass; with gradients an eighth of it.
        score: The scores of another scorer, by its name, computed once; a copy, like the prompts.
        notes: JSON values that shall stand in the localization beside the scores.
        track: Wraps an iterable in a progress bar: `context.track(items, total)`.
        once: What a function returns, computed once for all scorers of a localization that give the same key:
            `context.once(("estimate", context.sites), estimate)`. Keys of different scorers must not meet: begin them
            with a name.
    """

    runs: Runs
    precise: Runs
    shape: ModelShape
    sites: tuple[Site, ...]
    pairs: tuple[PromptPair, ...]
    controls: Callable[[], tuple[PromptPair, ...]]
    seed: int
    max_tokens: int
    score: Callable[[str], Scores]
    notes: dict[str, Any] = field(default_factory=dict)
    track: Callable[[Iterable[T], int], Iterable[T]] = lambda items, total: items
    once: Callable[[Hashable, Callable[[], T]], T] = lambda key, function: function()

    @property
    def model(self) -> TransformerBridge:
        """The model under TransformerLens hooks. Give it token ids; it has no tokenizer.

        What a scorer makes of it is its own, and another scorer finds it as it was: hooks, TransformerLens's switches
        (`set_use_attn_result`), folded weights (`enable_compatibility_mode`), a cast (`float`) and settings. But its
        weights are those of the user's model: what is written into them stays.
        """
        return self.runs.bridge

    def windows(self, pairs: Sequence[PromptPair] | None = None, *, whole: bool = False) -> Iterator[Window]:
        """The prompts in batches that a pass with gradients can hold; left-padded and masked.

        Args:
            pairs: These prompts instead of the fact's.
            whole: All positions, not only those that the corruption can change.

        Yields:
            Windows with input embeddings `clean` and `corrupted`, `[prompt, pos, d_model]`, whose last position is the
            one that the answer follows, and `difference(logits)`: logits of `old` less those of `rival`, `[prompt]`.

        Raises:
            ModelError: If a prompt is too long for the model.
        """
        yield from self.runs.windows(self.pairs if pairs is None else pairs, self.max_tokens // 8, whole=whole)

    def generator(self) -> torch.Generator:
        """A fresh random generator at the localization's seed."""
        return torch.Generator().manual_seed(self.seed)
