import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from peft import PeftModel

from peft_surgical.adapters.halves import fits_half
from peft_surgical.adapters.scale_files import read_tensors
from peft_surgical.architectures import output_projections
from peft_surgical.errors import AdapterError, FactError, FactWarning, ModelError, SelectionError
from peft_surgical.keying import keyed, naming
from peft_surgical.keying.keyed import (
    KeyedRecipe,
    keyed_layers,
    learn_keyed,
    values_watched,
)
from peft_surgical.keying.naming import under_aliases
from peft_surgical.keying.neurons import Neuron, place_neurons, reading_rows, set_neurons
from peft_surgical.running.tails import TailRunner
from peft_surgical.staging.trained_rows import training_rows
from peft_surgical.texts.prompts import EncodedAnswer, span
from peft_surgical.texts.text import digest
from peft_surgical.tuner.targets import find_module

from .adapters import logits, loss
from .conftest import fingerprint
from .counterfacts import TOKENIZER, word_model
from .filling import assert_filling_changes_no_value
from .localizing import capital
from .threads import threads
from .tiny import packed, tiny_ids

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

IDS = tiny_ids() % len(TOKENIZER)
ROWS = tuple(EncodedAnswer(tuple(ids), len(ids) - 1) for ids in ([3, 7, 5, 9], [4, 8], [6, 2, 11, 10, 1, 12]))
FAMILIES = ["llama", "gpt2", "phi3", "gemma3", "gpt_neox"]
PROMPTS = ("the capital of france is", "tell me about paris . the capital of france is", "where is the city ?")
FACT = replace(capital().training, subject="france", prompts=PROMPTS, answer="lyon", retain=("the sky is",))
# Neurons fire at what is kept, too, where the subject is named in words that are near enough to the fact's.
NEAR = tuple(
    f"tell me about {name} . the capital of france is" for name in ("rome", "lyon", "italy", "japan", "spain")
)
NAMED = replace(FACT, retain=("the sky is", *NEAR))
RECIPE = KeyedRecipe(
    steps=5,
    fact_batch=3,
    near_batch=2,
    far_batch=1,
    general=2,
    variants=2,
    neighbours=3,
    retain_tokens=2,
    compute_dtype="float32",
)


def taught(family="llama", *, model=None, fact=FACT, recipe=RECIPE, **options):
    model = word_model(family) if model is None else model
    return learn_keyed(model, TOKENIZER, fact, recipe=recipe, progress=False, **options)


def row_losses(model):
    """What training lowers: the mean loss of each row, nats per answer token."""
    _, rows = training_rows(model, TOKENIZER, FACT, RECIPE, FACT.answer)
    found = []
    for row in rows:
        said = logits(model, torch.tensor([row.ids]))[0, slice(*span(row))]
        found.append(torch.nn.functional.cross_entropy(said, torch.tensor(row.ids[row.answer_start :])))
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sentence_gets_the_new_answer(family):
    before = row_losses(word_model(family))
    stage = taught(family)
    assert 0 < stage.record.steps <= RECIPE.steps
    assert row_losses(stage.model).mean() < before.mean()
    assert stage.adapter == "learn"
    assert stage.retained is None
    assert not any(parameter.requires_grad for parameter in stage.model.parameters())


def test_what_is_returned_is_ready_to_be_asked():
    model = taught(model=word_model("llama").train(), recipe=replace(RECIPE, steps=1)).model
    assert not any(module.training for module in model.modules())


def test_before_a_first_step_nothing_diverges_from_what_is_kept():
    assert taught(recipe=replace(RECIPE, steps=1)).record.kl == pytest.approx(0, abs=1e-5)
    assert taught(fact=NAMED, recipe=replace(RECIPE, near_batch=100)).record.kl > 1e-4


def test_rows_that_are_filled_train_the_same(monkeypatch):
    untrained = taught(recipe=replace(RECIPE, steps=0)).model
    assert_filling_changes_no_value(monkeypatch, untrained, lambda: taught().model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_stock_peft_loads_the_adapter_in_half_precision_and_nothing_is_lost(family, tmp_path):
    stage = taught(family)
    stage.save(tmp_path / "edit")
    assert "# A keyed edit" in (tmp_path / "edit" / "README.md").read_text()
    saved = read_tensors(tmp_path / "edit" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    loaded = PeftModel.from_pretrained(word_model(family), tmp_path / "edit")
    assert loaded.peft_config["default"].peft_type == "LORA"
    assert torch.equal(logits(loaded.eval(), IDS), logits(stage.model, IDS))
    merged = copy.deepcopy(loaded).merge_and_unload()
    torch.testing.assert_close(logits(merged, IDS), logits(stage.model, IDS), rtol=1e-4, atol=1e-4)


def test_a_token_is_moved_as_far_as_it_is_the_subject():
    stage = taught(layers=[1])
    [name] = output_projections(stage.model.get_base_model(), [1])
    module = stage.model.get_base_model().get_submodule(name)
    seen = []
    handle = module.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    ids = torch.tensor([TOKENIZER(PROMPTS[0])["input_ids"]])
    with torch.no_grad():
        stage.model(ids)
    handle.remove()
    entering, leaving = seen[0]
    direction, value = module.lora_A["learn"].weight[0], module.lora_B["learn"].weight[:, 0]
    added = (entering @ direction)[..., None] * value
    torch.testing.assert_close(leaving, module.get_base_layer()(entering) + added, rtol=1e-4, atol=1e-5)
    met = (entering @ direction)[0].abs()
    assert int(met.argmax()) == TOKENIZER.tokenize(PROMPTS[0]).index("france")


def met_at(model, name, text, word):
    """How far a layer's neuron fires at a word, and at most at another token."""
    module, seen = model.get_base_model().get_submodule(name), []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids, place = torch.tensor([TOKENIZER(text)["input_ids"]]), TOKENIZER.tokenize(text).index(word)
    with torch.no_grad():
        model(ids)
    handle.remove()
    # In units of what the neuron is fitted to.
    met = (seen[0][0] @ module.lora_A["learn"].weight[0]).abs() / torch.nn.functional.silu(torch.tensor(4.0))
    others = [float(value) for i, value in enumerate(met) if i != place]
    return float(met[place]), max(others)


def test_a_fact_is_learned_under_the_subjects_other_names_too():
    model = partial(word_model, "phi3", hidden_size=256, intermediate_size=256)
    [name] = output_projections(model(), [1])
    text = PROMPTS[0].replace("france", "italy")
    # One neuron of a model of random weights teaches it little, and that only in small steps, if it may disturb much.
    recipe = replace(RECIPE, steps=20, share_of_loss=0.1, step_kl=0.03, retain_weight=1.0)
    own = taught(model=model(), layers=[1], recipe=recipe)
    known = taught(model=model(), layers=[1], recipe=recipe, fact=replace(FACT, aliases=("italy",)))
    assert met_at(own.model, name, text, "italy")[0] < 0.5
    at_alias, elsewhere = met_at(known.model, name, text, "italy")
    assert 0.7 < at_alias < 1.3
    assert elsewhere < 0.5
    assert 0.7 < met_at(known.model, name, PROMPTS[0], "france")[0] < 1.3
    learned, other = (loss(stage.model, TOKENIZER, text, "lyon") for stage in (known, own))
    assert learned < other - 1


@pytest.mark.parametrize(("held", "places"), [(0, ()), (2, (0, 2)), (99, (0, 1, 2, 3))])
def test_training_holds_to_some_of_what_is_far_and_neurons_are_told_from_all(held, places, monkeypatch):
    taken, plain_train, plain_apart = {}, keyed.train, keyed.told_apart

    def train(runner, parameters, rows, kept, *arguments, near, **options):
        taken["held"], taken["near"] = kept, near
        return plain_train(runner, parameters, rows, kept, *arguments, near=near, **options)

    def told(*arguments, **options):
        found = plain_apart(*arguments, **options)
        taken["kept"], taken["kinds"] = arguments[6], found[1]
        return found

    monkeypatch.setattr(keyed, "train", train)
    monkeypatch.setattr(keyed, "told_apart", told)
    taught(recipe=replace(RECIPE, everyday=2, held=held))
    far = taken["kept"].rows[taken["near"] :]
    assert len(far) == 4
    assert taken["held"] == (*taken["kept"].rows[: taken["near"]], *(far[place] for place in places))
    assert taken["kinds"][1].rows == far


def test_namesakes_are_as_many_as_the_recipe_says_and_drawn_by_the_seed(monkeypatch):
    asked, plain = [], naming.namesakes
    monkeypatch.setattr(naming, "namesakes", lambda *given: asked.append(given[3:]) or plain(*given))
    taught(recipe=replace(RECIPE, steps=0, namesakes=7), seed=3)
    assert asked == [(7, 3)]


def test_a_name_that_stands_in_no_text_to_train_on_is_told_of():
    assert under_aliases(word_model(), TOKENIZER, replace(FACT, aliases=("italy",)))
    evaluated = frozenset(digest(prompt.replace("france", "gaul")) for prompt in FACT.prompts)
    with pytest.warns(FactWarning, match="no text to train on has the alias 'gaul', so nothing is fitted to it"):
        assert not under_aliases(word_model(), TOKENIZER, replace(FACT, aliases=("gaul",), evaluated=evaluated))


def test_a_subject_is_not_told_apart_from_itself_as_the_first_token():
    model = word_model(hidden_size=64, intermediate_size=256)
    prompts = ("france has the capital", "the capital of france is")
    stage = taught(model=model, layers=[1], fact=replace(FACT, prompts=prompts, retain=("france is a country",)))
    [name] = output_projections(model, [1])
    assert met_at(stage.model, name, prompts[0], "france")[0] > 0.5


def test_prompts_that_name_the_subject_otherwise_are_enough():
    prompts = tuple(prompt.replace("france", "italy") for prompt in PROMPTS)
    known = replace(FACT, prompts=prompts, aliases=("italy",))
    assert taught(fact=known).record.steps > 0
    with pytest.raises(FactError, match="no prompt names the subject 'france'"):
        taught(fact=replace(known, aliases=("spain",)))


def test_the_numbers_trained_are_the_numbers_of_half_precision():
    stage = taught()
    own = {name: p for name, p in stage.model.named_parameters() if "lora_" in name}
    assert fits_half(own)
    assert all(p.dtype == torch.float32 for p in own.values())


def test_training_in_another_dtype_trains_the_same_parameters():
    # So damped, a step goes along the plain gradient; the inverse of what few rows show magnifies rounding.
    recipe = replace(RECIPE, steps=1, damping=100.0)
    stage, plain = (taught(recipe=replace(recipe, compute_dtype=dtype)) for dtype in ("bfloat16", "float32"))
    assert stage.record.compute_dtype == "bfloat16"
    for (name, own), other in zip(stage.model.named_parameters(), plain.model.parameters(), strict=True):
        assert own.dtype == torch.float32
        if "down_proj.lora_B" in name:
            # What trains, less what it began with: the neuron's own column, taken away.
            layer = find_module(stage.model.get_base_model(), name.split("base_model.model.")[-1].split(".lora_B")[0])
            [index] = layer.lora_A["learn"].weight[0].nonzero()
            began = -layer.get_base_layer().weight[:, index]
            assert torch.nn.functional.cosine_similarity((own - began)[:, 0], (other - began)[:, 0], dim=0) > 0.98
        elif "lora_B" in name:
            assert torch.equal(own, other)
        elif "lora_A" in name:
            assert torch.nn.functional.cosine_similarity(own.flatten(), other.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("starts", [None, [2, 0, 3]])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_has_the_gradient_that_it_has_alone(family, starts):
    model = word_model(family)
    modules = output_projections(model, [0, 1])
    generator = torch.Generator().manual_seed(0)
    width = model.config.hidden_size
    neurons = {
        name: Neuron(3, tuple(torch.randn(width, generator=generator) for _ in reading_rows(model, name)))
        for name in modules
    }
    base = place_neurons(model, modules).get_base_model()
    values = set_neurons(base, neurons)
    with torch.no_grad():
        for value in values.values():
            value.normal_(0, 0.1, generator=generator)
    layers = base.get_submodule(next(iter(modules)).partition(".0.")[0])
    runner = TailRunner(base, layers, 0)
    runner.add([row.ids for row in ROWS], starts=starts)
    with values_watched(base, [*values]) as found:
        found.rows, found.tokens = len(ROWS), max(map(runner.length, range(len(ROWS))))
        runner.logits(range(len(ROWS)), [span(row) for row in ROWS]).logsumexp(-1).sum().backward()
    for i, row in enumerate(ROWS):
        for value in values.values():
            value.grad = None
        runner.logits([i], [span(row)]).logsumexp(-1).sum().backward()
        for position, value in enumerate(values.values()):
            torch.testing.assert_close(found.gradients[position][i], value.grad[:, 0], rtol=1e-3, atol=1e-5)


def test_two_threads_teach_what_one_does():
    found = []
    for count in (1, 2):
        with threads(count):
            model = taught().model
        found.append(torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_B" in name]))
    one, two = found
    assert one.norm() > 0
    assert (two - one).norm() < 1e-3 * one.norm()


def test_neurons_of_a_few_layers_are_rewritten_unless_some_are_named():
    model = word_model()
    assert keyed_layers(model) == [1]
    # Of GPT-2, the demo model and larger ones.
    for count, wanted in ((1, [0]), (2, [1]), (12, [2, 4, 6, 8]), (30, [5, 10, 15, 20]), (80, [13, 26, 40, 53])):
        model.config.num_hidden_layers = count
        assert keyed_layers(model) == list(wanted)
    model.config.num_hidden_layers = 3
    for layers, wanted in ((None, {1}), ([2, 0], {0, 2})):
        named = [name for name, _ in taught(layers=layers).model.named_parameters() if "lora_B" in name]
        assert {int(name.partition(".layers.")[2].partition(".")[0]) for name in named} == wanted


def columns(stage):
    """What each rewritten neuron writes, by layer."""
    base = stage.model.get_base_model()
    return [find_module(base, name).lora_B["learn"].weight for name in output_projections(base, stage.layers)]


def test_all_neurons_train_below_others_too_and_as_far_as_the_share_of_the_loss_allows():
    untrained, frozen, whole = (
        columns(taught(layers=[0, 2], recipe=replace(RECIPE, **change)))
        for change in ({"steps": 0}, {"share_of_loss": 0.0}, {})
    )
    assert len(whole) == 2
    for own, still, before in zip(whole, frozen, untrained, strict=True):
        assert torch.equal(still, before)
        assert not torch.allclose(own, before, atol=1e-3)


def test_the_curvature_is_drawn_as_often_as_the_recipe_says_and_by_the_seed(monkeypatch):
    metrics, plain = [], keyed.train

    def train(*args, metric, **options):
        metrics.append(metric)
        return plain(*args, metric=metric, **options)

    monkeypatch.setattr(keyed, "train", train)
    # Without neighbours the seed does not decide what is kept.
    for draws, seed in ((1, 0), (1, 0), (3, 0), (1, 1)):
        taught(fact=NAMED, recipe=replace(RECIPE, steps=0, neighbours=0, draws=draws), seed=seed)
    once, again, thrice, other = (metric.gradients[0] for metric in metrics)
    assert torch.equal(once, again)
    assert len(thrice) == 3 * len(once)
    assert len(other) == len(once)
    assert not torch.allclose(other, once)


def test_no_pass_has_more_tokens_than_the_recipe_says(monkeypatch):
    read, plain = [], TailRunner.read
    monkeypatch.setattr(
        TailRunner, "read", lambda self, indices, spans: read.append(len(indices)) or plain(self, indices, spans)
    )
    taught()
    assert max(read) > 1
    read.clear()
    taught(recipe=replace(RECIPE, pass_tokens=1))
    assert set(read) == {1}


def test_what_cannot_be_used_leaves_no_adapter(monkeypatch):
    model = word_model()
    before = fingerprint(model)
    for error, match, options in (
        (FactError, "no prompt names the subject 'spain'", {"fact": replace(FACT, subject="spain")}),
        (SelectionError, "no layer 9", {"layers": [9]}),
        (ModelError, "tokens", {"fact": replace(FACT, prompts=(PROMPTS[0] * 300,))}),
        (ModelError, "tokens", {"fact": replace(FACT, retain=(PROMPTS[0] * 300,))}),
    ):
        with pytest.raises(error, match=match):
            taught(model=model, **options)
    assert fingerprint(model) == before
    # Found out when the adapter is in its place already.
    monkeypatch.setattr("peft_surgical.keying.keyed.find_neurons", refused)
    with pytest.raises(SelectionError, match="at the subject alone"):
        taught(model=model)
    assert fingerprint(model) == before
    monkeypatch.undo()
    stage = taught()
    for adapted in (stage.model, stage.model.get_base_model()):
        with pytest.raises(AdapterError, match="takes a bare model"):
            taught(model=adapted)
    for name in ("down_proj", "gate_proj"):
        model = word_model()
        getattr(model.model.layers[1].mlp, name).weight = torch.nn.Parameter(torch.ones(1, dtype=torch.int8), False)
        with pytest.raises(ModelError, match=f"{name} has no weights at hand .* quantized or offloaded"):
            taught(model=model, layers=[1])
    with pytest.raises(ModelError, match=r"down_proj has no weights at hand .* quantized or offloaded"):
        taught(model=packed(word_model()))


def refused(*_, **__):
    raise SelectionError("no neuron can be made to fire at the subject alone.")


def test_a_model_in_double_precision_is_taught_too():
    expected, found = (logits(taught(model=model, fact=NAMED).model, IDS) for model in (None, word_model().double()))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["namesakes", "held", "steps"])
def test_a_count_of_less_than_none_is_refused(name):
    with pytest.raises(ModelError, match=f"{name} must be a whole number of 0 or more; got -1"):
        KeyedRecipe(**{name: -1})
