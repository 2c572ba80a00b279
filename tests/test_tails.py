import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peft_surgical.running.replicas import replicate
from peft_surgical.running.tails import TailRunner

from .filling import fill_rows
from .test_suffix import gradients, layers_of, plain, state
from .threads import threads
from .tiny import FAMILIES, tiny_ids, tiny_model

LENGTHS = (11, 4, 9, 6)
STARTS = (7, 0, 2, 5)
SEQUENCES = [tuple(tiny_ids(1, length, seed=length)[0].tolist()) for length in LENGTHS]
# Some from the very start, and to the end.
SPANS = [(7, 11), (0, 4), (6, 9), (5, 6)]


def runner_of(model, first=0, **options):
    made = TailRunner(model, layers_of(model), first, **options)
    assert made.add(SEQUENCES, starts=STARTS, batch_size=3) == [0, 1, 2, 3]
    return made


def changed_at(model, layer, where):
    """Adds a trained vector to what leaves an MLP, at some tokens."""
    delta = torch.linspace(-1, 1, model.config.hidden_size, requires_grad=True)

    def add(_, __, output):
        return output + where.to(output) * delta

    return delta, layers_of(model)[layer].register_forward_hook(
        lambda m, a, out: (add(m, a, out[0]), *out[1:]) if isinstance(out, tuple) else add(m, a, out)
    )


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_a_plain_forward(family, first):
    model = tiny_model(family)
    runner = runner_of(model, first)
    torch.testing.assert_close(runner.logits(range(4), SPANS), plain(model, SEQUENCES, SPANS), atol=2e-5, rtol=1e-4)
    # Any rows, in any order, those alone that run whole, and later ones.
    assert runner.add([(5, 6, 7)], starts=[2]) == [4]
    rows = [*SEQUENCES, (5, 6, 7)]
    for picked in ([4, 0], [1], [3, 1]):
        spans = [(len(rows[i]) - 1, len(rows[i])) for i in picked]
        expected = plain(model, [rows[i] for i in picked], spans)
        torch.testing.assert_close(runner.logits(picked, spans), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_tails_that_are_filled_give_the_same(family, first, monkeypatch):
    fill_rows(monkeypatch, 10)
    model = tiny_model(family)
    runner = runner_of(model, first)
    assert [runner.length(i) for i in range(4)] == [4, 4, 7, 1]
    assert runner.width(range(4)) == 10
    torch.testing.assert_close(runner.logits(range(4), SPANS), plain(model, SEQUENCES, SPANS), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_acts_from_the_starts_on_has_the_gradient_of_a_plain_forward(family, first):
    model = tiny_model(family).requires_grad_(False)
    runner = runner_of(model, first)
    found, expected = [], []
    tails = torch.zeros(4, 11, 1)
    for row, start in enumerate(STARTS):
        tails[row, [0, 1][: LENGTHS[row] - start]] = 1
    width = max(length - start for length, start in zip(LENGTHS, STARTS, strict=True))
    delta, handle = changed_at(model, 1, tails[:, :width])
    logits = runner.logits(range(4), SPANS)
    weights = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
    found = [logits.detach(), *torch.autograd.grad((logits * weights).sum(), [delta])]
    handle.remove()
    parts, total = [], torch.zeros_like(delta)
    begin = 0
    for row, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        where = torch.zeros(1, length, 1)
        where[0, start : start + 2] = 1
        delta, handle = changed_at(model, 1, where)
        logits = plain(model, [SEQUENCES[row]], [SPANS[row]])
        own = weights[begin : begin + len(logits)]
        begin += len(logits)
        total += torch.autograd.grad((logits * own).sum(), [delta])[0]
        parts.append(logits.detach())
        handle.remove()
    expected = [torch.cat(parts), total]
    assert (expected[0] - plain(model, SEQUENCES, SPANS)).abs().max() > 1e-3
    torch.testing.assert_close(found[0], expected[0], atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], expected[1], atol=5e-4, rtol=1e-3)


def test_half_precision():
    model = tiny_model("llama").to(torch.bfloat16)
    found, expected = runner_of(model, 1).logits(range(4), SPANS), plain(model, SEQUENCES, SPANS)
    assert found.dtype == torch.bfloat16
    # Eight bits of mantissa, over three layers.
    torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_double_precision(family, attention):
    model = tiny_model(family).double()
    model.set_attn_implementation(attention)
    made = runner_of(model, 1).logits(range(4), SPANS)
    torch.testing.assert_close(made, plain(model, SEQUENCES, SPANS), atol=1e-6, rtol=1e-6)


def test_many_tokens_of_beginnings_are_not_run_at_once(monkeypatch):
    model, seen = tiny_model("llama"), []
    handle = layers_of(model)[0].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:2]))
    monkeypatch.setattr("peft_surgical.running.tails._TOKENS", 10)
    runner = runner_of(model)
    handle.remove()
    assert seen == [(1, 7), (2, 5)]
    assert tuple(runner.starts) == STARTS
    torch.testing.assert_close(runner.logits(range(4), SPANS), plain(model, SEQUENCES, SPANS), atol=2e-5, rtol=1e-4)


def test_without_starts_it_is_the_runner_of_whole_sequences():
    model = tiny_model("llama")
    runner = TailRunner(model, layers_of(model), 1)
    runner.add(SEQUENCES)
    found, expected = runner.logits(range(4), SPANS), plain(model, SEQUENCES, SPANS)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    for a, b in zip(gradients(model, 1, found), gradients(model, 1, expected), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "phi3"])
@pytest.mark.parametrize("first", [0, 2])
def test_beginnings_longer_than_the_sliding_window(family, first):
    model = tiny_model(family, sliding_window=4)
    expected = plain(model, SEQUENCES, SPANS)
    assert (expected - plain(tiny_model(family), SEQUENCES, SPANS)).abs().max() > 1e-3
    torch.testing.assert_close(runner_of(model, first).logits(range(4), SPANS), expected, atol=2e-5, rtol=1e-4)


def test_what_stands_before_is_not_run_again():
    model = tiny_model("llama")
    runner, seen = runner_of(model), []
    layers_of(model)[0].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:2]))
    runner.logits([0, 3], [SPANS[0], SPANS[3]])
    assert seen == [(2, 4)]


@pytest.mark.parametrize("first", [0, 2])
def test_what_begins_alike_is_run_and_kept_once(first):
    model, seen = tiny_model("llama"), []
    rows = [(*SEQUENCES[0][:4], 5, 6), (*SEQUENCES[0][:4], 7), SEQUENCES[0]]
    spans = [(len(row) - 1, len(row)) for row in rows]
    handle = layers_of(model)[-1].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:2]))
    # Four tokens of three layers' keys and values, of two heads and eight dimensions, in four bytes.
    runner = TailRunner(model, layers_of(model), first, room=4 * (3 * 2 * 2 * 8 * 4) + 2**12 * first)
    runner.add(rows, starts=[4, 4, 4])
    handle.remove()
    assert seen == [(1, 4)]
    assert runner.starts == [4, 4, 4]
    torch.testing.assert_close(runner.logits(range(3), spans), plain(model, rows, spans), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize(("family", "window"), [("llama", None), ("gpt2", None), ("gemma3", 4)])
def test_what_all_beginnings_begin_with_is_run_once(family, window, first):
    model, seen = tiny_model(family, **({} if window is None else {"sliding_window": window})), []
    shared = tuple(tiny_ids(1, 9, seed=5)[0].tolist())
    rows = [(*shared, *row) for row in SEQUENCES]
    handle = model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    runner = TailRunner(model, layers_of(model), first)
    # One tail begins where all still begin alike, one has no beginning.
    runner.add(rows, starts=[14, 9, 11, 0])
    handle.remove()
    # A token is left to run of each beginning.
    assert seen[:2] == [(1, 8), (3, 6)]
    assert runner.starts == [14, 9, 11, 0]
    spans = [(len(row) - 2, len(row)) for row in rows]
    torch.testing.assert_close(runner.logits(range(4), spans), plain(model, rows, spans), atol=2e-5, rtol=1e-4)


def test_room_goes_to_what_many_begin_with():
    model = tiny_model("llama")
    token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, dimensions, bytes
    long = [(*SEQUENCES[0][:8], i, 3) for i in range(2)]
    many = [(*SEQUENCES[2][:4], i, 3) for i in range(5)]
    runner = TailRunner(model, layers_of(model), 0, room=(4 + 8) * token)
    runner.add([*long, *many], starts=[9, 8, 4, 4, 4, 4, 4])
    assert runner.starts == [0, 8, 4, 4, 4, 4, 4]


def test_what_is_read_counts_less_than_what_runs():
    runner = runner_of(tiny_model("llama"))
    assert [runner.length(i) for i in range(4)] == [4, 4, 7, 1]
    assert [runner.load(i) for i in range(4)] == [4 + 1, 4, 7, 1 + 1]


@pytest.mark.parametrize("first", [1, 2])
def test_frozen_layers_read_their_own_keys_and_values(first, monkeypatch):
    model, read = tiny_model("llama"), []
    plain = TailRunner._cache

    def cache(*arguments):
        made = plain(*arguments)
        read.append(len(made.layers))
        return made

    monkeypatch.setattr(TailRunner, "_cache", cache)
    runner = runner_of(model, first)
    runner.logits([0], SPANS[:1])
    assert read == [first, first, 3]


@pytest.mark.parametrize("first", [0, 2])
def test_what_there_is_no_room_for_runs_whole(first):
    model = tiny_model("llama")
    token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, dimensions, bytes
    runner = runner_of(model, first, room=7 * token + 1)
    assert runner.starts == [7, 0, 0, 0]
    # Nor is what they were computed beside held with them.
    kept = [part for own in runner_of(model, first)._kept for layer in own or () for part in layer]
    assert kept
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in kept)
    torch.testing.assert_close(runner.logits(range(4), SPANS), plain(model, SEQUENCES, SPANS), atol=2e-5, rtol=1e-4)
    assert runner_of(model, first, room=0).starts == [0, 0, 0, 0]


def test_a_sequence_at_the_last_position():
    model = tiny_model("gpt2", n_positions=12)
    long, short = (tuple(tiny_ids(1, length, seed=length)[0].tolist()) for length in (12, 8))
    runner = TailRunner(model, layers_of(model), 0)
    runner.add([long, short], starts=[11, 1])
    spans = [(11, 12), (7, 8)]
    torch.testing.assert_close(runner.logits([0, 1], spans), plain(model, [long, short], spans), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("starts", [[11], [-1]])
def test_a_start_outside_of_its_sequence_is_refused(starts):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=f"of 11 tokens cannot be run from its token {starts[0]} on"):
        TailRunner(model, layers_of(model), 0).add(SEQUENCES[:1], starts=starts)


def test_reading_before_the_start_is_refused():
    with pytest.raises(ValueError, match="not all from token 7 on"):
        runner_of(tiny_model("llama")).logits([0], [(6, 8)])


def test_the_model_is_as_before():
    model = tiny_model("llama")
    before = state(model)
    runner_of(model, 1).logits(range(4), SPANS)
    assert state(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replica_runs_the_same_tails(family):
    model = tiny_model(family)
    runner = runner_of(model, 1)
    with threads(2):
        _, other = replicate(model)
    assert torch.equal(runner.on(other).logits(range(4), SPANS), runner.logits(range(4), SPANS))


# They count positions from what they keep, and take none.
UNTOLD_PLACES = {
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "trocr": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "roformer": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
}


@pytest.mark.parametrize("starts", [STARTS, (3, 3, 3, 3)])
@pytest.mark.parametrize("family", UNTOLD_PLACES)
@torch.no_grad()
def test_rows_run_whole_where_a_model_is_told_no_positions(family, starts):
    sizes = {"vocab_size": 128, "is_decoder": True, "pad_token_id": 0, **UNTOLD_PLACES[family]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    [layers] = [own for own in model.modules() if isinstance(own, torch.nn.ModuleList)]
    runner = TailRunner(model, layers, 0)
    runner.add(SEQUENCES, starts=starts)
    assert runner.starts == [0] * 4
    spans = [(length - 1, length) for length in LENGTHS]
    torch.testing.assert_close(runner.logits(range(4), spans), plain(model, SEQUENCES, spans), atol=2e-5, rtol=1e-4)
