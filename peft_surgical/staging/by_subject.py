"""Learning a fact from one sentence, by its subject and not by the sentence.

Trained on one sentence, scales learn the sentence: they act on its last tokens as readily as on its subject's, and
what they learn there holds for any subject ("The official language of Norway is" …) and for no other wording. So here
the scales act, while they are trained, on the last token of the subject alone, which is where models look facts up
(Meng et al., arXiv 2202.05262), in the MLPs of early layers; and each step is the natural gradient in a metric that
says how far a change of scales moves *all other* tokens: those of the same sentence, of the same sentence with other
names in it, and of other text (`displacement`). Afterwards they act everywhere, as scales do.

```py
>>> stage = ps.learn_by_subject(model, tokenizer, fact)
```
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..adapters.halves import settle_on_half
from ..architectures import check_causal, decoder_layers
from ..counts import check_amounts, check_counts, check_limits, check_positive, check_seed
from ..errors import SelectionError
from ..facts import Fact, TrainingFact, check_fact
from ..profiling import phase
from ..progress import progress_bar
from ..running.computing import check_compute_dtype, computing, denormals_flushed, plain_attention
from ..running.tails import TailRunner
from ..seeding import drawing
from ..sites import ModelShape
from ..texts.lengths import padding
from ..texts.prompts import EncodedAnswer, answer_ids, span
from ..tuner import SurgicalIA3Config, SurgicalIA3Layer, activate
from ..tuner.unchanged import unchanged_on_failure
from ..wrapped import check_module
from .acting import scaling_at
from .displacement import NEURONS_ONLY, Displacement, measure_displacement, neuron_modules
from .placeable import check_bare
from .recipe import TrainingRecord, check_recipe
from .stage import LEARN, Stage, check_config, place_adapter
from .subject_texts import NamedRows, texts_to_keep
from .training import check_finite, endless
from .training_here import training_here


@dataclass(frozen=True)
class SubjectRecipe:
    """How [`learn_by_subject`] trains.

    Attributes:
        steps: The largest number of steps.
        length: How long a step is: the root of the mean squared displacement that it is predicted to cause, relative
            to the residual stream, added up with weights over the three kinds of text that are kept.
        shrink: A step's length is multiplied by this each time that the loss has risen.
        target_loss: Mean negative log-likelihood per answer token of a step's prompts, nats, at which training stops.
        batch: How many of the fact's prompts are in a step. All take turns.
        general: How many of the package's general questions are kept, beside its everyday requests.
        names: How many other names stand in for the subject in what is kept.
        other_weight: How much more the sentences with other names count than other text, each kind by the mean over
            its tokens. The fact's own sentences, without the subject's last tokens, count as much as these.
        damping: This multiple of the mean of the diagonal of each layer's metric is added to that diagonal.
        compute_dtype: As for [`Recipe`].

    Raises:
        ModelError: If `compute_dtype` is not one of those that `load_model` takes, or a number is out of range.
    """

    steps: int = 20
    length: float = 0.06
    shrink: float = 0.6
    target_loss: float = 0.01
    batch: int = 24
    general: int = 300
    names: int = 400
    other_weight: float = 10.0
    damping: float = 1e-3
    compute_dtype: str = "auto"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        check_counts(0, steps=self.steps, general=self.general, names=self.names)
        check_counts(1, batch=self.batch)
        check_amounts(length=self.length, shrink=self.shrink, other_weight=self.other_weight)
        check_positive(damping=self.damping)
        check_limits(target_loss=self.target_loss)


def subject_components(model: Any) -> list[str]:
    """The MLPs of the first third of a model's layers, where models look subjects up (arXiv 2202.05262).

    Args:
        model: A causal language model.

    Raises:
        ModelError: If it is no model.
        ArchitectureError: If the model's architecture is not known.
    """
    check_module(model)
    count = max(1, ModelShape.from_config(model.config).n_layers // 3)
    return [f"L{layer}.mlp" for layer in range(count)]


@phase("learn")
def learn_by_subject(
    model: Any,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    config: SurgicalIA3Config | None = None,
    *,
    recipe: SubjectRecipe | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Stage:
    """Trains an adapter that gives the new answer wherever the subject stands.

    While it trains, its scales act on the subject's last token alone, where models look facts up (arXiv 2202.05262);
    afterwards they act everywhere.

    Args:
        model: A bare causal language model; becomes part of the returned PEFT model, as with `get_peft_model`.
        tokenizer: Its tokenizer.
        fact: Only its training part is read; each of its prompts must name the subject. One prompt, alone and behind a
            few beginnings of other sentences, is enough.
        config: Which neurons get a scale: MLPs with `projections=["post"]`; those of [`subject_components`] when None.
        recipe: How to train.
        seed: Decides which names stand in for the subject, and which prompts meet in a step.
        progress: Whether to show progress bars.

    Returns:
        The stage; its adapter is named `learn`, and it has nothing retained to pass on.

    Raises:
        AdapterError: If the model has adapters already, or `config` is no `SurgicalIA3Config`.
        FactError: If a prompt does not name the subject, or only within another name, or the tokenizer does not tell
            where, or does not know a token of the answer or the last one of the subject.
        SelectionError: If `config` scales anything but neurons of MLPs, or what the model does not have, or if the
            model's weights are quantized.
        ModelError: If `seed` is no whole number, a prompt is too long for the model, its logits are not finite,
            weights that `config` scales are offloaded, it is wrapped by `torch.compile`, under TransformerLens hooks
            or spread over processes, or under `torch.inference_mode`.
        ArchitectureError: If the model is no causal language model, or its architecture is not known.
    """
    check_fact(fact)
    check_recipe(recipe, SubjectRecipe)
    check_seed(seed)
    check_config(config)
    recipe, fact = recipe or SubjectRecipe(), fact.training
    check_bare(model, "learning by subject")
    check_causal(model)
    named = NamedRows.of(model, tokenizer, fact)
    if config is None:
        components = subject_components(model)
        config = SurgicalIA3Config(components=components, projections=["post"], task_type="CAUSAL_LM")
    resolved = copy.deepcopy(config)
    resolved.resolve(model.config)
    if resolved.modules_to_save:
        raise SelectionError(NEURONS_ONLY)
    modules = neuron_modules(model, resolved.selections or {})
    with training_here(model), unchanged_on_failure(model):
        peft_model = place_adapter(model, LEARN, config, [])
        activate(peft_model, [LEARN], trainable=[LEARN])
        peft_model.eval()
        with denormals_flushed(), computing(peft_model, recipe.compute_dtype) as working:
            kept = displacement_kept(working, modules, tokenizer, fact, named, recipe, seed)
            with plain_attention(working):
                record = _train(
                    working, modules, named, kept, recipe, seed, padding(model.config, tokenizer), progress
                )
        activate(peft_model, [LEARN])
    return Stage(peft_model, LEARN, record, None, answer=fact.answer)


@phase("displacement")
def displacement_kept(
    model: Any,
    modules: Mapping[str, int],
    tokenizer: Any,
    fact: TrainingFact,
    named: NamedRows,
    recipe: SubjectRecipe,
    seed: int,
) -> Displacement:
    """How far scales move the tokens of other text and, but for the subject's, of the fact's own prompts."""
    general, others = texts_to_keep(model, tokenizer, fact, general=recipe.general, names=recipe.names, seed=seed)
    total = measure_displacement(model, modules, LEARN, general)
    for close, leave_out in ((others, None), (named.prompts, named.inside)):
        total += recipe.other_weight * measure_displacement(model, modules, LEARN, close, leave_out=leave_out)
    return total


@phase("steps")
def _train(
    model: Any,
    modules: Mapping[str, int],
    named: NamedRows,
    kept: Displacement,
    recipe: SubjectRecipe,
    seed: int,
    pad: int,
    progress: bool,
) -> TrainingRecord:
    factors, rows = kept.factors(recipe.damping), named.rows
    layers = [model.get_submodule(name) for name in modules]
    parameters = [layer.surgical_ia3_delta[LEARN] for layer in layers]
    # Before its subject nothing of a sentence changes.
    runner = TailRunner(model, decoder_layers(model), min(modules.values()), pad=pad)
    runner.add([row.read for row in rows], starts=named.starts)
    order = endless(range(len(rows)), drawing(seed))
    latest = [math.inf] * len(rows)
    length, before, reached, step = recipe.length, math.inf, False, 0
    started = time.perf_counter()
    with progress_bar(recipe.steps, LEARN, enabled=progress) as bar:
        while True:
            chosen = list(islice(order, min(recipe.batch, len(rows))))
            nll = _losses(runner, layers, chosen, rows, named.marks)
            for i, values in zip(chosen, nll, strict=True):
                latest[i] = float(values.detach().mean())
            loss = torch.cat(nll).mean()
            now = float(loss.detach())
            check_finite(now, model.dtype)
            reached = now <= recipe.target_loss
            bar.set_postfix(loss=f"{now:.3f}", refresh=False)
            if reached or step == recipe.steps:
                break
            if now > before:
                length *= recipe.shrink
            before = now
            gradients = torch.autograd.grad(loss, parameters)
            _step(parameters, gradients, factors, length)
            step += 1
            bar.update(1)
    settle_on_half(parameters, [torch.ones_like(parameter) for parameter in parameters])
    return TrainingRecord.of(latest, steps=step, kl=None, reached=reached, started=started, dtype=model.dtype)


def _losses(
    runner: TailRunner,
    layers: Sequence[SurgicalIA3Layer],
    chosen: Sequence[int],
    rows: Sequence[EncodedAnswer],
    marks: Sequence[Sequence[int]],
) -> list[Float[Tensor, " token"]]:
    """Each chosen row's negative log-likelihood per answer token, the scales acting on the marked tokens only."""
    own = [rows[i] for i in chosen]
    where = torch.zeros(len(own), runner.width(chosen), 1, dtype=torch.float32, device=runner.device)
    for row, i in enumerate(chosen):
        # An answer's last token is not run, and may be the subject's.
        where[row, [mark - runner.starts[i] for mark in marks[i] if mark < len(rows[i].read)]] = 1
    with scaling_at(runner.model, layers, LEARN, where):
        logits = runner.logits(chosen, [span(row) for row in own]).float()
    labels = torch.tensor([token for row in own for token in answer_ids(row)], device=logits.device)
    losses = F.cross_entropy(logits, labels, reduction="none")
    return list(losses.split([len(answer_ids(row)) for row in own]))


@torch.no_grad()
def _step(parameters: Sequence[Tensor], gradients: Sequence[Tensor], factors: Sequence[Tensor], length: float) -> None:
    directions = [
        torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        for gradient, factor in zip(gradients, factors, strict=True)
    ]
    squared = sum(float(gradient @ direction) for gradient, direction in zip(gradients, directions, strict=True))
    if squared <= 0:
        return
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.sub_(length / squared**0.5 * direction)
