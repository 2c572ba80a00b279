"""The table of ratios, for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .passes import EVERY

GOALS = {
    "stage": "≥ 10×",
    "step": "≥ 3×",
    "exact": "≥ 8×",
    "default": "≥ 40×, overlap ≥ 8",
    "edit": "≥ 15×",
    "rome": "≤ 1×",
    "sentence": "≤ 1×",
    "memory": "≤ 1,536 MiB",
}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A line a row, then what a reader has to know of it."""
    yield f"{'work':46}{'ours':>12}{'against':>12}{'ratio':>10}  goal"
    if "stage" in found:
        yield from _stage(found["stage"])
    for name in ("step", "wide_step"):
        if name in found:
            yield from _step(found[name], "" if name == "step" else ", wide random Phi-3")
    for name in ("localization", "wide_localization"):
        if name in found:
            yield from _localization(found[name], "" if name == "localization" else ", wide random Phi-3")
    if "edit" in found:
        yield from _edit(found["edit"])
    for name, what in (("rome", "edit"), ("keyed", "edit-keyed")):
        if name in found:
            yield _row(f"{what} without evaluation, against ROME", found[name], GOALS["rome"])
            yield _row(
                "  as the next edit of the model", found[name], GOALS["rome"], "seconds_following", "ratio_following"
            )
    if "sentence" in found:
        sentence = found["sentence"]
        yield _row("one sentence by scales, against ROME", sentence, GOALS["sentence"])
        yield _row("  by its subject's key", sentence, GOALS["sentence"], "seconds_keyed", "ratio_keyed")
    if "memory" in found:
        memory = found["memory"]
        few, every = (memory["prompts"][name]["prompts"] for name in ("quarter", "all"))
        yield f"{'peak memory of edit above the model, MiB':46}{memory['mib']:>12.0f}{'':>22}  {GOALS['memory']}"
        yield f"  with {few} prompts {memory['mib_quarter']:.0f} MiB, with all {every} {memory['mib']:.0f} MiB"
        low, low_few = memory["mib_low"], memory["mib_low_quarter"]
        yield f"{'the same with --low-memory':46}{low:>12.0f}{'':>22}  {GOALS['memory']}"
        yield f"  with {few} prompts {low_few:.0f} MiB, with all {every} {low:.0f} MiB"
    if "passes" in found:
        yield from _passes(found["passes"])
    if "beside" in found:
        yield ""
        own = found["beside"]
        yield f"rows side by side ({own['replicas']} threads), against all threads on every operation"
        for name, what in (("steps", "training steps"), ("before", "what to keep"), ("answers", "answers")):
            yield _row(f"  {what}", own[name], "")
    if "once" in found:
        yield ""
        for name, title in (
            ("prefix", "the shared beginning once, against in every pass and row"),
            ("attention", "attention by groups, against transformers' plain one"),
        ):
            yield title
            for row, what in (("steps", "training steps"), ("before", "what to keep")):
                yield _row(f"  {what}", found["once"][name][row], "")
    if "scaling" in found:
        yield from _scaling(found["scaling"])


def _row(label: str, found: dict[str, Any], goal: str, own: str = "seconds", ratio: str = "ratio") -> str:
    return f"{label:46}{found[own]:>10.2f} s{found['other_seconds']:>10.2f} s{found[ratio]:>9.1f}×  {goal}"


def _stage(found: dict[str, Any]) -> Iterator[str]:
    yield _row("a stage to the same loss, by itself", found, GOALS["stage"])
    yield _row("  as the second of two", found, "", "seconds_following", "ratio_following")
    yield (
        f"  ours: {found['steps']} steps to {found['loss']:.4f} nats per answer token; "
        f"Trainer: {found['other_steps']} steps to {found['other_loss']:.4f}"
    )
    yield f"  a step of ours of the prompts alone: {found['seconds_of_a_step_of_prompts']:.2f} s"
    if found["kept"] and found["other_kept"]:
        kept, other = found["kept"]["value"], found["other_kept"]["value"]
        yield f"  controls still right: {kept:.2f}, and {other:.2f} after the Trainer"
    if found["lower_bound"]:
        yield "  the Trainer was stopped before it got there: the ratio is a lower bound"


def _step(found: dict[str, Any], what: str) -> Iterator[str]:
    yield _row(f"a training step of {found['rows']} rows{what}", found, GOALS["step"] if not what else "")
    yield (
        f"  in {found['compute_dtype']}; {found['reached_gflops']:.0f} GFLOP/s of matrix products, "
        f"{found['share_of_peak']:.0%} of the machine's peak (both measured here)"
    )


def _localization(found: dict[str, Any], what: str) -> Iterator[str]:
    for name in ("exact", "default"):
        row = {
            "seconds": found["seconds_a_prompt"][name],
            "other_seconds": found["other_seconds_a_prompt"],
            "ratio": found[f"ratio_{name}"],
        }
        yield _row(f"localization of a prompt, {name}{what}", row, GOALS[name] if not what else "")
    yield (
        f"  one by one: {found['components_one_by_one']} of {found['components']} components run and scaled up; "
        f"exact differs by {found['largest_error']:.1e} at most"
    )
    yield f"  top-10 overlap of the estimate with the exact scores: {found['top10_overlap']}"
    for name, common in found["top10_overlap_of"].items():
        yield f"  of the default's {name}: {common}"


def _edit(found: dict[str, Any]) -> Iterator[str]:
    yield _row("edit from end to end, loading left out", found, GOALS["edit"])
    yield _row("  as the next edit of the model", found, GOALS["edit"], "seconds_following", "ratio_following")
    yield f"  if localized on one prompt only: {found['ratio_localized_on_one_prompt']:.1f}×"
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["other_phases"].items())
    scaled = ", ".join(f"{done} {name} to {all_}" for name, (done, all_) in found["extrapolated"].items())
    yield f"  against: {phases}; extrapolated from measured: {scaled.replace('_', ' ')}"


def _passes(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{'tokens a pass':>14}{'a step':>14}{'peak':>12}{'curvature':>14}{'peak':>12}"
    for tokens, own in found["tokens"].items():
        limit = "all" if tokens == EVERY else f"{tokens:,}"
        costs = "".join(f"{own[n]['seconds']:>12.2f} s{own[n]['mib']:>8.0f} MiB" for n in ("step", "curvature"))
        yield f"{limit:>14}{costs}"
    yield f"  curvature: of {found['rows']} rows"


def _scaling(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{'axis':10}{'cost':14}{'exponent':>9}{'the last':>9}  seconds at each size"
    for axis, measured in found.items():
        for name, seconds in measured["seconds"].items():
            exponents = "".join(f"{measured[kind][name]:>9.2f}" for kind in ("exponents", "last_exponents"))
            points = "  ".join(f"{size}: {value:.3f}" for size, value in zip(measured["sizes"], seconds, strict=True))
            yield f"{axis:10}{name:14}{exponents}  {points}"
