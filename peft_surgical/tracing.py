"""Trace a fact through a model: at which tokens of a prompt, and in which layers, what tells the subject is.

    trace = causal_trace(model, tokenizer, fact)
    trace.mean[trace.streams.index("mlp_out"), :, trace.classes.index("subject_last")]

Scores are of components, summed over positions; a trace is of positions, all components of a layer taken together.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import nn

from .architectures import check_causal
from .counts import check_counts, check_positive
from .dtypes import dtype_name
from .errors import FactError, ScorerError, brief
from .facts import Fact, TrainingFact
from .localizing.asked import asked, checked
from .localizing.corruption import named_spans, template_tokens
from .localizing.streams import DIRECTIONS, traced
from .localizing.token_classes import CLASSES, token_classes
from .localizing.traces import CausalTrace
from .profiling import phase
from .progress import tracked
from .sites import STREAMS
from .texts.prompts import encode


@phase("trace")
def causal_trace(
    model: nn.Module,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    *,
    direction: Literal["noising", "denoising"] = "noising",
    window: int = 1,
    together: bool = True,
    seed: int = 0,
    prompts: int | None = None,
    least: float = 0.1,
    max_tokens: int = 2048,
    progress: bool = True,
) -> CausalTrace:
    """Measure what moves with each layer's residual stream, attention and MLP at each class of tokens.

    `clean` and `corrupted` are the logit of the old answer less that of what the model says to the corrupted prompt,
    in the two runs, as [`localize`] has them; `patched` is the same of a run in which `resid_pre`, `attn_out` or
    `mlp_out` of one layer (TransformerLens's names) is taken from the other run at the tokens of one class. By
    `direction` the share is

    - noising: `(clean - patched) / (clean - corrupted)`, the clean run patched from the corrupted one, as scorers do;
    - denoising: `(patched - corrupted) / (clean - corrupted)`, the corrupted run patched from the clean one, as in
      ROME's causal tracing (Meng et al., arXiv 2202.05262) and `transformer_lens.patching`.

    0 is nothing and 1 all, and both may be left. Every share is exact, computed in float32, and a mean over prompts.

    The classes are before the subject (where nothing differs), the subject's first, middle and last tokens, the first
    subsequent token, further tokens, the chat template's behind the prompt, and the last token, which the answer
    follows. A token is of one class: the last token whatever else it is, and the one token of a short subject its
    last. Where the subject is named again, as answers begin by doing, each time counts.

    Args:
        model: A Hugging Face causal language model, as for [`localize`]; it is left as it was.
        tokenizer: Its tokenizer.
        fact: The fact; only its training part is used. Prompts that do not name its subject are left out, those that
            have only an alias, too.
        direction: Which run is patched.
        window: Of `attn_out` and `mlp_out`, take so many layers together, around each; ROME took 10 of 48.
        together: Take all tokens of a class at once. With False one at a time, and their mean is the prompt's share,
            as ROME does; what several tokens hold each, as where the subject is named twice, then hardly shows.
        seed: For the corruption, which is [`localize`]'s with the same seed.
        prompts: Use only the first so many of the fact's prompts.
        least: Prompts whose logit difference the corruption lowers by less than this, in logits, are left out: what
            one divides by would be near 0.
        max_tokens: Bounds the memory above the weights: rows × positions of one forward pass.
        progress: Show a progress bar on a terminal or in a notebook.

    Returns:
        The shares, prompt by prompt, and their means. Where every prompt was left out there are none.

    Raises:
        ScorerError: When `direction` is neither, or `window`, `seed` or `max_tokens` is no whole number or out of
            range.
        FactError: When no prompt names the subject, one has no token that distinguishes the answers or is too short to
            be corrupted, or `prompts` is no positive whole number.
        ModelError: When it is no model or one that [`localize`] refuses, `least` is no finite number above 0, a
            patched run gives logits that are not finite, or TransformerLens does not show what its layers read and
            write. `torch.inference_mode()`, which [`localize`] refuses, is none of these: a trace takes no gradients.
        ArchitectureError: When its architecture is not known or its modules are laid out otherwise, or it is no causal
            language model.
    """
    training = checked(model, tokenizer, fact, seed=seed, prompts=prompts, max_tokens=max_tokens)
    check_counts(1, ScorerError, window=window)
    check_positive(least=least)
    if direction not in DIRECTIONS:
        raise ScorerError(f"direction must be {' or '.join(DIRECTIONS)}, not {brief(direction)}.")
    check_causal(model)
    spans = {prompt: _spans(tokenizer, training, prompt) for prompt in training.prompts[:prompts]}
    if not any(spans.values()):
        raise FactError(
            f"no prompt names the subject {brief(training.subject)}, so that none of its tokens is traced."
        )
    tail = template_tokens(tokenizer)[1]
    with asked(model, tokenizer, training, seed=seed, prompts=prompts, max_tokens=max_tokens) as started:
        # What is read may end before the prompt does, where its end is one token with the answer's beginning.
        reads = {pair: [span for span in spans[pair.prompt] if span.start < len(pair.clean)] for pair in started.pairs}
        named = [pair for pair, own in reads.items() if own]
        moved = [pair for pair in named if pair.differences[0] - pair.differences[1] >= least]
        shares = []
        for pair in tracked(moved, len(moved), "trace", enabled=progress):
            length, end = len(pair.clean), len(encode(tokenizer, pair.prompt))
            classes = token_classes(length, reads[pair], range(end - tail, end))
            groups, columns = _groups(classes, together)
            found = traced(started.precise, started.shape, pair, groups, direction, window, max_tokens)
            shares.append(_by_class(found.numpy(), columns))
        shape, dtype = started.shape, started.runs.dtype
    return CausalTrace(
        model=str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
        dtype=dtype_name(dtype),
        shape=shape,
        subject=training.subject,
        direction=direction,
        window=window,
        together=bool(together),
        prompts=tuple(pair.prompt for pair in moved),
        values=np.array(shares, np.float32).reshape(len(moved), len(STREAMS), shape.n_layers, len(CLASSES)),
        unnamed=tuple(pair.prompt for pair, own in reads.items() if not own),
        left_out=tuple(pair.prompt for pair in named if pair not in moved),
        least=float(least),
        seed=seed,
    )


def _spans(tokenizer: Any, fact: TrainingFact, prompt: str) -> list[range]:
    """The positions of the subject's tokens, in the answer too; none where the prompt does not name it."""
    own, answered = named_spans(tokenizer, fact, prompt, encode(tokenizer, prompt))
    return [*own, *answered] if own else []


def _groups(classes: tuple[str, ...], together: bool) -> tuple[list[list[int]], list[int]]:
    """The positions that are taken at once, and for each such group the number of its class."""
    held = [[position for position, own in enumerate(classes) if own == name] for name in CLASSES]
    if together:
        return [group for group in held if group], [number for number, group in enumerate(held) if group]
    single = [(number, [position]) for number, group in enumerate(held) for position in group]
    return [group for _, group in single], [number for number, _ in single]


def _by_class(
    found: Float[np.ndarray, "stream layer group"], columns: list[int]
) -> Float[np.ndarray, "stream layer class"]:
    """The mean of each class's groups; NaN where it has none."""
    number, shares = np.array(columns), np.full((*found.shape[:2], len(CLASSES)), np.nan)
    for column in set(columns):
        shares[..., column] = found[..., number == column].mean(-1)
    return shares
