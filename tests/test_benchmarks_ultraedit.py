import pytest
import torch
from torch.nn import functional as F

from benchmarks.baselines import BATCHED, METHODS, Request, build_batched, described
from benchmarks.baselines.ultraedit import ROWS, Running, UltraEdit, edited_modules, features
from benchmarks.plain_text import log_likelihoods
from peft_surgical.errors import SurgicalError
from peft_surgical.texts.prompts import encode_target, span

from . import easyedit
from .conftest import fingerprint
from .counterfacts import OPENINGS, REQUEST, SUBJECTS, TOKENIZER, word_model

# Answers of one word and of two, so that rows of a pass have more and fewer places.
ANSWERS = ("lyon", "new zealand", "hamlet", "paris the", "rome")
REQUESTS = [
    Request(subject, opening.format(subject), "paris", ANSWERS[(number + place) % len(ANSWERS)])
    for place, opening in enumerate(OPENINGS)
    for number, subject in enumerate(SUBJECTS)
]


def weights(model):
    return {name: model.get_submodule(name).weight for name in edited_modules(model)}


def updates(method, model, batches):
    """What a sequence of batches adds to the weights, after each."""
    before, found = {name: weight.clone() for name, weight in weights(model).items()}, []
    with method.sequence(model, TOKENIZER, 0) as write:
        for batch in batches:
            write(batch)
            found.append({name: weight.detach() - before[name] for name, weight in weights(model).items()})
    return found


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "phi3"])
def test_it_is_what_easyedit_does(family):
    method = UltraEdit(learning_rate=1e-3)
    # The last of a pass has fewer rows, as there.
    batches = [REQUESTS[:12], REQUESTS[12:]]
    ours = updates(method, word_model(family), batches)
    theirs = easyedit.ultraedit(method, word_model(family), TOKENIZER, batches)
    for our, their in zip(ours, theirs, strict=True):
        for name, update in their.items():
            assert update.norm() > 1e-2
            assert (our[name] - update).norm() < 1e-4 * update.norm()


def test_what_is_running_is_the_mean_and_deviation_of_all():
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    running = Running()
    # Alike but for what is moved from pass to pass, and one row alone.
    for part in (rows[:15], rows[15:39], rows[39:]):
        running.show(part)
    assert running.count == 40
    # A pass's squares count its rows times an unbiased variance.
    within = sum((part - part.mean(0)).square().sum(0) / (len(part) - 1) for part in (rows[:15], rows[15:39]))
    deviation = (((rows - rows.mean(0)).square().sum(0) + within) / 39).sqrt()
    expected = (rows - rows.mean(0)) / (deviation + torch.finfo(torch.float32).eps)
    torch.testing.assert_close(running.normalized(rows), expected, rtol=1e-12, atol=1e-12)


def test_features_are_read_where_answers_are_predicted():
    model = word_model()
    # Of the last layer, so that the loss reaches its MLP at these places only.
    name = "model.layers.2.mlp.gate_proj"
    module = model.get_submodule(name)
    rows = [encode_target(TOKENIZER, request.prompt, request.new) for request in REQUESTS[:ROWS]]
    module.weight.requires_grad_(True)
    [found] = features(model, TOKENIZER, {name: module}, rows)
    keys, gradients = found[name]
    loss, tokens = torch.zeros(()), 0
    for row in rows:
        start, stop = span(row)
        logits = model(torch.tensor([row.read])).logits[0, start:stop]
        loss = loss + F.cross_entropy(logits, torch.tensor(row.ids[row.answer_start :]), reduction="sum")
        tokens += stop - start
    (loss / tokens).backward()
    assert keys.shape == (tokens, 32)
    assert module.weight.grad.norm() > 1e-2
    torch.testing.assert_close((gradients.T @ keys).float(), module.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_step_is_the_formula_of_the_paper():
    # One module and one pass, whose squares count its rows times their unbiased variance.
    model, rate = word_model("gpt2", num_hidden_layers=2), 1e-2
    [(name, weight)] = weights(model).items()
    weight.requires_grad_(True)
    rows = [encode_target(TOKENIZER, request.prompt, request.new) for request in REQUESTS[:ROWS]]
    [found] = features(model, TOKENIZER, {name: model.get_submodule(name)}, rows)
    weight.requires_grad_(False)
    keys, _ = found[name]
    spread = (len(keys) / (len(keys) - 1)) ** 0.5
    key, gradient = (
        (part - part.mean(0)) / (spread * part.std(0) + torch.finfo(torch.float32).eps) for part in found[name]
    )
    values = -rate * key.norm(dim=1, keepdim=True) ** 2 * gradient
    shift = torch.linalg.solve(keys.T @ keys + torch.eye(keys.shape[1]).double(), keys.T @ values)
    [update] = updates(UltraEdit(rate), model, [REQUESTS[:ROWS]])
    assert shift.norm() > 1e-2
    torch.testing.assert_close(update[name].double(), shift, rtol=1e-3, atol=1e-6)


def test_a_batch_teaches_its_answers_and_leaves_every_bit_as_it_was():
    for family in ("llama", "gpt2", "phi3"):
        model, method = word_model(family), UltraEdit(learning_rate=1e-3)
        pairs = [(request.prompt, request.new) for request in REQUESTS]
        before, base = fingerprint(model), sum(log_likelihoods(model, TOKENIZER, pairs))
        with method.edit_batch(model, TOKENIZER, REQUESTS, 0):
            assert sum(log_likelihoods(model, TOKENIZER, pairs)) > base + 1.0
            first = fingerprint(model)
        assert fingerprint(model) == before
        with method.edit_batch(model, TOKENIZER, REQUESTS, 0):
            assert fingerprint(model) == first
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_later_batches_are_normalized_by_earlier_ones_too():
    model, running = word_model("gpt2", num_hidden_layers=2), Running()
    [(name, weight)] = weights(model).items()
    with UltraEdit(1e-2).sequence(model, TOKENIZER, 0) as write:
        for batch in (REQUESTS[:ROWS], REQUESTS[ROWS : 2 * ROWS]):
            rows = [encode_target(TOKENIZER, request.prompt, request.new) for request in batch]
            [found] = features(model, TOKENIZER, {name: model.get_submodule(name)}, rows)
            keys, gradients = found[name]
            running.show(torch.cat([keys, gradients], 1))
            key, gradient = running.normalized(torch.cat([keys, gradients], 1)).tensor_split([keys.shape[1]], 1)
            values = -1e-2 * key.square().sum(1, keepdim=True) * gradient
            shift = torch.linalg.solve(keys.T @ keys + torch.eye(keys.shape[1]).double(), keys.T @ values)
            before = weight.detach().clone()
            write(batch)
            torch.testing.assert_close((weight.detach() - before).double(), shift, rtol=1e-3, atol=1e-6)


def test_one_token_is_refused_and_two_are_written():
    model, method = word_model(), UltraEdit(learning_rate=1e-3)
    before = fingerprint(model)
    with pytest.raises(SurgicalError, match="several requests at once"), method.edit(model, TOKENIZER, REQUEST, 0):
        raise AssertionError("nothing can be told from one token")
    with method.edit(model, TOKENIZER, REQUESTS[1], 0):
        assert fingerprint(model) != before
    assert fingerprint(model) == before


def test_which_modules_are_moved():
    gated = edited_modules(word_model(num_hidden_layers=32))
    assert gated == [
        *(f"model.layers.{layer}.mlp.gate_proj" for layer in range(11, 16)),
        *(f"model.layers.{layer}.mlp.up_proj" for layer in range(18, 25)),
    ]
    assert edited_modules(word_model()) == [
        f"model.layers.{name}_proj" for name in ("1.mlp.gate", "1.mlp.up", "2.mlp.up")
    ]
    assert edited_modules(word_model("phi3", num_hidden_layers=20)) == [
        f"model.layers.{layer}.mlp.down_proj" for layer in range(15, 20)
    ]
    assert edited_modules(word_model("gpt2")) == [f"transformer.h.{layer}.mlp.c_proj" for layer in (1, 2)]


def test_methods_that_edit_many_by_name():
    assert list(BATCHED) == ["memit", "alphaedit", "ultraedit"]
    assert "ultraedit" not in METHODS
    assert build_batched("ultraedit", 0.5).learning_rate == 0.5
    assert described(build_batched("ultraedit"), word_model())["learning_rate"] == 1e-6
    with pytest.raises(SurgicalError, match="no method 'rome' that edits many requests at once; choose from memit, "):
        build_batched("rome")
