"""Learning a fact from one sentence under its subject's own keys.

Like [`learn_by_subject`] it reads one sentence, alone and behind a few beginnings, and does not train on the base's
answers: what enters an MLP alone tells where a change acts. A scale changes every token. A neuron that is rewritten to
fire at the subject ([`neurons`]) adds what it writes, its value, there and next to nothing elsewhere, so there is
little to hold. A step takes away a set share of the loss, but moves the subject's residual stream by no more than a
part of its length.

The texts that it is told apart from decide how well it tells its subject from another one. As with scales, the
sentence with other names in the subject's place is among them. Where the subject has several words, so is the sentence
about others whose names end alike, since a subject is read at its last word. Texts of tokens drawn at random
([`drawn`]) show what the package's own questions do not, and what the first neuron writes is kept apart from what the
second one reads ([`apart`]).

```py
>>> stage = ps.learn_keyed_by_subject(model, tokenizer, fact)
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import check_causal, decoder_layers, output_projections, residual_factor
from ..counts import check_amounts, check_counts, check_limits, check_positive, check_seed
from ..facts import Fact, TrainingFact, check_fact
from ..profiling import phase
from ..running.computing import check_compute_dtype, computing, denormals_flushed, plain_attention
from ..running.tails import TailRunner
from ..staging.placeable import check_bare
from ..staging.recipe import Recipe, check_recipe
from ..staging.stage import LEARN, Stage
from ..staging.subject_texts import NamedRows, texts_to_keep
from ..staging.training import train
from ..staging.training_here import training_here
from ..texts.lengths import padding
from ..texts.prompts import unanswered
from ..tuner.unchanged import unchanged_on_failure
from .apart import Apart, read_later
from .drawn import drawn_texts
from .firing import fired
from .keyed import keyed_layers
from .keyed_stage import KeyedStage
from .keys import Marked, stream_lengths
from .naming import framed, namesakes, under_aliases
from .neurons import find_neurons, place_neurons, set_neurons, settle
from .telling import named_by_any

# A value in a single layer holds in fewer wordings, and more layers do not hold in more; each costs time.
_LAYERS = 2
# Nothing is divided by less.
_LEAST = 1e-12
# By so many texts it is told what a neuron reads.
_SHOWN = 16


@dataclass(frozen=True)
class KeyedSubjectRecipe:
    """How [`learn_keyed_by_subject`] trains.

    Attributes:
        steps: The largest number of steps.
        share_of_loss: The share of the loss that a step is predicted to take away.
        length: The greatest length of a step, relative to the residual stream at the subject: the root of the sum of
            squares over layers. Where a norm stands behind the MLP (Gemma 3), the length is of what enters it; what
            leaves it may be longer.
        target_loss: Mean negative log-likelihood per answer token, nats, that every prompt must reach.
        batch: How many of the fact's prompts are in a step. All take turns.
        general: How many of the package's general questions are kept, beside its everyday requests.
        names: How many other names stand in for the subject in what is kept.
        namesakes: How many more names stand in for it that end as the subject does, where that has several words.
        drawn: How many texts of tokens drawn at random it is told apart from, if the vocabulary has as many tokens.
        ridge: This multiple of the mean of the diagonal is added to the diagonal of the second moment of what is kept.
        compute_dtype: As for [`Recipe`].

    Raises:
        ModelError: If `compute_dtype` is not one of those that `load_model` takes, or a number is out of range.
    """

    steps: int = 20
    share_of_loss: float = 0.75
    length: float = 0.15
    target_loss: float = 0.003
    batch: int = 24
    general: int = 300
    names: int = 400
    namesakes: int = 200
    drawn: int = 64
    ridge: float = 0.03
    compute_dtype: str = "auto"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        check_counts(0, steps=self.steps, general=self.general, names=self.names)
        check_counts(0, namesakes=self.namesakes, drawn=self.drawn)
        check_counts(1, batch=self.batch)
        check_amounts(share_of_loss=self.share_of_loss, length=self.length)
        check_positive(ridge=self.ridge)
        check_limits(target_loss=self.target_loss)


@phase("learn")
def learn_keyed_by_subject(
    model: Any,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    *,
    layers: Sequence[int] | None = None,
    recipe: KeyedSubjectRecipe | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Stage:
    """Trains a LoRA adapter of two neurons that give the new answer wherever the subject stands.

    As ROME (arXiv 2202.05262) it writes a value into an MLP under the subject's key, which here a neuron reads.

    Args:
        model: A bare causal language model; becomes part of the returned PEFT model, as with `get_peft_model`.
        tokenizer: Its tokenizer.
        fact: Only its training part is read; each of its prompts must name the subject. One prompt, alone and behind a
            few beginnings of other sentences, is enough.
        layers: In whose MLPs a neuron is rewritten; the first two of [`keyed_layers`] when None.
        recipe: How to train.
        seed: Decides which names stand in for the subject, which tokens are drawn, and which prompts meet in a step.
        progress: Whether to show progress bars.

    Returns:
        The stage; its adapter is named `learn`, and it has nothing retained to pass on.

    Raises:
        AdapterError: If the model has adapters already.
        FactError: If a prompt does not name the subject, or only within another name, or the tokenizer does not tell
            where, or does not know a token of the answer or the last one of the subject.
        SelectionError: If the model has no such layer, or the subject is not told apart in one.
        ModelError: If `seed` is no whole number, a prompt is too long for the model, its logits are not finite,
            weights that would be updated are quantized or offloaded, it is wrapped by `torch.compile`, under
            TransformerLens hooks or spread over processes, or under `torch.inference_mode`.
        ArchitectureError: If the model is no causal language model, its architecture is not known, PEFT takes its
            MLPs for experts, or its layers hand on several states a token.
    """
    check_fact(fact)
    check_recipe(recipe, KeyedSubjectRecipe)
    check_seed(seed)
    recipe, fact = recipe or KeyedSubjectRecipe(), fact.training
    check_bare(model, "keyed learning")
    check_causal(model)
    modules = output_projections(model, keyed_layers(model)[:_LAYERS] if layers is None else layers)
    named, company = NamedRows.of(model, tokenizer, fact), framed(model, tokenizer, fact)
    wider = NamedRows.of(model, tokenizer, company)
    with (
        training_here(model),
        unchanged_on_failure(model),
        denormals_flushed(),
        computing(peft_model := place_neurons(model, modules), recipe.compute_dtype) as working,
    ):
        subject = Marked(wider.rows, wider.inside)
        names = [subject, *under_aliases(working, tokenizer, company)]
        kept, first = _kept(working, tokenizer, company, wider, recipe, seed)
        ends = set[int]().union(*(name.tokens() for name in names))
        drawn = drawn_texts(working, tokenizer, recipe.drawn, seed, without=ends)
        # Of a small vocabulary they would be few, and what any text has.
        besides = [first, drawn] if len(drawn.rows) == recipe.drawn else [first]
        neurons = find_neurons(working, modules, names, kept, recipe.ridge, besides=besides)
        streams = stream_lengths(working, modules, subject)
        values = set_neurons(peft_model.get_base_model(), neurons)
        met = torch.cat([*fired(working, modules, neurons, subject).values()], dim=1).square().mean(1)
        later = read_later(working, modules, neurons, drawn_texts(working, tokenizer, _SHOWN, seed))
        pad = padding(model.config, tokenizer)
        runner = TailRunner(working, decoder_layers(working), min(modules.values()), pad=pad)
        with plain_attention(working):
            # What the words before its first name get is left out: the neuron was told apart from them.
            any_name = named_by_any(tokenizer, fact, fact.prompts, Marked(named.rows, named.marks))
            runner.add([row.read for row in named.rows], starts=[min(marks) for marks in any_name.marks])
            record = train(
                runner,
                values.values(),
                named.rows,
                [],
                [],
                _steps(recipe),
                metric=_metric(
                    streams, dict(zip(modules, met.tolist(), strict=True)), values, later, residual_factor(working)
                ),
                share_of_loss=recipe.share_of_loss,
                seed=seed,
                progress=progress,
                description=LEARN,
            )
        settle(values)
        return KeyedStage(peft_model.requires_grad_(False), LEARN, record, None, answer=fact.answer, names=fact.names)


def _steps(recipe: KeyedSubjectRecipe) -> Recipe:
    """Nothing is retained, and the metric measures lengths: `½ dᵀ F d` is half of a step's square."""
    return Recipe(
        steps=recipe.steps,
        step_kl=recipe.length**2 / 2,
        hold=recipe.steps,
        pull=0.0,
        target_loss=recipe.target_loss,
        margin=0.0,
        fact_batch=recipe.batch,
        compute_dtype=recipe.compute_dtype,
    )


def _metric(
    streams: Mapping[str, float],
    fired: Mapping[str, float],
    values: Mapping[str, nn.Parameter],
    later: Mapping[str, Tensor],
    factor: float,
) -> Apart:
    """Squared lengths of what values add at the subject, relative to the residual stream there; no step goes along
    what later neurons read."""
    costs = [
        torch.full_like(value, max(factor**2 * fired[name] / max(streams[name] ** 2, _LEAST), _LEAST))
        for name, value in values.items()
    ]
    return Apart.from_directions(costs, [later.get(name) for name in values])


def _kept(
    model: Any, tokenizer: Any, fact: TrainingFact, named: NamedRows, recipe: KeyedSubjectRecipe, seed: int
) -> tuple[list[Marked], Marked]:
    """What the subject is told apart from: kinds that count alike, all without first tokens; and first tokens,
    unless the subject is one."""
    texts = texts_to_keep(model, tokenizer, fact, general=recipe.general, names=recipe.names, seed=seed)
    kinds = [Marked.whole([unanswered(ids) for ids in kind]) for kind in texts]
    # The sentence itself, but for the subject, a part of whose name may be another one of its names.
    prompts = [unanswered(ids) for ids in named.prompts]
    any_name = named_by_any(tokenizer, fact, fact.prompts, Marked(prompts, named.inside))
    kinds.append(Marked.whole(prompts).but_for(any_name))
    kinds.append(namesakes(model, tokenizer, fact, recipe.namesakes, seed))
    return [kind for kind in kinds if any(kind.marks)], Marked.first_of(prompts, any_name.marks)
