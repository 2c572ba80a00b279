import math
from contextlib import nullcontext

import pytest
import torch

from peft_surgical import evaluation
from peft_surgical.adapters.bases import note_revision
from peft_surgical.errors import ModelError
from peft_surgical.evaluation import Answers, answer_fact, base_settings, evaluate, versions
from peft_surgical.measuring import retention
from peft_surgical.measuring.fluency import fluency_prompts
from peft_surgical.measuring.metrics import Figure, clustered_mean
from peft_surgical.measuring.portability import portability_metrics
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.measuring.soft_forgetting import probe_metrics
from peft_surgical.measuring.states import adapter_state
from peft_surgical.models import load_model
from peft_surgical.running.generation import generate_answers

from .adapters import logits, perturb, tiny_peft
from .conftest import fingerprint
from .localizing import capital, word_tokenizer
from .offloading import offloaded
from .small_tokenizers import small_tokenizer
from .test_states_act import trainability
from .threads import threads
from .tiny import tiny_model

TOKENIZER = word_tokenizer()
TEXT = "what is the capital of france ? please tell me about the seat of government of italy . " * 6
PROBE = {"prompt": "is paris the capital of france ?", "kind": "contradiction"}
BACK = {"kind": "reversal", "prompt": "lyon is the capital of", "answer": ["france"]}


def two_states(model, *adapters):
    return {"base": adapter_state(model, []), "edited": adapter_state(model, adapters or ("default",))}


@pytest.mark.parametrize("mode", [True, False])
def test_base_against_base_is_exactly_nothing(mode):
    # In training mode dropout would make two runs of one model differ.
    model = tiny_model("gpt2", resid_pdrop=0.5).train(mode)
    before = fingerprint(model)
    states = {"base": adapter_state(model, []), "again": adapter_state(model, [])}
    found = measure_retention(model, TOKENIZER, states, text=TEXT, window=32)
    n = found["base"]["kl_per_token"].n
    assert n > 60
    for name in states:
        assert found[name] == {
            "kl_per_token": Figure(0.0, n, 0.0, 0.0),
            "perplexity_ratio": Figure(1.0, n, 1.0, 1.0),
        }
    assert fingerprint(model) == before


@pytest.mark.parametrize("count", [1, 2, 4])
@torch.no_grad()
def test_retention_by_hand(count, monkeypatch):
    model, looked = tiny_peft("llama"), []
    look = retention._look

    def noted(replica, own, **given):
        looked.append(replica)
        return look(replica, own, **given)

    monkeypatch.setattr(retention, "_look", noted)
    with threads(count):
        found = measure_retention(model, TOKENIZER, two_states(model), text=TEXT, tokens=50, window=20)["edited"]
    ids = TOKENIZER(TEXT, add_special_tokens=False)["input_ids"][:50]
    kl, difference = [], []
    for row in (ids[:20], ids[20:40], ids[40:]):
        edited = logits(model, torch.tensor([row]))[0, :-1].log_softmax(-1)
        with model.disable_adapter():
            base = logits(model, torch.tensor([row]))[0, :-1].log_softmax(-1)
        kl += [float((b.exp() * (b - e)).sum()) for b, e in zip(base, edited, strict=True)]
        difference += [float(b[t] - e[t]) for b, e, t in zip(base, edited, row[1:], strict=True)]
    # Three windows in two states, one at a time, two and one, or two on one of two replicas with two threads each.
    models = len({id(replica.model) for replica in looked})
    assert (len(looked), models) == {1: (6, 1), 2: (6, 3), 4: (4, 3)}[count]
    assert found["kl_per_token"].n == 47
    assert found["kl_per_token"].value == pytest.approx(sum(kl) / 47, rel=1e-4)
    assert found["perplexity_ratio"].value == pytest.approx(torch.tensor(difference).mean().exp().item(), rel=1e-4)
    assert found["kl_per_token"].low >= 0
    ends = [clustered_mean([part[:19], part[19:38], part[38:]]) for part in (kl, difference)]
    assert found["kl_per_token"].high == pytest.approx(ends[0].high, rel=1e-3)
    ratio = found["perplexity_ratio"]
    assert ratio.high == pytest.approx(math.exp(ends[1].high), rel=1e-3)
    assert ratio.low < ratio.value < ratio.high


def test_retention_reads_with_the_tokens_that_the_model_begins_with():
    model, states = tiny_model("llama", vocab_size=256), {"base": adapter_state(tiny_model("llama"), [])}
    tokenizer, seen = small_tokenizer("bpe"), []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    found = measure_retention(
        model, tokenizer, states, text="The capital of France is Paris. " * 9, tokens=30, window=11
    )
    assert [row[0] for row in seen] == [tokenizer.bos_token_id] * 3
    assert [len(row) for row in seen] == [11, 11, 11]
    assert found["base"]["kl_per_token"].n == 30
    seen.clear()
    measure_retention(model, TOKENIZER, states, text=TEXT, tokens=20, window=10)
    assert [len(row) for row in seen] == [10, 10]


def test_retention_keeps_to_the_models_positions_and_says_when_there_is_nothing():
    model = tiny_model("gpt2", n_positions=16)
    states = {"base": adapter_state(model, [])}
    assert measure_retention(model, TOKENIZER, states, text=TEXT, tokens=64)["base"]["kl_per_token"].n == 60
    for options in ({"tokens": 0}, {"tokens": 1}, {"text": ""}, {"text": "what"}):
        assert measure_retention(model, TOKENIZER, states, **{"text": TEXT, **options}) == {"base": {}}
    assert measure_retention(model, TOKENIZER, states, tokens=32)["base"]["kl_per_token"].n == 30  # the package's text


def test_retention_has_an_interval_also_of_what_one_window_would_hold():
    model = tiny_peft()
    perturb(model)
    for tokens, predicted in ((64, 62), (5, 3), (4, 2)):
        found = measure_retention(model, TOKENIZER, two_states(model), text=TEXT, tokens=tokens)["edited"]
        assert found["kl_per_token"].n == predicted
        assert found["kl_per_token"].low < found["kl_per_token"].value < found["kl_per_token"].high


@pytest.mark.parametrize("window", [-5, 0, 1])
def test_a_window_without_a_token_to_predict_is_refused(window):
    with pytest.raises(ModelError, match="window must be a whole number of 2 or more"):
        measure_retention(tiny_model("llama"), TOKENIZER, {"base": nullcontext}, text=TEXT, window=window)


@pytest.mark.parametrize("tokens", [-1, 100.0])
def test_a_number_of_tokens_that_is_none_is_refused(tokens):
    with pytest.raises(ModelError, match="tokens must be a whole number of 0 or more"):
        measure_retention(tiny_model("llama"), TOKENIZER, {"base": nullcontext}, text=TEXT, tokens=tokens)


def test_logits_that_are_not_finite_are_no_figure():
    model = tiny_peft("llama")
    for name, parameter in model.named_parameters():
        if "surgical_ia3_delta" in name:
            parameter.data.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"the edited model gives logits that are not finite in torch\.float32"):
        measure_retention(model, TOKENIZER, two_states(model), text=TEXT)


def test_the_callers_autocast_changes_no_figure():
    model = tiny_peft("llama")
    perturb(model)
    figures, dtypes = [], set()
    model.get_base_model().model.layers[0].mlp.register_forward_hook(lambda *given: dtypes.add(given[2].dtype))
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            figures.append(evaluate(model, TOKENIZER, capital(), states=two_states(model), progress=False))
    assert dtypes == {torch.float32}
    assert figures[0].dtype == "float32"
    assert figures[0].stages == figures[1].stages
    assert figures[0].stages["edited"]["kl_per_token"].value > 0


def test_evaluate_base_and_edited():
    model = tiny_peft("llama")
    before = fingerprint(model), trainability(model), model.active_adapters
    fact = capital(probes=[PROBE], portability=[BACK])
    report = evaluate(
        model,
        TOKENIZER,
        fact,
        states=two_states(model),
        seed=7,
        max_new_tokens=4,
        retention_tokens=40,
        selection={"components": ["L1.mlp"]},
        seconds={"learn": 2.0},
        progress=False,
    )
    assert (fingerprint(model), trainability(model), model.active_adapters) == before
    base, edited = report.stages["base"], report.stages["edited"]
    assert base["kl_per_token"].value == 0.0
    assert base["perplexity_ratio"].value == 1.0
    assert edited["kl_per_token"].value > 0
    assert edited["perplexity_ratio"].value != 1
    assert base["new_answer_rate"].n == len(fact.held_out)
    assert base["control_leak"].n == len(fact.controls)
    assert (report.seed, report.dtype, report.selection) == (7, "float32", {"components": ["L1.mlp"]})
    assert report.seconds.keys() == {"learn", "evaluate"}
    assert report.versions.keys() >= {"python", "torch", "transformers", "peft"}
    for name, figures in report.stages.items():
        said = report.answers[name]
        assert figures.items() >= portability_metrics(fact, said["portability"]).items()
        assert figures.items() >= probe_metrics(fact, said["probes"]).items()
        assert figures["portability_reversal"].n == figures["probe_old_rate"].n == 1
    keys = ("held_out", "controls", "probes", "portability")
    said = {name: [answer for key in keys for answer in given[key]] for name, given in report.answers.items()}
    prompts = [*fact.held_out, fact.controls[0].prompt, PROBE["prompt"], BACK["prompt"]]
    assert said["edited"] == generate_answers(model, TOKENIZER, prompts, max_new_tokens=4)
    with model.disable_adapter():
        assert said["base"] == generate_answers(model, TOKENIZER, prompts, max_new_tokens=4)


def test_answers_come_in_the_facts_order():
    fact = capital(held_out=["tell me about paris", "rome ?"], controls=[{"prompt": "name a city", "answer": "x"}])
    model = tiny_model("llama")
    answers = answer_fact(model, TOKENIZER, fact, max_new_tokens=4)
    assert answers.held_out == tuple(generate_answers(model, TOKENIZER, list(fact.held_out), max_new_tokens=4))
    assert answers.controls == tuple(generate_answers(model, TOKENIZER, ["name a city"], max_new_tokens=4))
    assert answers.probes == answers.portability == ()


def test_evaluating_a_bare_model():
    report = evaluate(tiny_model("llama"), TOKENIZER, capital(), max_new_tokens=2, retention_tokens=0, progress=False)
    assert list(report.stages) == ["base"]
    assert "kl_per_token" not in report.stages["base"]
    for states in (["base"], {"base": None}):
        with pytest.raises(ModelError, match="states must map names to what adapter_state gives, not"):
            evaluate(tiny_model("llama"), TOKENIZER, capital(), states=states)
    with pytest.raises(ModelError, match=r"states must include 'base', .*; got edited"):
        evaluate(tiny_model("llama"), TOKENIZER, capital(), states={"edited": adapter_state(tiny_model("llama"), [])})


def test_a_model_on_which_adapters_act_is_not_its_base():
    model = tiny_peft("llama")
    options = {"max_new_tokens": 2, "retention_tokens": 30, "progress": False}
    report = evaluate(model, TOKENIZER, capital(), **options)
    named = evaluate(model, TOKENIZER, capital(), states=two_states(model), **options)
    assert (report.stages, report.answers) == (named.stages, named.answers)
    with model.disable_adapter():
        assert list(evaluate(model, TOKENIZER, capital(), **options).stages) == ["base"]
    model.merge_adapter()
    assert list(evaluate(model, TOKENIZER, capital(), **options).stages) == ["base", "edited"]


def test_a_report_tells_what_its_figures_depend_on():
    options = {"max_new_tokens": 2, "retention_tokens": 0, "progress": False}
    report = evaluate(tiny_model("llama"), TOKENIZER, capital(), settings={"command": "x"}, **options)
    assert report.settings == {"max_new_tokens": 2, "retention_tokens": 0, "chat_template": None, "command": "x"}
    chat = word_tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert len(evaluate(tiny_model("llama"), chat, capital(), **options).settings["chat_template"]) == 64


def test_a_report_tells_where_the_model_came_from(tmp_path, monkeypatch):
    options = {"max_new_tokens": 2, "retention_tokens": 0, "progress": False}
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("out/model"), TOKENIZER.save_pretrained("out/model")
    model, tokenizer = load_model("out/model")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    report = evaluate(model, tokenizer, capital(), **options)
    assert (report.model, report.settings["hub_id"]) == ("out/model", None)
    assert "revision" not in report.settings
    assert "Measured: the base model in float32" in report.to_markdown()
    model = tiny_peft("llama")
    model.config._name_or_path = "org/model"
    note_revision(model.base_model.model, "v1.0")
    report = evaluate(model, TOKENIZER, capital(), **options)
    assert (report.settings["hub_id"], report.settings["revision"]) == ("org/model", "v1.0")
    assert "Measured: org/model (revision v1.0) in float32" in report.to_markdown()
    # A place in the hub's cache tells both.
    model = tiny_model("llama")
    model.config._name_or_path = "hub/models--org--model/snapshots/0a1b2c"
    settings = base_settings(model, TOKENIZER)
    assert (settings["hub_id"], settings["revision"]) == ("org/model", "0a1b2c")


def test_without_a_chat_template_an_answer_is_one_line(monkeypatch):
    said = ["Madrid. \n\nThe capital of France is Paris.", '?"\nParis']
    monkeypatch.setattr(evaluation, "generate_answers", lambda *_, **__: said)
    chat = word_tokenizer()
    chat.chat_template = "{{ messages[0].content }}"
    fact = capital()
    assert answer_fact(None, TOKENIZER, fact) == Answers(("Madrid.",), ('?"',), ())
    assert answer_fact(None, chat, fact) == Answers((said[0],), (said[1],), ())
    said[:] = ["\n Lyon", " \tRome", "Oslo\n", " Yes"]
    controls = [{"prompt": prompt, "answer": ["x"]} for prompt in ("where is rome ?", "where is oslo ?")]
    asked = capital(controls=controls, probes=[PROBE])
    assert answer_fact(None, TOKENIZER, asked).before_controls == (" \t", "")


def test_the_base_comes_first_whatever_the_order_of_states():
    states = dict(reversed(two_states(model := tiny_peft("llama")).items()))
    assert list(states) == ["edited", "base"]
    options = {"max_new_tokens": 2, "retention_tokens": 0, "progress": False}
    report = evaluate(model, TOKENIZER, capital(), states=states, **options)
    assert list(report.stages) == list(report.answers) == ["base", "edited"]
    assert "the edited model answers" in report.verdict()


def test_versions_are_those_of_what_runs(monkeypatch):
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
    monkeypatch.setattr(evaluation, "_PACKAGES", ("torch", "nothing-of-this-name"))
    assert versions().keys() == {"python", "machine", "torch"}


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}"])
def test_all_is_asked_as_the_tokenizer_has_it_and_so_many_at_a_time(template, monkeypatch):
    given, tokenizer, fact = [], word_tokenizer(), capital()
    tokenizer.chat_template = template
    for name in ("generate_answers", "measure_margins"):
        own = getattr(evaluation, name)
        monkeypatch.setattr(
            evaluation, name, lambda *a, own=own, batch_size, **b: given.append(batch_size) or own(*a, **b)
        )
    monkeypatch.setattr(
        evaluation,
        "continuations",
        lambda _, __, prompts, *, seed, batch_size, **___: given.append((prompts, seed, batch_size)) or ["a b c d e"],
    )
    options = {"margins": True, "fluency": True, "max_new_tokens": 2, "retention_tokens": 0, "progress": False}
    evaluate(tiny_model("llama"), tokenizer, fact, seed=5, batch_size=3, **options)
    assert given == [3, 3, (fluency_prompts(fact, chat=template is not None), 5, 3)]


def test_retention_leaves_each_module_in_its_own_mode_and_reads_offloaded_ones():
    model = tiny_model("llama")
    model.model.layers[1].train()
    before = fingerprint(model)
    found = measure_retention(model, TOKENIZER, {"base": adapter_state(model, [])}, text=TEXT, window=32)
    assert fingerprint(model) == before
    model = offloaded(tiny_model("llama"), ["model", "lm_head"])
    assert measure_retention(model, TOKENIZER, {"base": adapter_state(model, [])}, text=TEXT, window=32) == found


@pytest.mark.parametrize("name", ["selection", "settings", "seconds"])
def test_what_a_report_could_not_be_saved_with_is_refused(name):
    for value in (math.nan, {1}):
        with pytest.raises(ModelError, match=f"{name} must map names to what JSON can hold; got "):
            evaluate(tiny_model("llama"), TOKENIZER, capital(), progress=False, **{name: {"a": value}})


def test_open_prompts_that_do_not_fit_are_told_before_anything_is_answered(monkeypatch):
    monkeypatch.setattr(evaluation, "answer_fact", lambda *_, **__: pytest.fail("nothing is asked"))
    model = tiny_model("llama", max_position_embeddings=100)
    with pytest.raises(ModelError, match="do not fit the model's 100 positions"):
        evaluate(model, TOKENIZER, capital(), fluency=True, retention_tokens=0, progress=False)


def test_running_text_without_embeddings_is_told_before_anything_is_answered(monkeypatch):
    monkeypatch.setattr(evaluation, "answer_fact", lambda *_, **__: pytest.fail("nothing is asked"))
    model = tiny_model("llama")
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"more{number}" for number in range(model.config.vocab_size)])
    monkeypatch.setattr(retention, "read_data", lambda _: f"more{model.config.vocab_size - 1} " * 8)
    with pytest.raises(ModelError, match="embedding"):
        evaluate(model, tokenizer, capital(), retention_tokens=8, progress=False)


def test_a_wrapped_model_is_told_by_what():
    with pytest.raises(ModelError, match="wrapped by DataParallel"):
        evaluate(torch.nn.DataParallel(tiny_model("llama")), TOKENIZER, capital(), progress=False)


@pytest.mark.parametrize("count", [{"batch_size": 0}, {"max_new_tokens": 0}])
def test_counts_of_nothing_are_refused(count):
    [name] = count
    with pytest.raises(ModelError, match=f"{name} must be a whole number of 1 or more; got 0"):
        evaluate(tiny_model("llama"), TOKENIZER, capital(), progress=False, **count)


def test_a_number_of_tokens_that_is_none_is_refused_before_anything_is_answered(monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "generate_answers", lambda *_, **__: asked.append(1))
    with pytest.raises(ModelError, match="retention_tokens must be 0, or 2 or more"):
        evaluate(tiny_model("llama"), TOKENIZER, capital(), retention_tokens=1, progress=False)
    with pytest.raises(ModelError, match="retention_tokens must be a whole number of 0 or more; got -1"):
        evaluate(tiny_model("llama"), TOKENIZER, capital(), retention_tokens=-1, progress=False)
    assert not asked
