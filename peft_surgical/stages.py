"""Two stages: unlearn the old answer, then learn the new one on top of the frozen first stage.

Each stage trains one surgical adapter. The paper merges the first into the weights before it trains the second; here
the first stays an adapter and is frozen, which is the same function, because scales multiply, and keeps both undoable.
The second adapter begins by taking back what the first one changed (`Recipe.undo`), so it says nothing by itself.

```py
>>> first = unlearn(model, tokenizer, fact, config)
>>> second = learn(first.model, tokenizer, fact)
>>> second.save("out/learn")
```
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peft import PeftModel
from torch import nn

from .adapters.halves import settle_on_half
from .architectures import architecture_of, check_causal
from .counts import check_seed
from .errors import ArchitectureError
from .facts import Fact, TrainingFact, check_fact
from .profiling import phase
from .running.alike import check_alike
from .running.beginnings import shared_prefix
from .running.computing import computing, denormals_flushed, plain_attention
from .running.sharing import check_shareable
from .running.suffix import SuffixRunner
from .staging.origins import check_origin, origin_of
from .staging.placeable import check_whole
from .staging.recipe import Recipe, check_recipe
from .staging.retained import Retained, base_rows, check_retained, measure_retained
from .staging.stage import LEARN, UNLEARN, Stage, check_config, place_adapter
from .staging.trained_rows import check_retain_fits, training_rows
from .staging.training import train
from .staging.training_here import training_here, training_only
from .staging.whole_answers import in_sentences_of
from .texts.lengths import padding
from .texts.prompts import span
from .tuner import SurgicalIA3Config, activate
from .tuner.layer import layers_with
from .tuner.unchanged import unchanged_on_failure
from .wrapped import check_module

# Not knowing is a way station: it is trained until it shows, and the steps go into the stage that the edit ends with.
RECIPES = {UNLEARN: Recipe(steps=8, hold=7), LEARN: Recipe()}
"""How each stage trains unless told otherwise; `dataclasses.replace(ps.RECIPES["learn"], steps=20)` changes a part."""

# With fewer a pass's own cost is most of its time.
LOW_MEMORY_TOKENS = 256


def low_memory(recipe: Recipe | None = None) -> dict[str, Recipe]:
    """Recipes by stage that take less memory and more time, for [`edit`].

    The command's option `--low-memory` trains by these, and [`without_replicas`].

    Args:
        recipe: What both stages follow otherwise; each stage's own in [`RECIPES`] when None.

    Raises:
        ModelError: If it is a recipe for something else.
    """
    check_recipe(recipe, Recipe)
    return {stage: replace(recipe or own, pass_tokens=LOW_MEMORY_TOKENS) for stage, own in RECIPES.items()}


@phase("unlearn")
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
    """Trains an adapter that answers the fact's prompts with its refusal: the first stage of arXiv 2508.07075.

    Steps follow the natural gradient (Amari 1998). Each is so long that it is predicted to cause a set divergence on
    what is kept.

    Args:
        model: A causal language model; becomes part of the returned PEFT model, as with `get_peft_model`.
        tokenizer: Its tokenizer.
        fact: Only its training part is read.
        config: Which coordinates get a scale.
        recipe: How to train; the stage's own in [`RECIPES`] when None.
        retained: What to keep, from an earlier stage of this fact on the same base; worked out when None.
        seed: Decides which rows meet in a step, which prompts are asked about contrast subjects, and draws the signs
            that the curvature is estimated with.
        progress: Whether to show progress bars.

    Returns:
        The stage; its adapter is named `unlearn`, and its model is left in eval mode.

    Raises:
        FactError: If `fact` is none, or `retained` was worked out for another one.
        AdapterError: If `config` is no `SurgicalIA3Config`, or the model already has an adapter of that name, or one
            of another kind, or adapters that are switched off, or those of a PEFT model that is not given.
        SelectionError: If the model does not have the coordinates of `config`, or they are the output head's.
        ModelError: If `seed` is no whole number, a prompt is too long for the model, its logits are not finite,
            weights that `config` scales are offloaded, the model is wrapped by `torch.compile`,
            `torch.inference_mode` is on or was so where the model was loaded, or `retained` is none, or from
            another base, tokenizer or chat template.
        ArchitectureError: If the model is no causal language model, or `config` names components of a model whose
            architecture is not known, or modules that do not see all tokens of a text, such as experts.
    """
    check_fact(fact)
    check_module(model)
    check_causal(model)
    with training_here(model), unchanged_on_failure(model):
        return _stage(UNLEARN, model, tokenizer, fact.training, fact.refusal, config, recipe, retained, seed, progress)


@phase("learn")
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

    It is the second stage of arXiv 2508.07075, trained as [`unlearn`] is.

    Args:
        model: The model of an `unlearn` stage, whose adapter is frozen; or a bare model, to learn in one stage.
        tokenizer: Its tokenizer.
        fact: Only its training part is read. Where the tokenizer has a chat template, a bare answer is taught as a
            sentence, in words of a prompt or of what the base says.
        config: Which coordinates get a scale; those of the active adapter when None.
        recipe: How to train; the stage's own in [`RECIPES`] when None.
        retained: What to keep, as the `unlearn` stage returned it; worked out when None. That stage's recipe chose it,
            so `neighbours`, `everyday`, `general` and `retain_tokens` of this stage's recipe are not read. On the
            same coordinates, `near_weight` and `draws` are not read either.
        seed: Decides which rows meet in a step, which prompts are asked about contrast subjects, and draws the signs
            that the curvature is estimated with.
        progress: Whether to show progress bars.

    Returns:
        The stage; its adapter is named `learn`, and its model is left in eval mode.

    Raises:
        FactError: If `fact` is none, `retained` was worked out for another one, or the tokenizer does not know a token
            of the answer.
        AdapterError: If `config` is of another kind, there is neither one nor an active adapter to take one from, or
            the model has an adapter named `learn`, or adapters of another kind, or adapters that are switched off, or
            those of a PEFT model that is not given.
        SelectionError: As for [`unlearn`].
        ModelError: As for [`unlearn`].
        ArchitectureError: As for [`unlearn`].

    Warns:
        FactWarning: If a bare answer is taught as it is, because no sentence was found.
    """
    check_fact(fact)
    check_module(model)
    check_causal(model)
    with training_here(model), unchanged_on_failure(model):
        known = in_sentences_of(model, tokenizer, fact.training)
        return _stage(LEARN, model, tokenizer, known, known.answer, config, recipe, retained, seed, progress)


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
    check_shareable(model)
    check_whole(model)
    check_recipe(recipe, Recipe)
    check_seed(seed)
    check_config(config)
    check_retained(retained)
    recipe = recipe or RECIPES[name]
    check_alike(model=model, stage=name, fact=fact, config=config, recipe=recipe, seed=seed)
    # Before the model gets an adapter, so that a fact that cannot be used leaves none behind.
    _, fact_rows = training_rows(model, tokenizer, fact, recipe, answer)
    origin = origin_of(model, tokenizer, fact)
    if retained is None:
        check_retain_fits(model, tokenizer, fact, recipe)
    else:
        check_origin(retained.origin, origin)
    before = list(model.base_model.active_adapters) if isinstance(model, PeftModel) else []
    peft_model = place_adapter(model, name, config, before)
    activate(peft_model, [*before, name], trainable=[name])
    peft_model.eval()
    own = [layer.surgical_ia3_delta[name] for layer in layers_with(name, peft_model)]
    with (
        training_only(peft_model, own),
        denormals_flushed(),
        computing(peft_model, recipe.compute_dtype) as working,
    ):
        kept = base_rows(working, tokenizer, fact, recipe, seed, progress) if retained is None else retained.kept
        every = [*fact_rows, *kept.rows]
        beside = [*every, *kept.carried]
        prefix = shared_prefix([row.ids for row in beside], [span(row)[0] for row in beside])
        # Stages read the same hidden states below their first layer; an adapter below it would make them differ.
        configs = [peft_model.peft_config[adapter] for adapter in [*before, name]]
        layers, first = _first_layer(working, configs)
        pad, tokens = padding(model.config, tokenizer), recipe.pass_tokens
        runner = SuffixRunner(working, layers, first, every[0].ids[:prefix], pad=pad, tokens=tokens)
        runner.reuse(None if retained is None else retained.entering)
        scaled = layers_with(name, working)
        with plain_attention(working):
            runner.add([row.read for row in every])
            # What is kept is the base's, which earlier stages have left; the metric is of changes from there, too.
            activate(working, [name], trainable=[name])
            retained = measure_retained(
                runner,
                scaled,
                name,
                configs[-1].selections,
                kept,
                retained,
                recipe,
                origin=origin,
                offset=len(fact_rows),
                seed=seed,
                progress=progress,
            )
            activate(working, [*before, name], trainable=[name])
            parameters = [layer.surgical_ia3_delta[name] for layer in scaled]
            frozen = [layer.others_scale(name, before).detach() for layer in scaled]
            record = train(
                runner,
                parameters,
                fact_rows,
                kept.rows,
                retained.base,
                recipe,
                metric=retained.curvature.metric(recipe.damping),
                frozen=frozen,
                near=kept.near,
                seed=seed,
                progress=progress,
                description=name,
            )
        settle_on_half(parameters, frozen)
    activate(peft_model, [*before, name])
    return Stage(peft_model, name, record, retained, tuple(before), answer)


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
