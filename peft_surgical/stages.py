"""Two stages: unlearn the old answer, then learn the new one on top of the frozen first stage.

Each stage trains one surgical adapter. The paper merges the first into the weights before it trains the second; here
the first stays an adapter and is frozen, which is the same function, because scales multiply, and keeps both undoable.

```py
>>> first = unlearn(model, tokenizer, fact, config)
>>> second = learn(first.model, tokenizer, fact)
>>> second.save("out/learn")
```
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from .compute_dtype import compute_dtype
from .curvature import Curvature, measure_curvature, trained_layers
from .errors import AdapterError, ArchitectureError
from .facts import Fact, TrainingFact
from .lengths import check_length, fits
from .models import DTYPES
from .progress import progress_bar
from .prompts import EncodedAnswer, encode, encode_answer, span
from .retain import TopDistribution, base_answers, retain_prompts
from .sites import architecture_of
from .suffix import SuffixRunner, shared_prefix
from .training import Recipe, TrainingRecord, train
from .tuner import SurgicalIA3Config, SurgicalIA3Layer, SurgicalIA3Model, activate
from .tuner.saving import save_adapter
from .wording import variants

UNLEARN, LEARN = "unlearn", "learn"

# Not knowing is a way station: it is trained until it shows, and the steps go into the stage that the edit ends with.
RECIPES = {UNLEARN: Recipe(steps=9, hold=8), LEARN: Recipe()}


@dataclass(frozen=True)
class Retained:
    """What the stages keep, worked out once for both.

    Attributes:
        rows: Prompts with the base's answers.
        near: How many of them, from the first, are close to the fact.
        base: The base's distributions at each row's answer.
        curvature: What a change of the scales costs on these rows.
        selections: The scales it is of.
    """

    rows: tuple[EncodedAnswer, ...]
    near: int
    base: tuple[TopDistribution, ...]
    curvature: Curvature
    selections: Any


@dataclass(frozen=True)
class Stage:
    """A trained stage.

    Attributes:
        model: The PEFT model with this stage's adapter active, and those before it.
        adapter: This stage's adapter name.
        record: What training reached.
        retained: What training kept; pass it to the next stage, which then need not work it out again.
    """

    model: PeftModel
    adapter: str
    record: TrainingRecord
    retained: Retained

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves this stage's adapter, and only it, as PEFT saves an adapter, directly into `path`."""
        save_adapter(self.model, self.adapter, path)

    def to_dict(self) -> dict[str, Any]:
        """What training reached, as JSON."""
        return asdict(self.record)


def unlearn(
    model: Any,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    config: SurgicalIA3Config,
    *,
    recipe: Recipe | None = None,
    retained: Retained | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Stage:
    """Trains an adapter that answers the fact's prompts with its refusal.

    Args:
        model: A causal language model; becomes part of the returned PEFT model, as with `get_peft_model`.
        tokenizer: Its tokenizer.
        fact: Only its training part is read.
        config: Which coordinates get a scale.
        recipe: How to train; the stage's own in [`RECIPES`] when None.
        retained: What to keep, from an earlier stage on the same base; worked out when None.
        seed: Decides which rows meet in a step.
        progress: Whether to show progress bars.

    Returns:
        The stage; its adapter is named `unlearn`.

    Raises:
        AdapterError: If the model already has an adapter of that name.
        SelectionError: If the model does not have the coordinates of `config`.
    """
    return _stage(UNLEARN, model, tokenizer, fact.training, fact.refusal, config, recipe, retained, seed, progress)


def learn(
    model: Any,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    config: SurgicalIA3Config | None = None,
    *,
    recipe: Recipe | None = None,
    retained: Retained | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Stage:
    """Trains an adapter that answers the fact's prompts with its new answer, on top of what is active.

    Args:
        model: The model of an `unlearn` stage, whose adapter is frozen; or a bare model, to learn in one stage.
        tokenizer: Its tokenizer.
        fact: Only its training part is read.
        config: Which coordinates get a scale; those of the active adapter when None.
        recipe: How to train; the stage's own in [`RECIPES`] when None.
        retained: What to keep, as the `unlearn` stage returned it; worked out when None.
        seed: Decides which rows meet in a step.
        progress: Whether to show progress bars.

    Returns:
        The stage; its adapter is named `learn`.

    Raises:
        AdapterError: If there is neither a config nor an active adapter to take one from, or the model has an adapter
            named `learn`.
    """
    return _stage(LEARN, model, tokenizer, fact.training, fact.answer, config, recipe, retained, seed, progress)


def _stage(
    name: str,
    model: Any,
    tokenizer: Any,
    fact: TrainingFact,
    answer: str,
    config: SurgicalIA3Config | None,
    recipe: Recipe | None,
    retained: Retained | None,
    seed: int,
    progress: bool,
) -> Stage:
    recipe = recipe or RECIPES[name]
    # Before the model gets an adapter, so that a fact that cannot be used leaves none behind.
    prompts = [*fact.prompts, *_variants(fact, recipe.variants)]
    fact_rows = [encode_answer(tokenizer, prompt, answer) for prompt in prompts]
    given, made = fact_rows[: len(fact.prompts)], fact_rows[len(fact.prompts) :]
    for row in given:
        check_length(model.config, len(row.ids))
    fact_rows = [*given, *(row for row in made if fits(model.config, len(row.ids)))]
    before = list(model.base_model.active_adapters) if isinstance(model, PeftModel) else []
    peft_model = _with_adapter(model, name, config, before)
    activate(peft_model, [*before, name], trainable=[name])
    peft_model.eval()
    with denormals_flushed(), _computing(peft_model, recipe.compute_dtype) as working:
        if retained is None:
            with _base_of(working):
                # Made for any model; a small one has no room for some of them.
                near, far = (
                    [p for p in kind if fits(model.config, len(encode(tokenizer, p)) + recipe.retain_tokens)]
                    for kind in retain_prompts(fact, recipe.neighbours, recipe.general, seed)
                )
                answers = base_answers(
                    working, tokenizer, [*near, *far], max_new_tokens=recipe.retain_tokens, progress=progress
                )
            rows, near_count = tuple(answers), len(near)
        else:
            rows, near_count = retained.rows, retained.near
        every = [*fact_rows, *rows]
        prefix = shared_prefix([row.ids for row in every], [span(row)[0] for row in every])
        # Stages read the same hidden states below their first layer; an adapter below it would make them differ.
        configs = [peft_model.peft_config[adapter] for adapter in [*before, name]]
        layers, first = _first_layer(working, configs)
        runner = SuffixRunner(working, layers, first, every[0].ids[:prefix], pad=tokenizer.pad_token_id or 0)
        runner.add([row.ids for row in every])
        scaled = trained_layers(working, name)
        selections = peft_model.peft_config[name].selections
        if retained is None and not before and not any(layer.surgical_ia3_delta[name].any() for layer in scaled):
            # Scales of 1 are the base: one pass gives both.
            curvature, base = _curvature(
                runner, scaled, name, rows, near_count, len(fact_rows), recipe, seed, progress
            )
            retained = Retained(rows, near_count, base, curvature, selections)
        elif retained is None or retained.selections != selections:
            if retained is None:
                with _base_of(working):
                    base = tuple(_distributions(runner, rows, offset=len(fact_rows)))
            else:
                base = retained.base
            curvature, _ = _curvature(runner, scaled, name, rows, near_count, len(fact_rows), recipe, seed, progress)
            retained = Retained(rows, near_count, base, curvature, selections)
        record = train(
            runner,
            [layer.surgical_ia3_delta[name] for layer in scaled],
            fact_rows,
            retained.rows,
            retained.base,
            recipe,
            metric=retained.curvature.metric(recipe.damping),
            frozen=[_frozen(layer, name, before) for layer in scaled],
            near=retained.near,
            seed=seed,
            progress=progress,
            description=name,
        )
    activate(peft_model, [*before, name])
    return Stage(peft_model, name, record, retained)


def _variants(fact: TrainingFact, count: int) -> list[str]:
    made = dict.fromkeys(prompt for prompt in variants(fact.prompts) if fact.may_train_on(prompt))
    return [prompt for prompt in made if prompt not in fact.prompts][:count]


@torch.no_grad()
def _frozen(layer: SurgicalIA3Layer, name: str, before: Sequence[str]) -> torch.Tensor:
    """The product of earlier adapters' scales on the coordinates of `name`, `[selected]`."""
    product = torch.ones_like(layer.surgical_ia3_delta[name])
    for earlier in before:
        if earlier in layer.coordinates:
            product = product * layer.dense_scale(earlier)[layer.surgical_ia3_index[name]]
    return product


def _curvature(
    runner: SuffixRunner,
    layers: Sequence[SurgicalIA3Layer],
    name: str,
    rows: Sequence[EncodedAnswer],
    near: int,
    offset: int,
    recipe: Recipe,
    seed: int,
    progress: bool,
) -> tuple[Curvature, tuple[TopDistribution, ...]]:
    """The curvature of both kinds of retained rows, weighted, and the distributions met on the way."""
    distributions: dict[int, TopDistribution] = {}
    parts: list[Curvature] = []
    with progress_bar(len(rows), "what to keep", enabled=progress) as bar:
        for chosen, weight in ((range(near), recipe.near_weight), (range(near, len(rows)), 1.0)):

            def keep(i: int, logits: torch.Tensor, first: int = chosen.start) -> None:
                distributions[first + i] = TopDistribution.of(logits)
                bar.update(1)

            indices, own = [offset + i for i in chosen], [rows[i] for i in chosen]
            parts.append(weight * measure_curvature(runner, layers, name, indices, own, seed=seed, on_logits=keep))
    return parts[0] + parts[1], tuple(distributions[i] for i in range(len(rows)))


def _with_adapter(model: Any, name: str, config: SurgicalIA3Config | None, active: Sequence[str]) -> PeftModel:
    if isinstance(model, PeftModel):
        if name in model.peft_config:
            raise AdapterError(f"the model already has an adapter named {name!r}; delete it first.")
        others = [c for c in model.peft_config.values() if not isinstance(c, SurgicalIA3Config)]
        if others:
            raise AdapterError(
                f"a stage trains on surgical adapters, and the model has one of type {others[0].peft_type};"
                " merge it first."
            )
        if config is None and active:
            config = model.peft_config[active[-1]]
    if config is None:
        raise AdapterError(
            f"{name} needs a config on a model without adapters that act: there is none to take it from."
        )
    if isinstance(model, PeftModel):
        model.add_adapter(name, _trainable(config))
        return model
    return get_peft_model(model, _trainable(config), adapter_name=name)


def _trainable(config: SurgicalIA3Config) -> SurgicalIA3Config:
    """A copy of its own, since PEFT writes into the configuration that it is given."""
    own = copy.deepcopy(config)
    own.inference_mode = False
    return own


@contextmanager
def _base_of(model: Any) -> Iterator[None]:
    """The base's behaviour: every surgical layer of `model` switched off; they remember what was trainable."""
    layers = [module for module in model.modules() if isinstance(module, SurgicalIA3Layer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def _distributions(
    runner: SuffixRunner, rows: tuple[EncodedAnswer, ...], offset: int, batch_size: int = 32
) -> Iterator[TopDistribution]:
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        spans = [span(row) for row in chunk]
        logits = runner.logits([offset + start + i for i in range(len(chunk))], spans)
        for part in logits.split([stop - begin for begin, stop in spans]):
            yield TopDistribution.of(part)


@contextmanager
def _computing(peft_model: PeftModel, dtype: str) -> Iterator[Any]:
    """The transformers model to run while training: the peft model's own, or a copy in a faster dtype.

    The copy shares the adapters' float32 parameters, so that training it trains them; only frozen weights are copied.
    """
    base = peft_model.get_base_model()
    named = DTYPES[dtype]
    wanted = named if isinstance(named, torch.dtype) else compute_dtype(base.dtype, base.device)
    if wanted == base.dtype:
        yield base
        return
    adapter = {id(p) for name, p in base.named_parameters() if SurgicalIA3Model.prefix in name}
    memo: dict[int, Any] = {}
    for parameter in base.parameters():
        kept = id(parameter) in adapter or not parameter.is_floating_point()
        memo[id(parameter)] = parameter if kept else nn.Parameter(parameter.detach().to(wanted), requires_grad=False)
    for buffer in base.buffers():
        # Rotary frequencies are used in float32 whatever the weights are.
        memo[id(buffer)] = buffer
    working = copy.deepcopy(base, memo).eval()
    if working.device.type == "cpu":
        # There the fused attention kernel's backward pass takes longer than the plain products it saves.
        working.set_attn_implementation("eager")
    yield working


def _first_layer(model: Any, configs: list[SurgicalIA3Config]) -> tuple[nn.ModuleList, int]:
    """The decoder layers and the first that any adapter touches; none is skipped on an unknown architecture."""
    try:
        path = architecture_of(model.config.model_type).layers
        layers = model.get_submodule(path)
    except (ArchitectureError, AttributeError):
        return nn.ModuleList(), 0
    modules = [module for config in configs for module in config.selections or {}]
    if any(config.modules_to_save for config in configs):
        return layers, 0
    inside = [m.removeprefix(f"{path}.").partition(".")[0] for m in modules if m.startswith(f"{path}.")]
    return layers, min(map(int, inside)) if len(inside) == len(modules) else 0


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Lets the processor treat denormal numbers as zero: they are slow, and small gradients are full of them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
