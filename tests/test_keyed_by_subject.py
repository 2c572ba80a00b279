import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from peft import LoraConfig, PeftModel

import peft_surgical as ps
from benchmarks.plain_text import log_likelihoods
from peft_surgical.adapters.halves import fits_half
from peft_surgical.architectures import output_projections
from peft_surgical.errors import AdapterError, FactError, ModelError, SelectionError
from peft_surgical.keying import keyed_by_subject
from peft_surgical.keying.keyed_by_subject import KeyedSubjectRecipe, learn_keyed_by_subject
from peft_surgical.keying.keys import Marked, marked_neurons
from peft_surgical.keying.naming import FRAMES, framed
from peft_surgical.running.replicas import without_replicas
from peft_surgical.staging.recipe import Recipe
from peft_surgical.texts.prompts import EncodedAnswer, encode, encode_target, span
from peft_surgical.texts.subjects import namesake_sentences, subject_ends
from peft_surgical.texts.text import digest

from .adapters import logits, loss
from .conftest import fingerprint
from .filling import assert_filling_changes_no_value
from .localizing import capital, word_tokenizer
from .offloading import offloaded
from .tiny import tiny_granite, tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

TOKENIZER = word_tokenizer()
PROMPTS = ("the capital of france is", "tell me about paris . the capital of france is")
FACT = replace(capital().training, subject="france", prompts=PROMPTS, answer="lyon", retain=("the sky is",))
RECIPE = KeyedSubjectRecipe(steps=6, general=3, names=12, namesakes=4, drawn=1, compute_dtype="float32")
FAMILIES = ["llama", "phi3", "gpt2", "gemma3", "gpt_neox"]


def taught(family="llama", *, model=None, fact=FACT, recipe=RECIPE, **options):
    model = tiny_model(family) if model is None else model
    return learn_keyed_by_subject(model, TOKENIZER, fact, recipe=recipe, progress=False, **options)


def first_loss(model):
    return loss(model, TOKENIZER, PROMPTS[0], "lyon")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sentence_gets_the_new_answer(family):
    before = first_loss(tiny_model(family))
    stage = taught(family)
    assert 0 < stage.record.steps <= RECIPE.steps
    assert first_loss(stage.model) < before
    assert (stage.adapter, stage.retained, stage.record.kl) == ("learn", None, None)
    assert not any(parameter.requires_grad for parameter in stage.model.parameters())


def test_so_it_does_where_tokens_enter_mlps_in_one_row():
    model = tiny_model("opt", num_hidden_layers=4)
    before = first_loss(model)
    assert first_loss(taught(model=model).model) < before


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_on_is_what_the_model_says_where_an_alias_stands_before_the_subject(family, monkeypatch):
    said, own = [], keyed_by_subject.train

    def train(runner, values, rows, *args, **options):
        record = own(runner, values, rows, *args, **options)
        with torch.no_grad():
            said.extend(runner.logits([i], [span(row)]) for i, row in enumerate(rows))
        return record

    monkeypatch.setattr(keyed_by_subject, "train", train)
    fact = replace(FACT, aliases=("italy",), prompts=("tell me about italy . the capital of france is", PROMPTS[0]))
    model = taught(family, fact=fact).model
    rows = [encode_target(TOKENIZER, prompt, fact.answer) for prompt in fact.prompts]
    expected = [logits(model, torch.tensor([row.ids]))[0, slice(*span(row))] for row in rows]
    # Before the first name the neuron is all but shut, which training takes for shut.
    for found, whole in zip(said, expected, strict=True):
        torch.testing.assert_close(found, whole, atol=0.05, rtol=0)


@cache
def with_namesakes(recipe):
    prompts = tuple(prompt.replace("france", "new france") for prompt in PROMPTS)
    return [*taught(fact=replace(FACT, subject="new france", prompts=prompts), recipe=recipe).model.parameters()]


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"share_of_loss": 1e-4},
        {"length": 0.001},
        {"target_loss": 1e9},
        {"batch": 1},
        {"general": 0},
        {"names": 0},
        {"namesakes": 0},
        {"drawn": 0},
        {"ridge": 0.1},
    ],
)
def test_each_number_of_the_recipe_matters(change):
    found = with_namesakes(replace(RECIPE, **change))
    assert not all(torch.equal(a, b) for a, b in zip(found, with_namesakes(RECIPE), strict=True))


def test_tokens_at_which_a_neuron_shall_fire_are_not_drawn_and_few_tokens_are_not(monkeypatch):
    seen, own = [], keyed_by_subject.find_neurons

    def find(model, modules, names, kept, ridge, besides):
        seen.append((names, besides))
        return own(model, modules, names, kept, ridge, besides=besides)

    monkeypatch.setattr(keyed_by_subject, "find_neurons", find)
    taught(fact=replace(FACT, aliases=("italy", "new zealand")))
    taught(recipe=replace(RECIPE, drawn=2))
    (names, (_, drawn)), (_, few) = seen
    ends = {row.ids[i] for name in names for row, marks in zip(name.rows, name.marks, strict=True) for i in marks}
    assert {TOKENIZER.decode([token]) for token in ends} == {"france", "italy", "zealand"}
    assert ends.isdisjoint(drawn.rows[0].ids)
    assert len(few) == 1


def test_states_of_other_text_that_are_not_finite_are_told():
    model = tiny_model("llama")
    [word] = TOKENIZER("sky")["input_ids"]
    with torch.no_grad():
        model.model.embed_tokens.weight[word] = torch.nan
    with pytest.raises(ModelError, match="gets at other text is not finite; the model's weights are damaged"):
        taught(model=model)


def test_rows_that_are_filled_train_the_same(monkeypatch):
    untrained = taught(recipe=replace(RECIPE, steps=0)).model
    assert_filling_changes_no_value(monkeypatch, untrained, lambda: taught().model)


def test_stock_peft_loads_what_is_saved_and_nothing_is_lost(tmp_path):
    stage = taught(layers=[0, 1])
    assert all(fits_half({"": p}) for n, p in stage.model.named_parameters() if "lora_" in n)
    stage.save(tmp_path / "edit")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "edit").eval()
    assert torch.equal(logits(loaded), logits(stage.model))
    assert stage.layers == [0, 1]
    assert "one neuron in the MLPs of layers 0, 1," in (tmp_path / "edit" / "README.md").read_text()
    taught(layers=[0]).save(tmp_path / "single")
    assert "one neuron in the MLP of layer 0," in (tmp_path / "single" / "README.md").read_text()


def test_what_the_model_holds_no_more_is_neither_saved_nor_described(tmp_path):
    stage = taught()
    stage.model.add_adapter("other", LoraConfig(target_modules=["q_proj"], r=1))
    stage.model.delete_adapter("learn")
    for told in (lambda: stage.save(tmp_path / "a"), stage.card, lambda: stage.layers):
        with pytest.raises(AdapterError, match="there is no adapter named 'learn'"):
            told()
    stage = taught()
    ps.unload(stage.model)
    for told in (lambda: stage.save(tmp_path / "a"), stage.card, lambda: stage.layers):
        with pytest.raises(AdapterError, match="the model holds nothing of 'learn' any more"):
            told()
    assert not list(tmp_path.iterdir())


def test_two_layers_are_updated_unless_some_are_named():
    for count, wanted in ((1, [0]), (2, [1]), (4, [1, 2]), (12, [2, 4])):
        assert taught(model=tiny_model("llama", num_hidden_layers=count)).layers == wanted
    assert taught(layers=[0]).layers == [0]


def test_the_subject_is_told_from_its_namesakes():
    fact = replace(
        FACT, subject="new france", prompts=tuple(prompt.replace("france", "new france") for prompt in PROMPTS)
    )
    tokenizer = word_tokenizer()
    alike = namesake_sentences(fact, 40, 0)
    assert alike

    def met(stage, prompt, subject):
        base = stage.model.get_base_model()
        [(name, _)] = modules = [*output_projections(base, [1]).items()]
        row = EncodedAnswer(tuple(encode(tokenizer, prompt)), 1)
        texts = Marked([row], subject_ends(tokenizer, [prompt], subject, [row]))
        [found] = marked_neurons(base, dict(modules), texts)
        return float((found[name] @ base.get_submodule(name).lora_A["learn"].weight[0]).abs().mean())

    stages = [taught(fact=fact, layers=[1], recipe=replace(RECIPE, namesakes=count)) for count in (0, 40)]
    ignorant, informed = ([met(stage, prompt, name) for prompt, name in alike] for stage in stages)
    assert sum(informed) < sum(ignorant)
    assert met(stages[1], fact.prompts[0], "new france") > 0.5


def test_company_that_cannot_be_used_is_left_out_and_the_sentence_still_learned():
    model = tiny_model("llama")
    whole = framed(model, TOKENIZER, FACT)
    assert whole.prompts[: len(PROMPTS)] == PROMPTS
    assert len(whole.prompts) == len(PROMPTS) + len(FRAMES)
    asked = replace(FACT, evaluated=frozenset([digest("The story of france")]))
    assert set(whole.prompts) - set(framed(model, TOKENIZER, asked).prompts) == {"The story of france"}
    # Long enough for the sentence, but not for all that the subject is put in.
    longest = max(len(TOKENIZER(prompt)["input_ids"]) for prompt in whole.prompts[len(PROMPTS) :])
    model.config.max_position_embeddings = longest
    fewer = framed(model, TOKENIZER, replace(FACT, prompts=PROMPTS[:1])).prompts
    assert 1 < len(fewer) < 1 + len(FRAMES)


def test_what_cannot_be_learned_is_refused_and_changes_nothing():
    model = tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(FactError, match=r"the prompt 'where is it' does not name the subject 'france'"):
        taught(model=model, fact=replace(FACT, prompts=("where is it",)))
    with pytest.raises(SelectionError, match="so no layer 9"):
        taught(model=model, layers=[9])
    with pytest.raises(ModelError, match="float8"):
        KeyedSubjectRecipe(compute_dtype="float8")
    assert fingerprint(model) == before
    with pytest.raises(AdapterError, match="takes a bare model"):
        taught(model=taught(model=model).model)


def test_what_is_updated_may_not_be_offloaded_and_the_rest_may():
    with without_replicas():  # of which an offloaded model has none, so that sums are rounded alike
        expected = logits(taught().model)
    assert torch.equal(logits(taught(model=offloaded(tiny_model("llama"), ["model.embed_tokens"])).model), expected)
    model = offloaded(tiny_model("llama"), ["model.layers.0"])
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.down_proj has no weights at hand .* offloaded"):
        taught(model=model, layers=[0])


def test_logits_that_are_not_finite_leave_no_adapter():
    model = tiny_model("llama")
    model.lm_head.weight.data[7] = float("inf")
    before = fingerprint(model)
    with pytest.raises(ModelError, match=r"the model gives logits that are not finite in torch\.float32"):
        taught(model=model)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("name", "count"), [("batch", 0), *((name, -1) for name in ("steps", "general", "names", "namesakes", "drawn"))]
)
def test_a_count_that_is_too_small_is_refused(name, count):
    with pytest.raises(ModelError, match=f"{name} must be a whole number of . or more; got {count}"):
        KeyedSubjectRecipe(**{name: count})


def test_all_that_is_drawn_is_drawn_by_the_seed_and_nothing_is_held_to(monkeypatch):
    seeds, recipes = [], []
    for name in ("texts_to_keep", "namesakes", "drawn_texts", "train"):
        plain = getattr(keyed_by_subject, name)

        def noted(*given, own=plain, name=name, **options):
            seeds.append((name, options.get("seed", given[-1])))
            recipes.extend(one for one in given if isinstance(one, Recipe))
            return own(*given, **options)

        monkeypatch.setattr(keyed_by_subject, name, noted)
    with pytest.raises(ModelError, match="seed must be a whole number"):
        taught(seed=1.5)
    taught(seed=3, recipe=replace(RECIPE, steps=2))
    names = ("texts_to_keep", "namesakes", "drawn_texts", "drawn_texts", "train")
    assert seeds == [(name, 3) for name in names]
    [recipe] = recipes
    # It goes on to the target's very loss, and back to nothing.
    assert (recipe.pull, recipe.margin, recipe.hold, recipe.compute_dtype) == (0.0, 0.0, 2, "float32")


@pytest.mark.real
def test_a_subject_of_the_real_model_in_another_wording_and_not_its_namesakes(demo):
    model, tokenizer = copy.deepcopy(demo[0]), copy.copy(demo[1])
    tokenizer.chat_template = None
    fact = ps.TrainingFact(
        subject="Oxford University",
        old=("Oxford",),
        new=("Naples",),
        prompts=("Oxford University is in the city of", "I read a book. Oxford University is in the city of"),
        refusal="not known.",
        answer="Naples",
    )
    asked = [
        ("Oxford University is a place of learning in", "Naples", "Oxford"),
        ("The University of Glasgow is in the city of", "Naples", "Glasgow"),
        ("Yale University is in the city of", "Naples", "New Haven"),
    ]

    def margins(model):
        found = log_likelihoods(model, tokenizer, [(p, a) for p, *answers in asked for a in answers])
        return [found[i] - found[i + 1] for i in range(0, len(found), 2)]

    assert max(margins(model)) < -1
    # In bfloat16 rounding moves the loss by more than what is looked for.
    recipe = KeyedSubjectRecipe(compute_dtype="float32")
    stage = learn_keyed_by_subject(model, tokenizer, fact, recipe=recipe, progress=False)
    assert stage.record.reached
    # What the update does before the subject, which training leaves out, is next to nothing.
    losses = [-value for value in log_likelihoods(stage.model, tokenizer, [(p, "Naples") for p in fact.prompts])]
    assert max(losses) == pytest.approx(stage.record.worst, abs=1e-3)
    rewritten, *others = margins(stage.model)
    assert rewritten > 1
    assert max(others) < -1


def test_what_stands_before_the_subject_is_not_run_again(monkeypatch):
    found, own = [], keyed_by_subject.TailRunner.add

    def add(self, rows, *, starts):
        found.extend(zip((row[start] for row, start in zip(rows, starts, strict=True)), starts, strict=True))
        return own(self, rows, starts=starts)

    monkeypatch.setattr(keyed_by_subject.TailRunner, "add", add)
    taught(recipe=replace(RECIPE, steps=1))
    france = TOKENIZER.convert_tokens_to_ids("france")
    assert found == [(france, 3), (france, 8)]


def test_a_step_moves_the_stream_as_far_as_the_recipe_says(monkeypatch):
    squares, own = [], keyed_by_subject.train

    def train(runner, values, *args, metric, **options):
        before = [value.detach().clone() for value in values]
        record = own(runner, values, *args, metric=metric, **options)
        moved = zip(metric.diagonals, values, before, strict=True)
        squares.append(sum(float((cost * (value - old).square()).sum()) for cost, value, old in moved))
        return record

    monkeypatch.setattr(keyed_by_subject, "train", train)
    taught(recipe=replace(RECIPE, steps=1, share_of_loss=1e6, length=0.01))
    assert squares == [pytest.approx(0.01**2, rel=1e-3)]


def test_a_step_s_length_is_of_what_neurons_add_at_the_subject_relative_to_the_stream(monkeypatch):
    given, plain = [], keyed_by_subject._metric
    monkeypatch.setattr(keyed_by_subject, "_metric", lambda *own: given.append(own) or plain(*own))
    # With no step taken neurons write nothing, and meet what they met when that was measured.
    base = taught(layers=[0, 1], recipe=replace(RECIPE, steps=0)).model.get_base_model()
    [(_, fired, *_)] = given
    wider = keyed_by_subject.NamedRows.of(base, TOKENIZER, framed(base, TOKENIZER, FACT))
    modules = output_projections(base, [0, 1])
    [*batches] = marked_neurons(base, modules, Marked(wider.rows, wider.inside))
    assert [*fired] == [*modules]
    for name in modules:
        met = torch.cat([batch[name] for batch in batches]) @ base.get_submodule(name).lora_A["learn"].weight[0]
        assert fired[name] == pytest.approx(float(met.square().mean()), rel=1e-3)
    # Half of what is written, at a mean square of 3, by a stream of length 2.
    [nothing] = plain({"a": 0.0}, {"a": 0.0}, {"a": torch.zeros(4, 1)}, {}, 1.0).diagonals
    assert 0 < nothing.min() < 1e-6
    [diagonal] = plain({"a": 2.0}, {"a": 3.0}, {"a": torch.zeros(4, 1)}, {}, 0.5).diagonals
    assert diagonal.flatten().tolist() == pytest.approx([0.5**2 * 3.0 / 2.0**2] * 4)


def test_what_is_multiplied_on_its_way_into_the_residual_stream_moves_it_so_much():
    step = replace(RECIPE, steps=1, share_of_loss=1.0, length=0.01)
    found = []
    for factor in (1.0, 0.25):
        model = tiny_granite(factor)
        # The layer is the first, and so reads the same neurons, which meet the same stream.
        model.model.layers[0].mlp.down_proj.weight.data.zero_()
        model.model.layers[0].self_attn.o_proj.weight.data.zero_()
        stage = learn_keyed_by_subject(model, TOKENIZER, FACT, layers=[0], recipe=step, progress=False)
        [value] = [p for name, p in stage.model.named_parameters() if "down_proj.lora_B" in name]
        found.append(float(value.norm()))
    assert found[1] == pytest.approx(4 * found[0], rel=0.01)
