"""The state of a model after a little fine-tuning on the old answer: does what was unlearned come back?

An edit that only hides the old answer gives it up again to a few steps on a few questions, and on questions that were
not among them too (Lynch et al., arXiv 2402.16835; Hu et al., arXiv 2406.13356; for pruned neurons Lo et al., arXiv
2401.01814).

```py
>>> states = {
...     "base": adapter_state(model, []),
...     "base relearned": relearned_state(model, tokenizer, fact, [], 10),
...     "edited relearned": relearned_state(model, tokenizer, fact, ["unlearn", "learn"], 10),
... }
>>> evaluate(model, tokenizer, fact, states=states).stages["edited relearned"]["relearning_recovery"]
Figure(value=..., n=26, low=..., high=...)
```
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, cast_adapter_dtype
from peft.utils import ModulesToSaveWrapper
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_utils import local_torch_dtype

from ..counts import check_counts
from ..errors import ModelError, NotFiniteError
from ..facts import Fact, TrainingFact
from ..progress import progress_bar
from ..running.modes import base_model_of
from ..running.precision import without_autocast
from ..seeding import drawing, seeded
from ..texts.lengths import check_row
from ..texts.prompts import EncodedAnswer, encode_answer, old_sentence
from ..tuner.layer import SurgicalIA3Layer
from ..tuner.unchanged import trainable_kept
from .metrics import Figure, says_old
from .ratio import paired_ratio
from .rewriting import check_weights, linear_layers, merged_weights
from .states import State, adapter_state, within

PROMPTS, LEARNING_RATE, RANK = 5, 2e-4, 16

_ADAPTER = "relearned"

# What torch's loss leaves out.
_NOT_ASKED = -100


@dataclass(frozen=True)
class Relearning:
    """How a model is made to relearn: two states of one model are relearned alike where these are equal.

    Attributes:
        rows: The prompts with the old answer.
        steps: Adam steps, each on all rows.
        learning_rate: Adam's.
        rank: LoRA's.
        seed: Decides LoRA's first values.
    """

    rows: tuple[EncodedAnswer, ...]
    steps: int
    learning_rate: float
    rank: int
    seed: int


def relearned_state(
    model: Any,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    adapters: Sequence[str],
    steps: int,
    *,
    prompts: int = PROMPTS,
    learning_rate: float = LEARNING_RATE,
    rank: int = RANK,
    seed: int = 0,
    progress: bool = False,
    edited: State | None = None,
) -> RelearnedState:
    """The state in which adapters are merged into the weights, and these fine-tuned on prompts with the old answer.

    Whoever attacks has the merged weights and knows nothing of the edit. So the fine-tuning is the common one: LoRA on
    all linear layers but the output head, Adam, the loss on the answer's tokens. It reaches every linear layer that an
    edit can have changed, and no experts that are one tensor, and needs far less memory than training all weights.
    Mamba's `out_proj`, whose weight fused kernels read without calling it, is left out. What it learned acts beside
    the weights, as half precision would round most of it away in a merge. It is small and is kept: a state is trained
    when it is first entered, and only then. Make a new state after the model's weights or adapters have changed.

    Args:
        model: A `PeftModel`, or a bare model with no `adapters`.
        tokenizer: Its tokenizer.
        fact: Only its training part is read: the model relearns on some of the training prompts and is judged by
            others.
        adapters: Names of adapters the model holds; the base relearns when empty.
        steps: Adam steps, each on all of the prompts.
        prompts: How many of the training prompts, drawn by the seed; all where there are fewer.
        learning_rate: Adam's.
        rank: LoRA's, whose product counts once (`lora_alpha` is the rank).
        seed: Decides the prompts and LoRA's first values.
        progress: Whether to show a progress bar.
        edited: A state of a bare model whose weights relearn, as that of an edited checkpoint; its own when None.

    Returns:
        A function that gives a context; leaving it restores every bit.

    Raises:
        AdapterError: If the model holds no adapter of a name, or one that adds to the prompt.
        ModelError: If a number is out of range, weights are quantized or spread over processes, or a prompt is too
            long for the model; on first entering, if the loss is not finite.
        FactError: As for [`old_sentence`].
    """
    check_counts(1, steps=steps, prompts=prompts, rank=rank)
    if not 0 < learning_rate < float("inf"):
        raise ModelError(f"relearning takes a learning rate above 0, not {learning_rate!r}.")
    acting = adapter_state(model, adapters)
    check_weights(model, adapters, "fine-tuned")
    given, answer = fact.training.prompts, old_sentence(fact.training)
    chosen = drawing(seed).sample(given, min(prompts, len(given)))
    rows = tuple(encode_answer(tokenizer, prompt, answer) for prompt in chosen)
    for row in rows:
        check_row(model.config, row.ids)
    relearning = Relearning(rows, steps, learning_rate, rank, seed)
    if edited is not None:
        acting = within(edited, acting)
    of_base = not adapters and edited is None
    return RelearnedState(model, tuple(adapters), relearning, acting, progress, of_base=of_base)


class RelearnedState:
    """What [`relearned_state`] returns.

    Attributes:
        adapters: What is merged; nothing in the base.
        relearning: What was relearned, and how.
        of_base: Whether it is the base that has relearned.
    """

    def __init__(
        self,
        model: Any,
        adapters: tuple[str, ...],
        relearning: Relearning,
        acting: State,
        progress: bool,
        *,
        of_base: bool,
    ) -> None:
        self.of_base = of_base
        self.adapters = adapters
        self.relearning = relearning
        self._model = model
        self._acting = acting
        self._progress = progress
        self._learned: _LinearLora | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The context in which the model has relearned."""
        with self._acting(), merged_weights(self._model, self.adapters):
            if self._learned is None:
                self._learned = _relearn(self._model, self.adapters, self.relearning, self._progress)
            # Merged, most of what so few steps learn would be rounded away in half precision.
            with _in_place_of(base_model_of(self._model), self._learned.model):
                yield


def relearning_recovery(
    fact: Fact, states: Mapping[str, State], held_out: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Figure]]:
    """How much of the old answer comes back: a relearned state's rate of it over that of the base, relearned alike.

    Both answered the same prompts, and the interval makes use of it, see [`paired_ratio`].

    Args:
        fact: Its aliases decide what counts.
        states: State name to state.
        held_out: State name to its answers to `fact.held_out`, in order.

    Returns:
        State name to `relearning_recovery`, for relearned states but the base's where the base is there too and gives
        the old answer.
    """
    relearned = {name: state for name, state in states.items() if isinstance(state, RelearnedState)}
    bases = {state.relearning: name for name, state in relearned.items() if state.of_base}
    found = {}
    for name, state in relearned.items():
        if state.of_base or state.relearning not in bases:
            continue
        said, base_said = (
            [says_old(answer, fact) for answer in held_out[which]] for which in (name, bases[state.relearning])
        )
        figure = paired_ratio(said, base_said)
        if figure is not None:
            found[name] = {"relearning_recovery": figure}
    return found


class _LinearLora(LoraModel):
    """LoRA on the linear layers but the output head, if PEFT does not refuse them, and on nothing else.

    For a mixture of experts PEFT takes "all-linear", and names of linear layers too, for the experts and the router as
    an older transformers had them. It does so before it asks here which layers are meant.
    """

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        names = (name for name, _ in linear_layers(self.model))
        peft_config.target_modules = {name for name in names if self._takes(peft_config, name)}
        return peft_config

    def _takes(self, peft_config: Any, name: str) -> bool:
        try:
            # Mamba's kernels read the weight of a layer without calling it, so that LoRA would have no effect there.
            self._check_target_module_compatiblity(peft_config, self.model, name.rpartition(".")[2])
        except ValueError:
            return False
        return True


def _relearn(model: Any, adapters: Sequence[str], relearning: Relearning, progress: bool) -> _LinearLora:
    """Trained LoRA on a plain view of the model: the model's own weights are below it and are not written to."""
    # What is made anew, Adam's counts too, is made where it is without a default device. And what is trained under
    # somebody's autocast would be kept for states that are entered without.
    with trainable_kept(model.parameters()), torch.device("cpu"), without_autocast(model):
        # A state may be entered where nobody wants gradients.
        with seeded(relearning.seed, model.device), torch.inference_mode(False), torch.enable_grad():
            config = LoraConfig(r=relearning.rank, lora_alpha=relearning.rank)
            with warnings.catch_warnings():
                # PEFT sets this right by itself, for GPT-2's kind of linear layer.
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
                # The first values are drawn in the default dtype, and the seed is to decide them.
                with local_torch_dtype(torch.float32):
                    learned = _LinearLora(_plain_view(model, adapters), {_ADAPTER: config}, _ADAPTER)
            # Half precision would round the steps away.
            cast_adapter_dtype(learned, _ADAPTER)
            _fine_tune(learned.eval(), relearning, progress)
            # The model's own flags are put back; what was learned is never trained again.
            learned.requires_grad_(False)
    return learned


@contextmanager
def _in_place_of(model: Any, view: Any) -> Iterator[None]:
    """Has a model call the modules of a view of it for a while, and with them the adapters that are on these."""
    own = dict(model._modules)
    try:
        model._modules.update(view._modules)
        yield
    finally:
        model._modules.update(own)


def _plain_view(model: Any, adapters: Sequence[str]) -> Any:
    """The model as if it had never had adapters: modules of its own, but the very weights, merged as they are now."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    if not isinstance(getattr(model, "base_model", None), BaseTuner):
        return copy.deepcopy(base_model_of(model), shared)
    tuner = copy.deepcopy(model.base_model, shared)
    for name, module in [*tuner.model.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            # The weights are the model's own, out of which nothing is to be taken that is merged.
            module.merged_adapters = []
        if isinstance(module, SurgicalIA3Layer):
            module._folded = None
        if isinstance(module, ModulesToSaveWrapper):
            # A surgical adapter is unloaded to the base's own modules, and PEFT's to whole modules of an adapter that
            # is chosen, even where it is switched off.
            whole = (
                module.unload_and_optionally_merge_module(False, False, None) if adapters else module.original_module
            )
            parent, _, own = name.rpartition(".")
            setattr(tuner.model.get_submodule(parent), own, whole)
    return tuner.unload()


def _fine_tune(learned: _LinearLora, relearning: Relearning, progress: bool) -> None:
    rows = [torch.tensor(row.ids, device="cpu") for row in relearning.rows]
    ids = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = ids.masked_fill(mask == 0, _NOT_ASKED)
    for place, row in enumerate(relearning.rows):
        labels[place, : row.answer_start] = _NOT_ASKED
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch = {name: tensor.to(learned.device) for name, tensor in batch.items()}
    parameters = [parameter for parameter in learned.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(parameters, lr=relearning.learning_rate)
    with progress_bar(relearning.steps, "relearning", enabled=progress) as bar:
        for _ in range(relearning.steps):
            adam.zero_grad()
            loss = learned(**batch, use_cache=False).loss
            if not loss.isfinite():
                raise NotFiniteError(_not_finite(learned.dtype))
            loss.backward()
            adam.step()
            bar.update(1)


def _not_finite(dtype: torch.dtype) -> str:
    better = "give a smaller learning_rate" if dtype == torch.float32 else "use float32"
    return f"relearning meets a loss that is not finite in {dtype}; {better}."
