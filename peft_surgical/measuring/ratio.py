"""The ratio of two rates over the same prompts, with an interval that knows that they are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metrics import Z95, Figure, wilson


def paired_ratio(hits: Sequence[bool], reference: Sequence[bool]) -> Figure | None:
    """One rate over another, with the hybrid Wilson 95% interval of Bonett and Price (2006).

    It divides the ends of two Wilson intervals, narrowed by as much as the two agree from prompt to prompt, and holds
    where a bootstrap would not: with few prompts, and where a rate is 0 or 1.

    Args:
        hits: What counts, in order.
        reference: What it is compared with, prompt by prompt.

    Returns:
        The ratio; `n` counts all prompts. None where `reference` has no hit, so that there is no ratio.

    ```py
    >>> paired_ratio([True, False, False, False], [True, True, True, True])
    Figure(value=0.25, n=4, low=0.0504..., high=1.2391...)
    ```
    """
    first, second = sum(hits), sum(reference)
    if not second:
        return None
    pairs = list(zip(hits, reference, strict=True))
    # Prompts that neither hits tell nothing of a ratio.
    either = sum(a or b for a, b in pairs)
    apart = sum(a != b for a, b in pairs)

    def spread(count: int) -> float:
        return math.sqrt((1 - (count + 1) / (either + 2)) / (count + 1))

    together = math.sqrt((apart + 2) / ((first + 1) * (second + 1)))
    z = Z95 * together / (spread(first) + spread(second))
    (low, high), (least, most) = wilson(first, either, z), wilson(second, either, z)
    return Figure(first / second, len(pairs), low / most, high / least)
