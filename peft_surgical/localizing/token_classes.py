"""A prompt's tokens by where they stand to the subject, so that prompts of other lengths and words have one map.

The classes are those of ROME's causal tracing (Meng et al., arXiv 2202.05262, figure 2), with three additions: what
stands *before the subject*, where no two runs differ; the *template tokens* behind a prompt, where a chat template has
some; and naming the subject more than once, as most answers begin by doing, each of which counts.

ROME counts the one token of a short subject as the first and as the last. Here a token is of one class: it is the
last, which is the one that counts.
"""

from __future__ import annotations

from collections.abc import Iterable

CLASSES = {
    "before": "before the subject",
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "subsequent": "first subsequent token",
    "further": "further tokens",
    "template": "template tokens",
    "last": "last token",
}
"""Name of each class, in the order in which tokens stand, and what it is in words."""


def token_classes(length: int, spans: Iterable[range], template: range = range(0)) -> tuple[str, ...]:
    """The class of each token that a model reads before it answers.

    Args:
        length: How many tokens there are. The last one is the one that the answer follows, whatever else it is.
        spans: The positions of the subject's tokens, each time that it is named, once at least.
        template: Where the chat template's tokens behind the prompt are.
    """
    spans = [*spans]
    ends, starts = {span[-1] for span in spans}, {span.start for span in spans}
    within = {position for span in spans for position in span}
    first = min(starts)

    def of(position: int) -> str:
        if position == length - 1:
            return "last"
        if position in within:
            return "subject_last" if position in ends else "subject_first" if position in starts else "subject_middle"
        if position < first:
            return "before"
        if position - 1 in ends:
            return "subsequent"
        return "template" if position in template else "further"

    return tuple(map(of, range(length)))
