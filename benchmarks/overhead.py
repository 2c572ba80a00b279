"""What a surgical adapter costs: forward and training step, as a ratio to the base with frozen weights, in one run.

    python -m benchmarks.overhead --model demo --batch 4 --length 64

Both models share their weights. Base and adapted runs alternate, so that a change of the machine's speed meets both.
The ratio is that of the fastest runs, since whatever else runs on the machine can only add; the quartiles are those of
the paired ratios. A training step of the base is a forward and a backward pass down to the embeddings, which is all
that frozen weights leave to do; that of the adapter adds its gradients and an AdamW step.
Prints a table and, as the last line, JSON.
"""

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import get_peft_model
from transformers import PreTrainedModel

from peft_surgical.errors import SelectionError
from peft_surgical.models import load_model
from peft_surgical.sites import ModelShape, components
from peft_surgical.tuner import SurgicalIA3Config

from .localization import count, told


def choose(shape: ModelShape, number: int, seed: int) -> list[str]:
    """Half heads, half MLPs, drawn at random.

    Raises:
        SelectionError: If there are not so many.
    """
    generator = random.Random(seed)
    chosen: list[str] = []
    for kind, wanted in (("head", number // 2), ("mlp", number - number // 2)):
        there = [str(component) for component in components(shape) if component.kind == kind]
        if wanted > len(there):
            raise SelectionError(f"{number} components need {wanted} of kind {kind!r}; the model has {len(there)}.")
        chosen += generator.sample(there, wanted)
    return chosen


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same weights, so that memory and caches serve both alike."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def forward(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        model(input_ids=ids, use_cache=False)

    return run


def step(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3) if trainable else None

    def run() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return run


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Processor time on a CPU, which other programs on the machine do not count into; elapsed time elsewhere."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def compare(
    base: Callable[[], None], adapted: Callable[[], None], repeats: int, device: torch.device
) -> dict[str, float]:
    """Alternates the two, in changing order, and returns seconds and their ratio."""
    for run in (base, adapted, base, adapted):
        run()
    before: list[float] = []
    after: list[float] = []
    for i in range(repeats):
        pairs = [(base, before), (adapted, after)]
        for run, times in pairs if i % 2 else reversed(pairs):
            times.append(seconds(run, device))
    low, middle, high = statistics.quantiles([b / a for a, b in zip(before, after, strict=True)], n=4)
    fastest = {"base": min(before), "adapted": min(after), "ratio": min(after) / min(before)}
    return {**fastest, "low": low, "median": middle, "high": high}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--components", type=count, default=10)
    parser.add_argument("--granularity", default="component", choices=("component", "module"))
    parser.add_argument("--batch", type=count, default=4)
    parser.add_argument("--length", type=count, default=64)
    parser.add_argument("--repeats", type=count, default=21, help="two or more, for quartiles")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error("--repeats must be 2 or more, for quartiles.")
    with told(parser):
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measures, and prints a table and a line of JSON.

    Raises:
        SelectionError: If the model has not so many components.
    """
    base, _ = load_model(options.model)
    base.requires_grad_(False).eval()
    chosen = choose(ModelShape.from_config(base.config), options.components, options.seed)
    adapted = get_peft_model(
        sharing_copy(base),
        SurgicalIA3Config(components=chosen, granularity=options.granularity, task_type="CAUSAL_LM"),
    )
    base.enable_input_require_grads()
    adapted.enable_input_require_grads()
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch, options.length)
    ids = torch.randint(0, base.config.vocab_size, shape, generator=generator).to(base.device)
    scales = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    results = {
        name: compare(make(base, ids), make(adapted, ids), options.repeats, base.device)
        for name, make in (("forward", forward), ("training_step", step))
    }
    print(f"{options.model}: {len(chosen)} components, {scales} scales, batch {shape[0]} x {shape[1]}, {base.device}")
    print(f"{'':<14} {'base':>10} {'adapted':>10} {'ratio':>7}  quartiles")
    for name, found in results.items():
        print(
            f"{name:<14} {1000 * found['base']:>7.1f} ms {1000 * found['adapted']:>7.1f} ms {found['ratio']:>7.4f}"
            f"  {found['low']:.4f} {found['median']:.4f} {found['high']:.4f}"
        )
    print(json.dumps({**vars(options), "device": str(base.device), "chosen": chosen, "scales": scales, **results}))


if __name__ == "__main__":
    main()
