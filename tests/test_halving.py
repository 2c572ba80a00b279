from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from peft_surgical.errors import ModelError
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.running.tails import TailRunner
from peft_surgical.stages import learn

from . import test_keyed
from .adapters import deltas
from .staged import FACT, RECIPE, TOKENIZER, config
from .test_suffix import layers_of
from .tiny import tiny_ids, tiny_model

PREFIX = tuple(tiny_ids(1, 6, seed=9)[0].tolist())
LENGTHS = (3, 8, 1, 5, 8, 2)
ROWS = [(*PREFIX, *tiny_ids(1, length, seed=length)[0].tolist()) for length in LENGTHS]
LAST = [(len(row) - 1, len(row)) for row in ROWS]


@contextmanager
def passing_by(model, holds=None):
    """The shapes that go through the first layer; more rows than it holds are too many."""
    shapes = []

    def look(_, given):
        shapes.append(tuple(given[0].shape[:2]))
        if holds is not None and len(given[0]) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = layers_of(model)[0].register_forward_pre_hook(look)
    try:
        yield shapes
    finally:
        handle.remove()


def suffixes(model, **options):
    runner = SuffixRunner(model, layers_of(model), 2, PREFIX, **options)
    runner.add(ROWS)
    return runner


def tails(model, **options):
    runner = TailRunner(model, layers_of(model), 2, **options)
    # Beginnings, too, are of several lengths.
    runner.add(ROWS, starts=[len(PREFIX) + length // 2 for length in LENGTHS])
    return runner


KINDS = pytest.mark.parametrize("made", [suffixes, tails])


@KINDS
@pytest.mark.parametrize("tokens", [1, 12, 16])
def test_no_more_tokens_than_are_allowed_go_through_what_is_frozen_at_once(made, tokens):
    model = tiny_model("llama")
    expected = made(model).logits(range(len(ROWS)), LAST)
    with passing_by(model) as shapes:
        runner = made(model, tokens=tokens)
    assert all(rows * width <= tokens or rows == 1 for rows, width in shapes)
    assert tokens == 1 or any(rows > 1 for rows, _ in shapes)
    torch.testing.assert_close(runner.logits(range(len(ROWS)), LAST), expected, atol=2e-5, rtol=1e-4)


@KINDS
def test_what_is_frozen_runs_with_the_memory_there_is(made):
    model = tiny_model("llama")
    expected = made(model).logits(range(len(ROWS)), LAST)
    with passing_by(model, holds=2) as shapes:
        runner = made(model)
    assert {rows for rows, _ in shapes} >= {2, 6}
    torch.testing.assert_close(runner.logits(range(len(ROWS)), LAST), expected, atol=2e-5, rtol=1e-4)
    with passing_by(model, holds=0), pytest.raises(torch.OutOfMemoryError):
        made(model)


@KINDS
def test_processes_that_run_together_do_not_halve(made, monkeypatch):
    for module in ("suffix", "tails"):
        monkeypatch.setattr(f"peft_surgical.running.{module}.is_run_together", lambda _: True)
    model = tiny_model("llama")
    with passing_by(model, holds=2), pytest.raises(ModelError, match=r"not enough memory for a pass of [3-6] rows"):
        made(model)


def test_a_recipe_says_how_many_tokens_go_through_what_is_frozen(monkeypatch):
    sizes, plain = [], SuffixRunner._compute_entering

    def spy(runner, indices):
        sizes.append((len(indices), len(indices) * runner.width(indices)))
        return plain(runner, indices)

    monkeypatch.setattr(SuffixRunner, "_compute_entering", spy)

    def trained(tokens):
        sizes.clear()
        recipe = replace(RECIPE, pass_tokens=tokens)
        return learn(tiny_model("llama"), TOKENIZER, FACT, config(["L2.mlp"]), recipe=recipe, progress=False).model

    whole = deltas(trained(None))
    assert max(tokens for _, tokens in sizes) > 60
    cut = deltas(trained(60))
    assert all(tokens <= 60 or rows == 1 for rows, tokens in sizes)
    assert all(torch.allclose(cut[name], own, atol=1e-4) for name, own in whole.items())
    made = []
    monkeypatch.setattr(TailRunner, "_run_before", lambda runner, *_: made.append(runner.tokens))
    test_keyed.taught(recipe=replace(test_keyed.RECIPE, pass_tokens=50))
    assert set(made) == {50}
