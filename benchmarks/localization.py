"""How fast exact and estimated localization are, how well they agree, and what memory they take.

    python -m benchmarks.localization --model demo

Everything in one run, on all heads and MLPs of all layers: one `run_with_hooks` forward a component (what
TransformerLens users write), the exact growing batch, attribution patching, and the default of `localize`. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import peft_surgical as ps
from peft_surgical.dtypes import dtype_name
from peft_surgical.localizing.bridge import wrap
from peft_surgical.localizing.corruption import PromptPair, corrupt, template_ids
from peft_surgical.localizing.patching import Target, patch, targets_of
from peft_surgical.localizing.runs import Runs, sites_of
from peft_surgical.running.freed import release_freed
from peft_surgical.scorers.attribution import drops_by_position

FACT = Path(__file__).resolve().parents[1] / "examples" / "facts" / "france_capital.yaml"


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--fact", default=str(FACT))
    parser.add_argument("--prompts", type=count, default=8, help="how many of the fact's prompts to compare on")
    parser.add_argument("--reference", type=count, default=1, help="on how many of these to go one by one, too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-tokens", type=int, default=2048)
    options = parser.parse_args()
    with told(parser):
        fact = ps.Fact.from_file(options.fact)
        model, tokenizer = ps.load_model(options.model, dtype=options.dtype, device=options.device)
        result = measure(model, tokenizer, fact, options.prompts, options.reference, options.max_tokens)
    print_table(result)
    print(json.dumps(result))


@contextlib.contextmanager
def told(parser: argparse.ArgumentParser) -> Iterator[None]:
    """A mistake of whoever runs it is told in a line."""
    try:
        yield
    except ps.SurgicalError as error:
        parser.exit(1, f"Error: {error}\n")


def count(text: str) -> int:
    """Reads a number of things, of which there must be one."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def measure(
    model: Any, tokenizer: Any, fact: ps.Fact, prompts: int, reference: int, max_tokens: int
) -> dict[str, Any]:
    """All figures. Times are per prompt, since the slow way runs on fewer of them."""
    targets = targets_of(sites_of(ps.ModelShape.from_config(model.config), ("z", "post")))
    bridge, template = wrap(model), template_ids(tokenizer)
    precise, runs = Runs(bridge, template, precise=True), Runs(bridge, template)
    pairs = swapped(runs, tokenizer, fact, prompts, max_tokens)

    forward(model, pairs)
    exact_way, slow_way, estimate_way, default_way = Timed(), Timed(), Timed(), Timed()
    exact = torch.stack([exact_way(grown, precise, pair, targets, max_tokens) for pair in pairs])
    slow = torch.stack([slow_way(one_by_one, bridge, pair, targets) for pair in pairs[:reference]])
    guess = estimate_way(attributed, runs, pairs, targets, max_tokens)
    default = default_way(located, model, tokenizer, fact, None, max_tokens)
    per_prompt = {
        "one_by_one": slow_way.seconds / len(slow),
        "exact": exact_way.seconds / len(pairs),
        "default": default_way.seconds / len(default.corruption),
        "attribution": estimate_way.seconds / len(pairs),
    }
    memory = {"plain_forward": peak_above(model, forward, model, pairs)}
    for name in ("attribution", "gradient_norm", "default"):
        scorers = None if name == "default" else [name]
        memory[name] = peak_above(model, located, model, tokenizer, fact, scorers, max_tokens)
    return {
        "model": str(model.config._name_or_path or type(model).__name__),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": dtype_name(model.dtype),
        "components": len(targets),
        "prompts": len(pairs),
        "prompts_one_by_one": len(slow),
        "tokens": [len(pair.clean) for pair in pairs],
        "seconds_per_prompt": per_prompt,
        "times_faster": {name: per_prompt["one_by_one"] / value for name, value in per_prompt.items()},
        "default": {"seconds": default_way.seconds, "prompts": len(default.corruption)},
        "exact_largest_error": float((exact[: len(slow)] - slow).abs().max()),
        "largest_effect": float(slow.abs().max()),
        "spearman": mean(spearman(a, b) for a, b in zip(guess, exact, strict=True)),
        "top10_overlap": mean(overlap(a, b, 10) for a, b in zip(guess, exact, strict=True)),
        "spearman_of_means": spearman(guess.mean(0), exact.mean(0)),
        "top10_overlap_of_means": overlap(guess.mean(0), exact.mean(0), 10),
        "weights_mib": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20,
        "peak_above_weights_mib": memory,
        "peak_above_plain_forward_mib": {
            name: memory[name] - memory["plain_forward"] for name in memory if name != "plain_forward"
        },
    }


def swapped(
    runs: Runs, tokenizer: Any, fact: ps.Fact, prompts: int, max_tokens: int, seed: int = 0
) -> Sequence[PromptPair]:
    """The fact's first prompts whose subject can be swapped for another as long.

    Raises:
        FactError: If there is none.
    """
    drafts = corrupt(tokenizer, fact.training, runs.embed, torch.Generator().manual_seed(seed), fact.prompts)
    pairs = runs.answered([pair for pair in drafts if pair.method == "swap"][:prompts], max_tokens)
    if not pairs:
        raise ps.FactError("the fact has no prompt whose subject can be swapped for another as long.")
    return pairs


def located(model: Any, tokenizer: Any, fact: ps.Fact, scorers: list[str] | None, max_tokens: int) -> ps.Localization:
    """What a user calls."""
    return ps.localize(model, tokenizer, fact, scorers, max_tokens=max_tokens, progress=False)


def one_by_one(bridge: Any, pair: PromptPair, targets: list[Target]) -> Tensor:
    """The plain way: cache the corrupted run, then one `run_with_hooks` a component."""
    device = next(bridge.parameters()).device
    clean, corrupted = pair.clean[None].to(device), pair.corrupted[None].to(device)
    names = {target.site.name for target in targets}
    with torch.no_grad():
        _, cache = bridge.run_with_cache(corrupted, names_filter=list(names))
        before = difference(bridge(clean)[0, -1], pair)
        drops = []
        for target in targets:
            source = cache[target.site.name]

            def hook(tensor: Tensor, hook: Any, source: Tensor = source, index: int | None = target.index) -> Tensor:
                if index is None:
                    return source
                tensor[:, :, index] = source[:, :, index]
                return tensor

            logits = bridge.run_with_hooks(clean, fwd_hooks=[(target.site.name, hook)])
            drops.append(before - difference(logits[0, -1], pair))
    return torch.stack(drops).cpu()


def grown(runs: Runs, pair: PromptPair, targets: list[Target], max_tokens: int) -> Tensor:
    """This package's exact way."""
    with torch.no_grad():
        window = runs.window([pair])
        sources, _ = runs.capture(window, window.corrupted, list({target.site: 0 for target in targets}))
        before = window.difference(runs.logits(window, window.clean))
        return (before - patch(runs, window, targets, sources, max_tokens, window.difference)).cpu()


def attributed(runs: Runs, pairs: Sequence[PromptPair], targets: list[Target], max_tokens: int) -> Tensor:
    """This package's estimate, `[prompt, target]`."""
    sites = list({target.site: 0 for target in targets})
    rows = []
    for window in runs.windows(pairs, max_tokens // 4):
        columns = [
            drops.sum((1, -1)) if site.of_heads else drops.sum(1).sum(1, keepdim=True)
            for site, drops in drops_by_position(runs, window, sites, steps=1)
        ]
        rows.append(torch.cat(columns, 1).cpu())
    return torch.cat(rows)


def forward(model: Any, pairs: Any) -> Tensor:
    """One ordinary forward of the longest prompt."""
    longest = max(pairs, key=lambda pair: len(pair.clean)).clean[None].to(model.device)
    with torch.no_grad():
        logits: Tensor = model(longest).logits
    return logits


def difference(logits: Tensor, pair: PromptPair) -> Tensor:
    """Logit of the old answer less that of the rival."""
    return (logits[pair.old] - logits[pair.rival]).float()


class Timed:
    """Calls a function and adds up the seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function: Any, *arguments: Any) -> Any:
        """Call it."""
        synchronize()
        started = time.perf_counter()
        value = function(*arguments)
        synchronize()
        self.seconds += time.perf_counter() - started
        return value


def synchronize() -> None:
    """Wait for the accelerator."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_above(model: Any, function: Any, *arguments: Any) -> float:
    """MiB that a call takes at its peak above what was in use before it."""
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(*arguments)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # What earlier calls freed would hide what this one takes.
    release_freed()
    with watched() as peak:
        function(*arguments)
    return peak[0] / 2**20


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """Resident memory above the beginning's, sampled every few milliseconds."""
    page = resource.getpagesize()

    def resident() -> int:
        return int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * page

    start, peak, done = resident(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident() - start)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def spearman(one: Tensor, other: Tensor) -> float:
    """Rank correlation; ties in order."""
    ranks = torch.stack([one.argsort().argsort(), other.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def overlap(one: Tensor, other: Tensor, k: int) -> float:
    """Share of the best k that two scorings have in common."""
    return len(set(one.topk(k).indices.tolist()) & set(other.topk(k).indices.tolist())) / k


def mean(values: Any) -> float:
    """The mean of an iterable."""
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)


def print_table(result: dict[str, Any]) -> None:
    """The figures for a person."""
    print(f"{result['model']}, {result['dtype']}, {result['device']}, {result['threads']} threads:")
    print(f"{result['components']} components, {result['prompts']} prompts of up to {max(result['tokens'])} tokens")
    default = result["default"]
    print(f"{'method':44}{'s a prompt':>12}{'times faster':>14}")
    labels = {
        "one_by_one": "one run_with_hooks forward a component",
        "exact": "exact (logit_drop), growing batch",
        "default": f"the default of localize, over {default['prompts']} prompts",
        "attribution": "attribution",
    }
    for name, label in labels.items():
        print(f"{label:44}{result['seconds_per_prompt'][name]:>12.3f}{result['times_faster'][name]:>14.1f}")
    print(f"the default of localize in all: {default['seconds']:.1f} s")
    error, largest = result["exact_largest_error"], result["largest_effect"]
    print(f"exact against one by one: largest error {error:.1e}, largest effect {largest:.1f}")
    print(
        f"attribution against exact: Spearman {result['spearman']:.3f}, top-10 overlap {result['top10_overlap']:.2f} "
        f"(of the means over prompts: {result['spearman_of_means']:.3f}, {result['top10_overlap_of_means']:.2f})"
    )
    for above, label in (
        ("peak_above_weights_mib", f"the weights ({result['weights_mib']:.0f} MiB)"),
        ("peak_above_plain_forward_mib", "a plain forward's"),
    ):
        print(f"peak above {label}: " + ", ".join(f"{name} {size:.0f} MiB" for name, size in result[above].items()))


if __name__ == "__main__":
    main()
