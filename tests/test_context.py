from types import SimpleNamespace

import torch

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


def test_windows_are_of_the_given_prompts_and_whole_where_that_is_asked():
    runs, _ = runs_of(tiny_model("llama"))
    pairs = random_pairs(runs, 3)
    context = SimpleNamespace(runs=runs, pairs=pairs, max_tokens=10_000)
    [own], [given] = ScorerContext.windows(context), ScorerContext.windows(context, pairs[1:], whole=True)
    assert (own.pairs, given.pairs) == (tuple(pairs), tuple(pairs[1:]))
    assert own.start > given.start == 0


def test_what_is_drawn_is_of_the_seed():
    one, other = (torch.rand(3, generator=ScorerContext.generator(SimpleNamespace(seed=s))) for s in (3, 4))
    assert torch.equal(one, torch.rand(3, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(one, other)
