import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

from peft_surgical.architectures import architecture_of
from peft_surgical.errors import ModelError
from peft_surgical.running.replicas import replicate
from peft_surgical.running.suffix import SuffixRunner

from .threads import threads
from .tiny import FAMILIES, tiny_ids, tiny_longrope, tiny_model

PREFIX = tuple(tiny_ids(1, 7, seed=9)[0].tolist())
LENGTHS = (3, 8, 1, 5)


def rows(prefix):
    return [(*prefix, *tiny_ids(1, length, seed=length)[0].tolist()) for length in LENGTHS]


def layers_of(model):
    return model.get_submodule(architecture_of(model.config.model_type).layers)


def spans_of(sequences, skip):
    """From some position after the prefix to the end."""
    return [(max(skip, len(row) - 3), len(row)) for row in sequences]


def plain(model, sequences, spans):
    return torch.cat(
        [model(torch.tensor([row])).logits[0, start:stop] for row, (start, stop) in zip(sequences, spans, strict=True)]
    )


def gradients(model, first, output):
    """Of a loss that weighs every logit differently, at the parameters of the layers from `first` on."""
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    named = [
        (name, p) for i, layer in enumerate(layers_of(model)) if i >= first for name, p in layer.named_parameters()
    ]
    return torch.autograd.grad((output * weights).sum(), [p for _, p in named])


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("prefix", [(), PREFIX], ids=["alone", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_a_plain_forward(family, prefix, first):
    model = tiny_model(family)
    sequences = rows(prefix)
    spans = spans_of(sequences, len(prefix))
    runner = SuffixRunner(model, layers_of(model), first, prefix)
    assert runner.add(sequences, batch_size=3) == [0, 1, 2, 3]
    found, expected = runner.logits(range(4), spans), plain(model, sequences, spans)
    assert found.shape == (sum(stop - start for start, stop in spans), 128)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    for a, b in zip(gradients(model, first, found), gradients(model, first, expected), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    # Any rows, in any order, and later ones too.
    assert runner.add([(*prefix, 5, 6)]) == [4]
    picked = [4, 1]
    chosen = [(*prefix, 5, 6), sequences[1]]
    torch.testing.assert_close(
        runner.logits(picked, spans_of(chosen, len(prefix))),
        plain(model, chosen, spans_of(chosen, len(prefix))),
        atol=2e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("prefix", [(), PREFIX], ids=["alone", "shared"])
def test_layers_that_give_tuples_are_skipped_too(prefix, first):
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
    model = GPTJForCausalLM(GPTJConfig(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    sequences = rows(prefix)
    spans = spans_of(sequences, len(prefix))
    runner = SuffixRunner(model, model.transformer.h, first, prefix)
    runner.add(sequences)
    later = SuffixRunner(model, model.transformer.h, first, prefix)
    later.reuse(runner.entering(range(4)))
    ran = []
    hook = model.transformer.h[0].register_forward_hook(lambda *_: ran.append(0))
    later.add(sequences)
    hook.remove()
    assert not ran
    expected = plain(model, sequences, spans)
    for one in (runner, runner.unshared(), later):
        torch.testing.assert_close(one.logits(range(4), spans), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_long_rows_are_filled_to_like_shapes_and_give_the_same(family, first):
    model = tiny_model(family)
    sequences = [(*PREFIX, *tiny_ids(1, length, seed=length)[0].tolist()) for length in (18, 21, 17, 9)]
    spans = spans_of(sequences, len(PREFIX))
    runner = SuffixRunner(model, layers_of(model), first, PREFIX)
    runner.add(sequences)
    assert [runner.length(i) for i in range(4)] == [18, 21, 17, 9]
    assert [runner.load(i) for i in range(4)] == [20, 24, 20, 9]
    shapes = []
    layers_of(model)[-1].register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[:2]))
    found = runner.logits(range(4), spans)
    assert shapes == [(1, 7), (4, 24)]
    assert runner.width([0, 2]) == 20
    expected = plain(model, sequences, spans)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    for a, b in zip(gradients(model, first, found), gradients(model, first, expected), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_a_row_that_fills_the_last_position_is_not_filled_beyond_it():
    model = tiny_model("gpt2")
    positions = model.config.max_position_embeddings
    sequences = [(*PREFIX, *tiny_ids(1, positions - 7 - left, seed=left)[0].tolist()) for left in (0, 2, 4)]
    runner = SuffixRunner(model, layers_of(model), 0, PREFIX)
    runner.add(sequences)
    spans = spans_of(sequences, len(PREFIX))
    assert [runner.width([i]) for i in range(3)] == [positions - 7, positions - 8, positions - 8]
    torch.testing.assert_close(runner.logits(range(3), spans), plain(model, sequences, spans), atol=2e-5, rtol=1e-4)


def test_no_row_is_filled_to_where_positions_are_turned_otherwise():
    model = tiny_longrope(30)
    sequences = [(*PREFIX, *tiny_ids(1, length, seed=length)[0].tolist()) for length in (22, 23, 24)]
    runner = SuffixRunner(model, layers_of(model), 0, PREFIX)
    runner.add(sequences[:2])
    spans = spans_of(sequences[:2], len(PREFIX))
    found = runner.logits(range(2), spans)
    torch.testing.assert_close(found, plain(model, sequences[:2], spans), atol=2e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="have 31 tokens, and beyond 30 LongRoPE turns positions otherwise"):
        runner.add(sequences[2:])


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_that_runs_once_gives_the_same_gradients(family, first):
    model = tiny_model(family)
    sequences = rows(PREFIX)
    spans = spans_of(sequences, len(PREFIX))
    runner = SuffixRunner(model, layers_of(model), first, PREFIX)
    runner.add(sequences)
    parameters = [p for i, layer in enumerate(layers_of(model)) if i >= first for p in layer.parameters()]
    prefixes = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: prefixes.append(args[0].tolist()))

    def back(rows):
        runner.logits(rows, [spans[row] for row in rows]).square().sum().backward()

    def taken():
        found = [p.grad.clone() for p in parameters]
        model.zero_grad()
        return found

    for row in range(4):
        back([row])
    expected, count = taken(), prefixes.count([list(PREFIX)])
    prefixes.clear()
    with runner.prefix_once() as begun:
        back([0, 2])
        back([1, 3])
        stopped = [leaf.grad.clone() for leaf in begun.leaves if leaf.grad is not None]
    assert (count, prefixes.count([list(PREFIX)])) == (4, 1)
    assert all(gradient.abs().sum() > 0 for gradient in stopped)
    for a, b in zip(taken(), expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    # Outside of the block each pass runs it again, and what happened inside is forgotten.
    back([0])
    assert prefixes.count([list(PREFIX)]) == 2
    model.zero_grad()
    with pytest.raises(RuntimeError, match="failed"), runner.prefix_once():
        raise RuntimeError("failed")
    back([0])
    assert prefixes.count([list(PREFIX)]) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_what_each_row_does_through_a_prefix_is_told_apart(family):
    model = tiny_model(family)
    prefix = tuple(tiny_ids(1, 9, seed=9)[0].tolist())
    sequences = rows(prefix)
    spans = spans_of(sequences, len(prefix))
    runner = SuffixRunner(model, layers_of(model), 0, prefix)
    runner.add(sequences)
    parameters = [*layers_of(model)[0].parameters()]
    assert runner.tells_rows_apart(parameters)
    every = []
    for row in range(4):
        with runner.prefix_once():
            runner.logits([row], [spans[row]]).square().sum().backward()
        every.append([p.grad.clone() for p in parameters])
        model.zero_grad()
    with runner.prefix_once(apart=True) as begun:
        for chosen in ([3, 0, 1], [2]):
            runner.logits(chosen, [spans[row] for row in chosen]).square().sum().backward()
            beside = [p.grad.clone() for p in parameters]
            through = begun.of_each(parameters)
            assert all(leaf.grad is None for leaf in begun.leaves)
            model.zero_grad()
            for place, own in enumerate(through):
                expected = torch.stack([every[row][place] for row in chosen])
                found = torch.zeros_like(expected) if own is None else own
                # What rows do themselves is in the sum alone.
                torch.testing.assert_close(
                    found.sum(0) + beside[place], expected.sum(0), atol=2e-4, rtol=1e-3, msg=f"parameter {place}"
                )
        # Without rows that went on and went back nothing arrives.
        begun.going_on(2)
        assert begun.of_each(parameters) == [None] * len(parameters)
    alone = runner.unshared()
    assert not alone.tells_rows_apart(parameters)


def test_rows_are_not_told_apart_where_that_gains_nothing_or_cannot_be(monkeypatch):
    model = tiny_model("llama")
    parameters = [*layers_of(model)[0].parameters()]
    short, long = (SuffixRunner(model, layers_of(model), 0, tuple(tiny_ids(1, n, seed=9)[0].tolist())) for n in (7, 9))
    assert not short.tells_rows_apart(parameters)
    assert long.tells_rows_apart(parameters)

    def unknown(*_):
        raise RuntimeError("Batching rule not implemented")

    monkeypatch.setattr("peft_surgical.running.beginnings.Beginning.of_each", unknown)
    assert not long.tells_rows_apart(parameters)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "phi3"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_prefix_longer_than_the_sliding_window(family, first):
    model = tiny_model(family, sliding_window=4)
    sequences = rows(PREFIX)
    spans = spans_of(sequences, len(PREFIX))
    runner = SuffixRunner(model, layers_of(model), first, PREFIX)
    runner.add(sequences)
    expected = plain(model, sequences, spans)
    assert (expected - plain(tiny_model(family), sequences, spans)).abs().max() > 1e-3
    torch.testing.assert_close(runner.logits(range(4), spans), expected, atol=2e-5, rtol=1e-4)


def test_a_change_above_is_seen_and_the_layers_below_are_not_run_again():
    model = tiny_model("llama")
    runner = SuffixRunner(model, layers_of(model), 2, PREFIX)
    sequences = rows(PREFIX)
    runner.add(sequences)
    spans = spans_of(sequences, len(PREFIX))
    before = runner.logits(range(4), spans)
    ran = []
    for index, layer in enumerate(layers_of(model)):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(1.5)
    after = runner.logits(range(4), spans)
    assert set(ran) == {2}
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, plain(model, sequences, spans), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", [(), PREFIX], ids=["alone", "shared"])
def test_a_later_runner_of_the_same_base_does_not_run_the_layers_below_again(prefix):
    model, sequences = tiny_model("llama"), rows(prefix)
    spans = spans_of(sequences, len(prefix))
    earlier = SuffixRunner(model, layers_of(model), 2, prefix)
    earlier.add(sequences)
    later = SuffixRunner(model, layers_of(model), 2, prefix)
    later.reuse(earlier.entering(range(1, 4)))
    ran = []
    layers_of(model)[0].mlp.register_forward_hook(lambda _, args, __: ran.append(args[0].shape[0]))
    later.add(sequences[1:])
    assert ran == []
    later.add(sequences[:1])
    # The prefix, if there is one, and the sequence that was left out.
    assert ran == [1] * (2 if prefix else 1)
    assert torch.equal(later.logits(range(3), spans[1:]), earlier.logits([1, 2, 3], spans[1:]))
    # What ran in a batch of its own rounds otherwise.
    torch.testing.assert_close(later.logits([3], spans[:1]), earlier.logits([0], spans[:1]), atol=2e-5, rtol=1e-4)


def test_what_entered_elsewhere_is_not_taken():
    model, sequences = tiny_model("llama"), rows(PREFIX)
    earlier = SuffixRunner(model, layers_of(model), 2, PREFIX)
    earlier.add(sequences)
    entering = earlier.entering(range(4))
    assert SuffixRunner(model, layers_of(model), 0, PREFIX).entering([]) is None
    for first, prefix, dtype in ((1, PREFIX, "float32"), (2, PREFIX[:1], "float32"), (2, PREFIX, "bfloat16")):
        other = tiny_model("llama").to(getattr(torch, dtype))
        found, fresh = (SuffixRunner(other, layers_of(other), first, prefix) for _ in range(2))
        found.reuse(entering)
        found.add(sequences)
        fresh.add(sequences)
        spans = spans_of(sequences, len(prefix))
        assert torch.equal(found.logits(range(4), spans), fresh.logits(range(4), spans))


@pytest.mark.parametrize("prefix", [(), PREFIX], ids=["alone", "shared"])
@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_what_there_is_no_room_for_is_computed_again(kept, prefix):
    model = tiny_model("llama")
    sequences, ran = rows(prefix), []
    spans = spans_of(sequences, len(prefix))
    token = 4 * model.config.hidden_size
    runner = SuffixRunner(model, layers_of(model), 2, prefix, room=sum(LENGTHS[:kept]) * token)
    runner.add(sequences)
    assert [states is not None for states in runner._entering] == [place < kept for place in range(4)]
    # The batch that they were computed in is not held with them.
    assert all(own.untyped_storage().nbytes() == own.nbytes for own in runner._entering if own is not None)
    layers_of(model)[0].mlp.register_forward_hook(lambda _, args, __: ran.append(len(args[0])))
    expected = SuffixRunner(model, layers_of(model), 2, prefix)
    expected.add(sequences)
    ran.clear()
    # Right also where rows are kept and others are not, and apart from their prefix.
    for indices in ([0, 1, 2, 3], [3, 0], [1]):
        chosen = [spans[i] for i in indices]
        found = runner.logits(indices, chosen)
        torch.testing.assert_close(found, expected.logits(indices, chosen), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(runner.unshared().logits(indices, chosen), found, atol=2e-5, rtol=1e-4)
    assert bool(ran) == (kept < 4)


def state(model):
    return [(vars(m).get("forward"), len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]


@pytest.mark.parametrize("step", ["add", "logits"])
def test_the_model_is_as_before_also_after_an_exception(step):
    model = tiny_model("llama")
    layers = layers_of(model)
    own = layers[0].forward
    layers[0].forward = lambda *args, **kwargs: own(*args, **kwargs)  # as a device map hooks in
    before = state(model)
    runner = SuffixRunner(model, layers, 2, PREFIX)
    sequences = rows(PREFIX)
    spans = spans_of(sequences, len(PREFIX))
    if step == "logits":
        runner.add(sequences)
        assert state(model) == before
        runner.logits(range(4), spans)
        assert state(model) == before

    def broken(*_):
        raise RuntimeError("broken")

    handle = model.model.norm.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        runner.add(sequences) if step == "add" else runner.logits(range(4), spans)
    handle.remove()
    assert state(model) == before


def test_rows_and_positions_that_are_refused():
    runner = SuffixRunner(model := tiny_model("llama"), layers_of(model), 1, PREFIX)
    for row in ((3, 4), PREFIX):
        with pytest.raises(ValueError, match="must begin with the shared prefix and go on"):
            runner.add([row])
    runner.add(rows(PREFIX))
    for span in ((len(PREFIX) - 1, len(PREFIX) + 1), (len(PREFIX), len(PREFIX) + 4), (len(PREFIX), len(PREFIX))):
        with pytest.raises(ValueError, match="are not all from token 7 on in the sequence"):
            runner.logits([0], [span])


@pytest.mark.parametrize("first", [0, 2])
def test_unshared_rows_give_the_same_logits(first):
    model = tiny_model("llama")
    sequences = rows(PREFIX)
    runner = SuffixRunner(model, layers_of(model), first, PREFIX)
    runner.add(sequences)
    spans = spans_of(sequences, len(PREFIX))
    alone = runner.unshared()
    assert alone.prefix == ()
    expected = runner.logits(range(len(sequences)), spans)
    torch.testing.assert_close(alone.logits(range(len(sequences)), spans), expected, rtol=1e-4, atol=1e-5)
    assert alone.unshared() is alone


@pytest.mark.parametrize("room", [2**30, 0])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_replica_runs_the_same_rows(family, room):
    model = tiny_model(family)
    sequences = rows(PREFIX)
    spans = spans_of(sequences, len(PREFIX))
    runner = SuffixRunner(model, layers_of(model), 1, PREFIX, room=room)
    runner.add(sequences)
    with threads(2):
        _, other = replicate(model)
    found, expected = runner.on(other).logits(range(4), spans), runner.logits(range(4), spans)
    assert torch.equal(found, expected)
    assert runner.model is model
    assert runner.on(other).head is other.model.get_output_embeddings() is not runner.head
    for a, b in zip(gradients(other.model, 1, found), gradients(model, 1, expected), strict=True):
        torch.testing.assert_close(a, b)
