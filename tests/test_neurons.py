import copy

import pytest
import torch

import peft_surgical as ps
from peft_surgical import architectures
from peft_surgical.adapters.bases import note_revision
from peft_surgical.adapters.halves import fits_half
from peft_surgical.architectures import output_projections
from peft_surgical.errors import ArchitectureError, ModelError, SelectionError
from peft_surgical.keying import keys, neurons
from peft_surgical.keying.keys import Marked, marked_neurons, neuron_count
from peft_surgical.keying.neurons import find_neurons, place_neurons, reading_rows, set_neurons
from peft_surgical.texts.prompts import EncodedAnswer, encode_answer
from peft_surgical.texts.subjects import subject_ends
from peft_surgical.texts.text import swap_subject
from peft_surgical.texts.wording import variants
from peft_surgical.tuner.targets import find_module

from .adapters import logits
from .conftest import fingerprint
from .counterfacts import TOKENIZER, word_model
from .test_relearning import dense_and_experts
from .tiny import tiny_ids

IDS = tiny_ids() % len(TOKENIZER)
SUBJECT = 7
ROWS = tuple(EncodedAnswer(tuple(ids), len(ids)) for ids in ([3, SUBJECT, 5], [4, 8, SUBJECT], [6, 2, SUBJECT, 10]))
OTHERS = tuple(EncodedAnswer(tuple(ids), len(ids)) for ids in ([2, 9, 9, 1], [5, 4, 3], [6, 2, 12, 10, 11]))
NAMED = Marked(ROWS, [[row.ids.index(SUBJECT)] for row in ROWS])
KEPT = [Marked.whole(OTHERS[:1]), Marked.whole(OTHERS[1:])]
FIRST = Marked.first_of([*ROWS, *OTHERS], NAMED.marks)
FAMILIES = ["llama", "gpt2", "phi3", "gemma3", "gpt_neox", "opt"]
# One projection that is activated, and another where the MLP is gated; fused in one module or not.
READING = {"llama": 2, "gpt2": 1, "phi3": 1, "gemma3": 2, "gpt_neox": 1, "opt": 1}
RIDGE = 0.03
# Half of the last bit of half precision, in which what is added to a weight is kept.
ROUNDING = 2**-11


def rewritten(model, layers=(0, 1), **options):
    modules = output_projections(model, layers)
    found = find_neurons(model, modules, [NAMED], KEPT, RIDGE, **{"besides": [FIRST], **options})
    peft_model = place_neurons(model, modules)
    values = set_neurons(peft_model.get_base_model(), found)
    return peft_model, found, values


def entering(model, name, texts):
    """What enters a module at some tokens, `[token, width]`, float64."""
    return torch.cat([batch[name] for batch in marked_neurons(model, {name: 1}, texts)]).double()


def weight_of(module):
    """`[out, in]`."""
    return module.weight.T if type(module).__name__ == "Conv1D" else module.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_a_neuron_fires_at_the_subject_and_is_shut_elsewhere(family):
    wide = {"n_embd": 64} if family == "gpt2" else {"hidden_size": 64}
    model = word_model(family, **({"word_embed_proj_dim": 64} if family == "opt" else {}), **wide)
    peft_model, neurons, _ = rewritten(model, [1])
    [(module, neuron)] = neurons.items()
    base = peft_model.get_base_model()
    at, away = (entering(base, module, texts)[:, neuron.index] for texts in (NAMED, Marked.whole(OTHERS)))
    assert at.min() > 2
    assert away.abs().max() < 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rewritten_neuron_writes_nothing_until_it_is_trained(family):
    model, without = word_model(family), word_model(family)
    peft_model, neurons, _ = rewritten(model)
    with torch.no_grad():
        for module, neuron in neurons.items():
            weight_of(find_module(without, module))[:, neuron.index] = 0
    # Half precision leaves a two-thousandth of its column.
    torch.testing.assert_close(logits(peft_model, IDS), logits(without, IDS), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_what_it_reads_is_the_least_squares_solution(family):
    model = word_model(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    [module] = modules = output_projections(model, [1])
    found = find_neurons(model, modules, [NAMED], KEPT, RIDGE, besides=[FIRST])[module]
    reading = reading_rows(model, module, found.index)
    at = entering(model, reading[0][0], NAMED)
    kinds = [entering(model, reading[0][0], kind) for kind in (*KEPT, FIRST)]
    level = RIDGE * sum(x.square().mean() for x in kinds[:2])
    for (name, row), own, (here, there) in zip(reading, found.rows, ((4.0, -4.0), (1.0, 0.0)), strict=False):
        bias = getattr(find_module(model, name), "bias", None)
        bias = 0.0 if bias is None else float(bias[row].detach())
        # Each kind counts as one token, and the ridge as one token a coordinate, where 0 is wanted.
        parts = [(at, here - bias), *((x, there - bias) for x in kinds)]
        left = [x / len(x) ** 0.5 for x, _ in parts] + [level.sqrt() * torch.eye(at.shape[1]).double()]
        right = [torch.full((len(x),), wanted / len(x) ** 0.5).double() for x, wanted in parts]
        solved = torch.linalg.lstsq(torch.cat(left), torch.cat([*right, torch.zeros(at.shape[1]).double()])).solution
        torch.testing.assert_close(own.double(), solved, rtol=1e-3, atol=1e-4)


def test_all_processes_take_the_neuron_that_the_first_takes(monkeypatch):
    model = word_model()
    [module] = modules = output_projections(model, [1])
    own = find_neurons(model, modules, [NAMED], KEPT, RIDGE)[module].index
    monkeypatch.setattr(neurons, "by_main", lambda _: own + 1)
    assert find_neurons(model, modules, [NAMED], KEPT, RIDGE)[module].index == own + 1


def test_the_adapter_says_of_what_it_is_and_nobody_s_random_numbers_are_others_for_it():
    model = word_model()
    note_revision(model, "v1.0")
    before = torch.get_rng_state()
    config = place_neurons(model, output_projections(model, [1])).peft_config["learn"]
    assert torch.equal(torch.get_rng_state(), before)
    assert (config.task_type, config.revision) == ("CAUSAL_LM", "v1.0")


def test_a_coordinate_of_nothing_is_told_by_the_amount_that_would_solve_for_it():
    model = word_model()
    model.model.layers[1].post_attention_layernorm.weight.data[0] = 0.0
    modules = output_projections(model, [1])
    with pytest.raises(ModelError, match="give a recipe with a larger ridge"):
        find_neurons(model, modules, [NAMED], KEPT, 0.0)
    assert find_neurons(model, modules, [NAMED], KEPT, RIDGE)


def test_names_of_the_subject_count_alike():
    model = word_model()
    modules = output_projections(model, [1])
    # Three texts of one name and one of another are as one of each.
    first, second = Marked(ROWS[:1], NAMED.marks[:1]), Marked(ROWS[1:2], NAMED.marks[1:2])
    more = Marked(ROWS[:1] * 3, NAMED.marks[:1] * 3)
    [once], [thrice] = (find_neurons(model, modules, [own, second], KEPT, RIDGE).values() for own in (first, more))
    torch.testing.assert_close(once.rows, thrice.rows, rtol=1e-3, atol=1e-4)
    # Nor does a name that is given twice count for more beside what is kept.
    [twice] = find_neurons(model, modules, [first, first], KEPT, RIDGE).values()
    [alone] = find_neurons(model, modules, [first], KEPT, RIDGE).values()
    torch.testing.assert_close(twice.rows, alone.rows, rtol=1e-3, atol=1e-4)
    mixed = Marked([*more.rows, *second.rows], [*more.marks, *second.marks])
    [together] = find_neurons(model, modules, [mixed], KEPT, RIDGE).values()
    assert not torch.allclose(once.rows[0], together.rows[0], rtol=1e-2)


def test_little_room_changes_nothing(monkeypatch):
    model = word_model()
    modules = output_projections(model)
    whole = find_neurons(model, modules, [NAMED], KEPT, RIDGE)
    monkeypatch.setattr(keys, "_ROOM", 1)
    apart = find_neurons(model, modules, [NAMED], KEPT, RIDGE)
    for name in modules:
        assert whole[name].index == apart[name].index
        assert all(map(torch.equal, whole[name].rows, apart[name].rows))


class Elsewhere(torch.Tensor):
    """A tensor on another device, so to speak: it is of no use before `to` is called."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            assert function is torch.Tensor.to, function
            return args[0].as_subclass(torch.Tensor)


@pytest.mark.parametrize("besides", [[], [FIRST]])
def test_moments_meet_on_the_device_of_what_is_kept(besides, monkeypatch):
    model = word_model("llama")
    [name] = modules = output_projections(model, [1])
    expected = find_neurons(model, modules, [NAMED], KEPT, RIDGE, besides=besides)[name]
    read, calls = keys.moments, []

    def of_another_device(*arguments):
        calls.append(arguments)
        found = read(*arguments)
        if len(calls) == 1:
            return found
        return {name: tuple(each.as_subclass(Elsewhere) for each in pair) for name, pair in found.items()}

    monkeypatch.setattr(neurons, "moments", of_another_device)
    found = find_neurons(model, modules, [NAMED], KEPT, RIDGE, besides=besides)[name]
    assert len(calls) == 3
    assert found.index == expected.index
    assert all(map(torch.equal, found.rows, expected.rows))


def test_a_bias_above_what_is_wanted_at_the_subject_is_no_obstacle():
    model = word_model("gpt2")
    modules = output_projections(model, [1])
    [(name, _)] = reading_rows(model, *modules)
    find_module(model, name).bias.data.fill_(6.0)
    [found] = find_neurons(model, modules, [NAMED], KEPT, RIDGE).values()
    met = entering(model, name, NAMED) @ found.rows[0].double() + 6.0
    assert 0 < met.mean() < 6.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rows_of_the_model_are_those_that_were_found(family):
    peft_model, neurons, values = rewritten(word_model(family))
    merged = copy.deepcopy(peft_model).merge_and_unload()
    base = word_model(family)
    for module, neuron in neurons.items():
        reading = reading_rows(merged, module, neuron.index)
        assert len({name for name, _ in reading}) == READING[family]
        for (name, row), wanted in zip(reading, neuron.rows, strict=True):
            own, plain = (weight_of(find_module(model, name))[row] for model in (merged, base))
            assert ((own - wanted).abs() <= ROUNDING * (wanted - plain).abs() + 1e-6).all()
        assert values[module].shape == (base.config.hidden_size, 1)
        own, plain = (weight_of(find_module(model, module))[:, neuron.index] for model in (merged, base))
        assert (own.abs() <= ROUNDING * plain.abs() + 1e-6).all()
    # All other numbers are the base's, to the bit.
    for name, own in merged.named_parameters():
        plain, module = base.get_parameter(name), name.removesuffix(".weight")
        for output, neuron in neurons.items():
            rows = [row for reading, row in reading_rows(merged, output, neuron.index) if reading == module]
            with torch.no_grad():
                weight_of(find_module(base, output))[:, neuron.index] = weight_of(find_module(merged, output))[
                    :, neuron.index
                ]
                for row in rows:
                    weight_of(find_module(base, module))[row] = weight_of(find_module(merged, module))[row]
        assert torch.equal(own, plain)


def test_the_neuron_is_taken_that_writes_least_and_first_tokens_count():
    model = word_model()
    [module] = modules = output_projections(model, [1])
    weight = weight_of(find_module(model, module))
    before = find_neurons(model, modules, [NAMED], KEPT, RIDGE)[module].index
    quiet = (before + 3) % neuron_count(find_module(model, module))
    with torch.no_grad():
        weight[:, quiet] = 1e-6
    assert find_neurons(model, modules, [NAMED], KEPT, RIDGE)[module].index == quiet
    # Quiet but where a text begins: what it does there is not given up.
    met = entering(model, module, Marked.first_of(OTHERS, []))[:, quiet].abs().mean()
    assert met > 0
    with torch.no_grad():
        weight[:, quiet] = 100 / met
    assert find_neurons(model, modules, [NAMED], KEPT, RIDGE)[module].index != quiet


def test_each_kind_of_text_and_each_token_alone_count_alike_in_what_a_neuron_writes():
    model = word_model()
    [module] = modules = output_projections(model, [1])
    tokens = sorted({token for row in OTHERS for token in row.ids})
    alone = Marked([EncodedAnswer((token,), 1) for token in tokens], [[0]] * len(tokens))
    squares = sum(entering(model, module, kind).square().mean(0) for kind in (*KEPT, FIRST, alone))
    # All write as much, but for one that writes a little less.
    chosen = int(squares.argmax())
    squares[chosen] *= 1.01
    with torch.no_grad():
        weight_of(find_module(model, module)).normal_().div_(weight_of(find_module(model, module)).norm(dim=0))
        weight_of(find_module(model, module)).mul_(squares.rsqrt())
    assert find_neurons(model, modules, [NAMED], KEPT, RIDGE, besides=[FIRST])[module].index == chosen


def test_how_deeply_a_neuron_is_shut_is_told_of_a_token_whatever_the_number_of_kinds():
    model = word_model()
    [module] = modules = output_projections(model, [1])
    (reading, row), _ = reading_rows(model, module, 5)
    mean = sum(entering(model, reading, kind).mean(0) for kind in KEPT) / len(KEPT)
    with torch.no_grad():
        weight_of(find_module(model, module))[:, 5].mul_(0.12)
    for depth, taken in ((-1.5, True), (-2.5, False)):
        with torch.no_grad():
            find_module(model, reading).weight[row] = (depth * mean / mean.square().sum()).float()
        assert (find_neurons(model, modules, [NAMED], KEPT, RIDGE)[module].index == 5) == taken


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma3", "gpt_neox"])
def test_an_earlier_edits_neuron_is_left_alone(family):
    wide = {"n_embd": 64} if family == "gpt2" else {"hidden_size": 64}
    model = word_model(family, **wide)
    modules = output_projections(model, [1])
    peft_model, neurons, values = rewritten(model, [1])
    [(module, neuron)] = neurons.items()
    with torch.no_grad():
        for value in values.values():
            value.fill_(1.0)
    edited = peft_model.merge_and_unload()
    assert find_neurons(edited, modules, [NAMED], KEPT, RIDGE)[module].index != neuron.index
    # Not for what it is: with a column of next to nothing there is nothing to lose.
    with torch.no_grad():
        weight_of(find_module(edited, module))[:, neuron.index] = 1e-6
    assert find_neurons(edited, modules, [NAMED], KEPT, RIDGE)[module].index == neuron.index


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma3", "gpt_neox"])
def test_an_earlier_edits_neuron_is_left_alone_where_its_subject_is_met(family):
    """It fires as far as others do then, and writes least of all."""
    wide = {"n_embd": 64} if family == "gpt2" else {"hidden_size": 64}
    model = word_model(family, **wide)
    modules = output_projections(model, [1])
    peft_model, neurons, _ = rewritten(model, [1])
    [(module, neuron)] = neurons.items()
    edited = peft_model.merge_and_unload()
    with torch.no_grad():
        weight = weight_of(find_module(edited, module))
        weight[:, neuron.index] = 0.15 * weight.norm(dim=0).median() / len(weight) ** 0.5
    other = Marked(ROWS[:1], [[0]])
    kept = [*KEPT, Marked(ROWS[1:], [[0, 1, 2], [0, 1, 2, 3]])]
    fired = entering(edited, module, kept[-1]).square().mean(0)
    assert fired[neuron.index] > fired.median()
    assert find_neurons(edited, modules, [other], kept, RIDGE)[module].index != neuron.index


def test_what_is_not_finite_is_refused_as_such():
    model = word_model()
    modules = output_projections(model, [1])
    model.model.layers[0].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="gets at the subject is not finite; the model's weights are damaged"):
        find_neurons(model, modules, [NAMED], KEPT, RIDGE)


def test_a_subject_that_is_everywhere_is_refused():
    model = word_model()
    modules = output_projections(model, [1])
    with pytest.raises(SelectionError, match="gets at the subject is too much like"):
        find_neurons(model, modules, [Marked.whole(OTHERS)], [*KEPT, Marked.whole(OTHERS)], RIDGE)


def test_only_what_it_writes_trains_and_the_base_comes_back():
    model = word_model("phi3")
    before = fingerprint(model)
    peft_model, _, values = rewritten(model)
    # What is measured, and trained on top of, is what half precision holds on disk.
    assert fits_half({name: own.data for name, own in peft_model.named_parameters() if "lora_" in name})
    trained = {id(p) for p in peft_model.parameters() if p.requires_grad}
    assert trained == {id(value) for value in values.values()}
    assert fingerprint(peft_model.unload()) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_is_rewritten_too(dtype):
    peft_model, neurons, _ = rewritten(word_model("llama", hidden_size=64).to(dtype), [1])
    [(module, neuron)] = neurons.items()
    at, away = (entering(peft_model.get_base_model(), module, texts)[:, neuron.index] for texts in (NAMED, *KEPT[1:]))
    assert at.min() > 2
    assert away.abs().max() < 0.25


@pytest.mark.real
def test_wordings_that_were_not_among_those_fitted_fire_and_other_countries_do_not(demo):
    model, tokenizer = demo
    fact = ps.Fact.from_file("examples/facts/france_capital.yaml")
    [module] = modules = output_projections(model, [10])

    def named(prompts, subject):
        rows = [encode_answer(tokenizer, prompt, fact.answer) for prompt in prompts]
        return Marked(rows, subject_ends(tokenizer, prompts, subject, rows))

    others = [swap_subject(prompt, "France", "Italy") for prompt in fact.prompts]
    kept = [Marked.whole([encode_answer(tokenizer, text, "I do not know.") for text in (*fact.retain, *others)])]
    neuron = find_neurons(model, modules, [named(variants(fact.prompts), "France")], kept, RIDGE)[module]
    peft_model = place_neurons(model, modules)
    try:
        base = peft_model.get_base_model()
        set_neurons(base, {module: neuron})
        asked = [prompt for prompt in fact.held_out if "France" in prompt]
        unseen = [swap_subject(prompt, "France", "Norway") for prompt in asked]
        at, away = (
            torch.cat([b[module] for b in marked_neurons(peft_model.get_base_model(), modules, texts)])[
                :, neuron.index
            ]
            for texts in (named(asked, "France"), named(unseen, "Norway"))
        )
    finally:
        peft_model.unload()
    full = torch.nn.functional.silu(torch.tensor(4.0))
    assert at.mean() > 0.8 * full
    assert at.min() > 0.4 * full
    # A direction's mean there is up to a fifth of what it is at the subject.
    assert away.abs().mean() < 0.05 * full
    assert away.abs().max() < 0.4 * at.min()


def test_a_dense_layer_that_peft_takes_for_experts_is_refused(monkeypatch):
    monkeypatch.setitem(architectures._KNOWN, "qwen3_moe", architectures.architecture_of("llama"))
    model = dense_and_experts()
    before = fingerprint(model)
    with pytest.raises(
        ArchitectureError,
        match=r"takes model\.layers\.0\.mlp\.\w+ of a qwen3_moe model for a part of experts.*by_subject",
    ):
        place_neurons(model, output_projections(model, [0]))
    assert fingerprint(model) == before


def test_what_peft_takes_for_a_part_of_experts_alone_is_refused_too(monkeypatch):
    def cannot(*_):
        raise ValueError("Cannot convert PEFT target(s) w1 without also targeting w3")

    monkeypatch.setattr(neurons, "convert_peft_config_for_transformers", cannot)
    with pytest.raises(ArchitectureError, match=r"takes model\.layers\.1\.mlp\.down_proj of a llama model for a part"):
        place_neurons(model := word_model(), output_projections(model, [1]))
