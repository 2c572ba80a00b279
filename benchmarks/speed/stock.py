"""What a user trains with instead: `transformers.Trainer` and PEFT's own (IA)^3, and a plain loop over it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import IA3Config, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from peft_surgical.texts.prompts import EncodedAnswer, span

from ..localization import synchronize
from .case import Case, timed

LEARNING_RATE = 5e-3
"""As the benchmark's (IA)^3 on CounterFact; the method's paper trains with 3e-3."""
_IGNORED = -100


@dataclass(frozen=True)
class Fit:
    """What a Trainer reached.

    Attributes:
        steps: Steps taken.
        seconds: Their time; that of looking at the loss is left out.
        loss: Mean loss per answer token over all prompts when last looked at, nats.
        reached: Whether that is the loss asked for, or less.
        model: The trained model.
    """

    steps: int
    seconds: float
    loss: float
    reached: bool
    model: Any


def with_stock_adapter(case: Case) -> Any:
    """The model with PEFT's (IA)^3 on the modules that ours scales."""
    every, inputs = case.modules("input", "output"), case.modules("input")
    config = IA3Config(target_modules=every, feedforward_modules=inputs, task_type="CAUSAL_LM")
    return get_peft_model(case.fresh(), config)


def fit_with_trainer(case: Case, steps: int, target: float | None = None) -> Fit:
    """Trains with batch 1 until the mean loss is `target`, looking once a pass over the prompts, or for `steps`."""
    model = with_stock_adapter(case)
    watch = _Watch(case.rows, target)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=1,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=case.model.device.type == "cpu",
            seed=case.seed,
        )
        examples = [{name: tensor[0] for name, tensor in padded([row]).items()} for row in case.rows]
        trainer = Trainer(model=model, args=arguments, train_dataset=examples, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    loss = mean_loss(model, case.rows) if watch.loss is None else watch.loss
    return Fit(watch.steps, watch.seconds, loss, target is not None and loss <= target, model)


class _Watch(TrainerCallback):
    """Counts steps and their seconds, and stops at the target."""

    def __init__(self, rows: Sequence[EncodedAnswer], target: float | None) -> None:
        self.rows, self.target = rows, target
        self.steps, self.seconds, self._since = 0, 0.0, 0.0
        self.loss: float | None = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock, if it stands."""
        self._since = self._since or time.perf_counter()

    def on_step_end(self, _: Any, __: Any, control: Any, **given: Any) -> None:
        """Stop the clock for a look at the loss."""
        synchronize()
        now = time.perf_counter()
        self.steps, self.seconds, self._since = self.steps + 1, self.seconds + now - self._since, now
        if self.target is None or self.steps % len(self.rows):
            return
        self._since = 0.0
        self.loss = loss = mean_loss(given["model"], self.rows)
        control.should_training_stop = control.should_training_stop or loss <= self.target


@torch.no_grad()
def mean_loss(model: Any, rows: Sequence[EncodedAnswer]) -> float:
    """Mean negative log-likelihood per answer token, nats, in the model's own dtype."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for row in rows:
        start, stop = span(row)
        ids = torch.tensor([row.ids], device=model.device)
        total += float(F.cross_entropy(model(input_ids=ids).logits[0, start:stop].float(), ids[0, start + 1 :])) * (
            stop - start
        )
        count += stop - start
    model.train(training)
    return total / count


def plain_step_seconds(case: Case, rows: Sequence[EncodedAnswer]) -> float:
    """The median time of a step over all rows at once: padded, all logits, AdamW."""
    model = with_stock_adapter(case).train()
    parameters: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    batch = {name: tensor.to(case.model.device) for name, tensor in padded(rows).items()}

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return statistics.median(timed(step)[1] for _ in range(case.sizes.repeats))


def padded(rows: Sequence[EncodedAnswer]) -> dict[str, torch.Tensor]:
    """Rows as a batch whose loss is that of the answers."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        mask[index, : len(row.ids)] = 1
        labels[index, row.answer_start : len(row.ids)] = ids[index, row.answer_start : len(row.ids)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
