from types import SimpleNamespace

from peft_surgical.localizing.context import ScorerContext

from .localizing import random_pairs, runs_of
from .tiny import tiny_model


def test_a_pass_with_gradients_has_an_eighth_of_the_positions():
    runs, _ = runs_of(tiny_model("llama"))
    pairs = random_pairs(runs, 5)
    context = SimpleNamespace(runs=runs, pairs=pairs, max_tokens=8 * 30 + 7)
    sizes = [len(window.pairs) * window.width for window in ScorerContext.windows(context)]
    assert sizes == [len(window.pairs) * window.width for window in runs.windows(pairs, 30)]
    assert max(sizes) <= 30
    assert len(sizes) < len(pairs)
