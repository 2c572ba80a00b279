"""Learning a fact under its subject's own keys: a neuron in each of a few layers, which fires where it is named.

A scale acts on every token alike. A neuron that is rewritten to fire at the subject ([`neurons`]) adds what it writes,
its value, there and next to nothing elsewhere. ROME (arXiv 2202.05262) writes one key and value into one layer, and
MEMIT (arXiv 2210.07229) into several, from a value that one sentence gives. Here the values of all layers are trained
together on all of a fact's prompts, with the loop, loss and metric of the stages of `edit`. On what those keep they
are held to what the base answers without the few neurons that are taken, which is nearly the same. There a value does
so little that the metric alone would allow steps of any length, so they have a second bound, by the loss.

The neurons are a stock LoRA adapter of rank 1 (2 where one module is a gated MLP's whole input): on the input
projections the difference of a row, frozen, and on the output projection that of a column, which is what trains.

```py
>>> stage = learn_keyed(model, tokenizer, fact)
>>> stage.save("out/keyed")
>>> PeftModel.from_pretrained(base, "out/keyed")
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn

from ..architectures import check_causal, decoder_layers, output_projections
from ..counts import check_amounts, check_counts, check_positive, check_seed, check_switches
from ..errors import FactError
from ..facts import Fact, TrainingFact, check_fact
from ..profiling import phase
from ..progress import progress_bar
from ..running.computing import computing, denormals_flushed, plain_attention
from ..running.replicas import Replica
from ..running.tails import TailRunner
from ..sites import ModelShape
from ..staging.curvature import Curvature, RowGradients, sample_curvature
from ..staging.measured import Measured
from ..staging.placeable import check_bare
from ..staging.recipe import Recipe, check_recipe
from ..staging.retain import TopDistribution, spaced
from ..staging.retained import base_rows
from ..staging.stage import LEARN, Stage
from ..staging.trained_rows import check_retain_fits, training_rows
from ..staging.training import train
from ..staging.training_here import training_here
from ..staging.whole_answers import in_sentences_of
from ..texts.lengths import padding
from ..texts.prompts import EncodedAnswer, answer_count
from ..texts.subjects import check_ends, subject_ends
from ..texts.topics import relation_prompts
from ..tuner.unchanged import unchanged_on_failure
from ..wrapped import check_module
from .firing import fire_from
from .keyed_stage import KeyedStage
from .keys import Marked
from .neurons import find_neurons, place_neurons, set_neurons, settle
from .other_names import with_other_names
from .telling import named_by_any, run_from, told_apart

# An adapter of the demo model, in half precision, then takes 54 KB.
_LAYERS = 4


@dataclass(frozen=True)
class KeyedRecipe(Recipe):
    """How [`learn_keyed`] trains: the fields of a [`Recipe`], with defaults of its own, and five more.

    `undo` is not used: nothing is frozen below.

    Attributes:
        held: How many of the kept rows far from the fact, evenly spaced, limit what neurons write in training. What
            neurons read is told apart from all of them.
        share_of_loss: The largest share of the fact's loss that a step is predicted to take away.
        namesakes: How many others, with names that end as the subject's does, it is told apart from. There are none
            where its name is a single word.
        ridge: This multiple of the mean of the diagonal is added to the diagonal of the second moment of what is kept.
        other_names: Whether a fact about a country that gives no aliases has the country's other names and, where
            people ask so ("the French capital"), its adjective, with a few more prompts that have it.

    Raises:
        ModelError: As for [`Recipe`].
    """

    hold: int = 10
    # To make the answer likelier still costs what is kept next to nothing: neurons are shut there.
    target_loss: float = 0.05
    margin: float = 0.02
    fact_batch: int = 12
    near_batch: int = 12
    # At nearly all that is far the neurons are shut, where more rows would say the same.
    far_batch: int = 2
    retain_tokens: int = 8
    held: int = 16
    # Neurons are told apart from what is kept, and fewer requests would leave kinds of text out.
    everyday: int = 62
    general: int = 60
    share_of_loss: float = 0.5
    namesakes: int = 60
    ridge: float = 0.03
    other_names: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(0, namesakes=self.namesakes, held=self.held)
        check_amounts(share_of_loss=self.share_of_loss)
        check_positive(ridge=self.ridge)
        check_switches(other_names=self.other_names)


def keyed_layers(model: Any) -> list[int]:
    """Four of a model's layers, spaced by a sixth of their number: of 30 layers 5, 10, 15 and 20.

    Of a model with few layers they are fewer. Neighbouring layers read nearly the same off a subject. In the first
    layer the subject is hardly more than its token, whatever the text, and the last layers tell it apart least well.

    Args:
        model: A causal language model.

    Raises:
        ModelError: If it is no model.
        ArchitectureError: If the model's architecture is not known.
    """
    check_module(model)
    count = ModelShape.from_config(model.config).n_layers
    spread = (part * count // (_LAYERS + 2) for part in range(1, _LAYERS + 1))
    # Of a model with few layers neither the first nor the last, if it has others.
    return sorted({min(max(1, layer), max(1, count - 2), count - 1) for layer in spread})


@phase("learn")
def learn_keyed(
    model: Any,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    *,
    layers: Sequence[int] | None = None,
    recipe: KeyedRecipe | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Stage:
    """Trains a LoRA adapter of a few neurons that give the new answer where the subject is named.

    What a neuron reads is found in closed form, by a key as in ROME (arXiv 2202.05262), and what it writes is trained.

    The neurons of an edit that was merged into the model are left alone, and so are by [`edit_keyed`] those of edits
    that it is made on top of. Two edits that were made apart on one base may rewrite the same neurons, and then undo
    each other where both act.

    Args:
        model: A bare causal language model; becomes part of the returned PEFT model, as with `get_peft_model`.
        tokenizer: Its tokenizer.
        fact: Only its training part is read. Prompts that name the subject by none of its names are trained on, and
            change nothing. A bare answer is taught as by [`learn`].
        layers: In whose MLPs a neuron is rewritten; those of [`keyed_layers`] when None.
        recipe: How to train.
        seed: Decides which rows meet in a step, and draws the signs that the curvature is estimated with.
        progress: Whether to show progress bars.

    Returns:
        The stage; its adapter is named `learn`, and it has nothing retained to pass on.

    Raises:
        AdapterError: If the model has adapters already.
        FactError: If no prompt names the subject, by any of its names, or the tokenizer does not know a token of the
            answer or the last one of the subject.
        SelectionError: If the model has no such layer, or the subject is not told apart in one.
        ModelError: If `seed` is no whole number, a prompt is too long for the model, its logits are not finite, its
            weights are quantized or offloaded, it is wrapped by `torch.compile` or spread over processes, or under
            `torch.inference_mode`.
        ArchitectureError: If the model is no causal language model, its architecture is not known, or PEFT takes its
            MLPs for experts.
    """
    check_fact(fact)
    check_recipe(recipe, KeyedRecipe)
    check_seed(seed)
    recipe = recipe or KeyedRecipe()
    check_bare(model, "keyed learning")
    check_causal(model)
    modules = output_projections(model, keyed_layers(model) if layers is None else layers)
    with training_here(model):
        fact = in_sentences_of(model, tokenizer, fact.training)
    fact = with_other_names(fact, tokenizer) if recipe.other_names else fact
    check_retain_fits(model, tokenizer, fact, recipe)
    prompts, rows = training_rows(model, tokenizer, fact, recipe, fact.answer)
    own = Marked(rows, subject_ends(tokenizer, prompts, fact.subject, rows, fact.contrast))
    check_ends(tokenizer, fact.subject, own.rows, own.marks)
    named = named_by_any(tokenizer, fact, prompts, own)
    if not any(named.marks):
        raise FactError(f"no prompt names the subject {fact.subject!r}, by which to learn.")
    with (
        training_here(model),
        unchanged_on_failure(model),
        denormals_flushed(),
        computing(peft_model := place_neurons(model, modules), recipe.compute_dtype) as working,
    ):
        kept = base_rows(working, tokenizer, fact, recipe, seed, progress, besides=relation_prompts(fact))
        held = (*kept.rows[: kept.near], *spaced(kept.rows[kept.near :], recipe.held))
        starts, begin = run_from(named, held)
        names, kinds, first = told_apart(
            working, tokenizer, fact, own, named, starts, kept, namesakes=recipe.namesakes, seed=seed
        )
        neurons = find_neurons(working, modules, names, kinds, recipe.ridge, besides=[first])
        values = set_neurons(peft_model.get_base_model(), neurons)
        origin = [value.detach().clone() for value in values.values()]
        held_from = fire_from(working, modules, neurons, held, begin)
        run = [(row.read, start) for row, start in zip(held, held_from, strict=True) if start is not None]
        pad = padding(model.config, tokenizer)
        runner = TailRunner(
            working, decoder_layers(working), min(modules.values()), pad=pad, tokens=recipe.pass_tokens
        )
        with plain_attention(working):
            runner.add(
                [*(row.read for row in rows), *(read for read, _ in run)], starts=[*starts, *(own for _, own in run)]
            )
            curvature, base = _measured(runner, values, held, held_from, kept.near, len(rows), recipe, seed, progress)
            record = train(
                runner,
                values.values(),
                rows,
                held,
                base,
                recipe,
                metric=curvature.metric(recipe.damping),
                origin=origin,
                near=kept.near,
                share_of_loss=recipe.share_of_loss,
                seed=seed,
                progress=progress,
                description=LEARN,
            )
        settle(values)
        return KeyedStage(peft_model.requires_grad_(False), LEARN, record, None, answer=fact.answer, names=fact.names)


@phase("curvature")
def _measured(
    runner: TailRunner,
    values: Mapping[str, nn.Parameter],
    held: Sequence[EncodedAnswer],
    held_from: Sequence[int | None],
    near: int,
    offset: int,
    recipe: Recipe,
    seed: int,
    progress: bool,
) -> tuple[Curvature, list[TopDistribution | None]]:
    """The curvature of the values on the rows that training holds them to, of which the first `near` are close to the
    fact, and the distributions there before training; where no neuron fires, none."""

    def watching(replica: Replica) -> AbstractContextManager[RowGradients]:
        return values_watched(replica.model, [*values])

    sample = partial(sample_curvature, runner, [*values.values()], watching)
    options = {"draws": recipe.draws, "seed": seed, "tokens": recipe.pass_tokens}
    run = (i for i, start in enumerate(held_from) if start is not None)
    places = dict(zip(run, count(offset), strict=False))
    base: list[TopDistribution | None] = [None] * len(held)
    found = []
    with progress_bar(len(places), "what to keep", enabled=progress) as bar:
        for kind, weight in ((range(near), recipe.near_weight), (range(near, len(held)), 1.0)):
            own = [i for i in kind if i in places]
            measured = Measured.sampled(
                sample,
                [places[i] for i in own],
                [held[i] for i in own],
                on_row=lambda: bar.update(1),
                **options,
            )
            for i, distribution in zip(own, measured.base, strict=True):
                base[i] = distribution
            # The mean is over the others' positions, too.
            part = answer_count(held[i] for i in own) / max(answer_count(held[i] for i in kind), 1)
            found.append(weight * part * measured.curvature)
    return found[0] + found[1], base


@contextmanager
def values_watched(model: Any, names: Sequence[str]) -> Iterator[RowGradients]:
    """Takes down, in a backward pass, each row's own gradient with respect to each module's value: how far the
    neuron fires times the slope of what the value is added to, summed over the row's tokens."""
    found = RowGradients()

    def watch(position: int, name: str) -> Any:
        module = model.get_submodule(name)
        direction = module.lora_A[LEARN].weight[0]

        def watched(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            met = (args[0].detach().to(direction) @ direction)[..., None]

            def keep(slope: Tensor) -> None:
                found.gradients[position] = (met * slope).reshape(found.rows, found.tokens, -1).sum(1)

            output.register_hook(keep)

        return module.register_forward_hook(watched)

    with ExitStack() as hooked:
        for position, name in enumerate(names):
            hooked.enter_context(watch(position, name))
        yield found
