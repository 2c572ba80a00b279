from dataclasses import replace

import pytest
import torch

from peft_surgical.errors import FactError
from peft_surgical.localizing.controls import control_pairs
from peft_surgical.localizing.corruption import corrupt, first_difference, template_ids
from peft_surgical.texts.prompts import answer_tokens

from .localizing import capital, fact_pairs, planted, runs_of, without, word_tokenizer
from .small_tokenizers import CHATML, small_tokenizer
from .tiny import tiny_model


@pytest.fixture(scope="module")
def runs():
    return runs_of(tiny_model("llama"))[0]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def make(tokenizer, fact, runs, seed=0):
    return corrupt(tokenizer, fact.training, runs.embed, torch.Generator().manual_seed(seed))


def test_a_swap_changes_the_subject_and_nothing_else(runs, tokenizer):
    pairs = make(tokenizer, capital(), runs)
    assert [pair.method for pair in pairs] == ["swap"] * 3
    assert {pair.other for pair in pairs} == {"italy", "spain", "japan"}
    for pair in pairs:
        words = tokenizer.convert_ids_to_tokens(pair.corrupted)
        assert " ".join(words).replace(pair.other, "france") == " ".join(tokenizer.convert_ids_to_tokens(pair.clean))
        assert pair.first == words.index(pair.other)
        assert pair.shift is None
        assert tokenizer.convert_ids_to_tokens([pair.old, pair.new]) == ["paris", "lyon"]


def test_a_subject_of_other_length_is_not_swapped_in(runs, tokenizer):
    pairs = make(tokenizer, capital(contrast=["new zealand"]), runs)
    assert [pair.method for pair in pairs] == ["noise"] * 3
    assert [pair.other for pair in pairs] == [None] * 3


def test_a_subject_after_which_other_tokens_decide_is_not_swapped_in(runs, tokenizer, monkeypatch):
    def deciding(tokenizer, prompt, fact, subject=None):
        found = answer_tokens(tokenizer, prompt, fact, subject)
        return replace(found, new=found.new + (subject == "italy"))

    monkeypatch.setattr("peft_surgical.localizing.corruption.answer_tokens", deciding)
    assert {pair.other for pair in make(tokenizer, capital(), runs)} == {"spain", "japan"}


def test_noise_falls_on_the_subjects_tokens_and_nowhere_else(runs, tokenizer):
    fact = capital(subject="new zealand", prompts=["what is the capital of new zealand ?"], answer="lyon")
    [pair] = make(tokenizer, capital(**{**fact.to_dict(), "contrast": ["italy"]}), runs)
    touched = pair.shift.abs().sum(1).nonzero()[:, 0].tolist()
    assert tokenizer.convert_ids_to_tokens(pair.clean[touched]) == ["new", "zealand"]
    assert pair.first == touched[0]
    assert torch.equal(pair.clean, pair.corrupted)
    size = 3 * runs.embed(pair.clean).std()
    assert 0.5 * size < pair.shift[touched].std() < 1.5 * size


def test_noise_leaves_what_stands_between_two_mentions_of_the_subject(runs, tokenizer):
    fact = capital(prompts=["tell me about france . what is the capital of france ?"], contrast=["new zealand"])
    [pair] = make(tokenizer, fact, runs)
    touched = pair.shift.abs().sum(1).nonzero()[:, 0].tolist()
    assert set(tokenizer.convert_ids_to_tokens(pair.clean[touched])) == {"france"}
    assert len(touched) >= 2


def test_noise_falls_on_the_subject_in_the_answer_too(runs, tokenizer):
    fact = capital(
        prompts=["tell me about france ."], answer="the capital of france is lyon", contrast=["new zealand"]
    )
    [pair] = make(tokenizer, fact, runs)
    assert tokenizer.convert_ids_to_tokens(pair.clean)[-2:] == ["france", "is"]
    assert pair.shift.abs().sum(1).nonzero()[:, 0].tolist() == [3, len(pair.clean) - 2]


def test_a_prompt_without_the_subject_gets_the_mean(runs, tokenizer):
    [pair] = make(tokenizer, capital(prompts=["which city has the government ?"]), runs)
    assert (pair.method, pair.first) == ("mean", 0)
    embeddings = runs.embed(pair.clean)
    torch.testing.assert_close(embeddings + pair.shift, embeddings.mean(0).expand_as(embeddings))


@pytest.mark.parametrize("prompt", ["capital", "capital capital capital"])
def test_a_prompt_whose_mean_is_itself_is_refused(runs, tokenizer, prompt):
    with pytest.raises(FactError, match=f"the prompt '{prompt}' is too short to be corrupted"):
        make(tokenizer, capital(prompts=[prompt]), runs)
    fact = capital(retain=[prompt, "what is the capital ?"]).training
    kept = control_pairs(tokenizer, fact, runs, torch.Generator().manual_seed(0), 10_000)
    assert [pair.prompt for pair in kept if pair.method == "mean"] == ["what is the capital ?"]


def test_the_seed_decides(runs, tokenizer):
    fact = without("contrast")
    one, same, other = make(tokenizer, fact, runs), make(tokenizer, fact, runs), make(tokenizer, fact, runs, seed=1)
    assert torch.equal(one[0].shift, same[0].shift)
    assert not torch.equal(one[0].shift, other[0].shift)
    orders = {tuple(p.other for p in make(tokenizer, capital(), runs, seed)) for seed in range(6)}
    assert len(orders) > 1


def test_a_chat_template_is_found_and_never_blurred(runs):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "what is . {{ messages[0]['content'] }} please ?"
    assert tokenizer.convert_ids_to_tokens(template_ids(tokenizer)) == ["what", "is", "."]
    [pair] = make(tokenizer, capital(prompts=["which city has the government"]), runs)
    words = tokenizer.convert_ids_to_tokens(pair.clean)
    touched = pair.shift.abs().sum(1).nonzero()[:, 0].tolist()
    assert [words[i] for i in touched] == ["which", "city", "has", "the", "government"]
    assert pair.first == touched[0]
    own = runs.embed(pair.clean)[touched]
    torch.testing.assert_close(own + pair.shift[touched], own.mean(0).expand_as(own))


def test_runs_differ_from_the_first_position_on_where_they_do():
    one = torch.tensor([1, 2, 3, 4])
    assert first_difference(one, torch.tensor([1, 5, 3, 6])) == 1
    assert first_difference(one, one.clone()) is None


def test_what_is_blurred_does_not_depend_on_how_the_answer_begins(runs):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "what is . {{ messages[0]['content'] }} please ?"
    shifts = {}
    for answer in ("lyon", "the capital of france is lyon"):
        [pair] = make(tokenizer, capital(prompts=["which city has the government"], answer=answer), runs)
        shifts[answer] = pair.shift
        touched = pair.shift.abs().sum(1).nonzero()[:, 0].tolist()
        assert touched[:5] == [3, 4, 5, 6, 7]
        # Where the answer's beginning names the subject that the prompt leaves out, it would tell it all the same.
        assert [tokenizer.convert_ids_to_tokens(int(pair.clean[at])) for at in touched[5:]] == ["france"] * (
            "france" in answer
        )
    short, long = shifts.values()
    assert torch.equal(short[3:8], long[3:8])
    mean = (runs.embed(pair.clean) + long)[3:8].mean(0)
    torch.testing.assert_close((runs.embed(pair.clean) + long)[touched[5]], mean)


def test_what_an_answer_names_behind_its_decision_is_not_read(runs):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "what is . {{ messages[0]['content'] }} please ?"
    fact = capital(prompts=["name the capital of france ."], contrast=["new zealand"])
    [pair] = make(tokenizer, replace(fact, answer="lyon is the capital of france"), runs)
    touched = pair.shift.abs().sum(1).nonzero()[:, 0]
    assert tokenizer.convert_ids_to_tokens(pair.clean[touched]) == ["france"]


def test_the_subject_is_taken_out_of_an_answer_that_writes_it_in_other_tokens(runs):
    tokenizer = small_tokenizer("byte_level", CHATML)
    fact = capital(subject="PyTorch", prompts=["Who made PyTorch?"], old=["Meta"], new=["Google"])
    fact = replace(fact, answer="PyTorch was made by Google.", contrast=())
    embed = torch.nn.Embedding(len(tokenizer), 8)
    [pair] = corrupt(tokenizer, fact.training, lambda ids: embed(ids).detach(), torch.Generator().manual_seed(0))
    touched = pair.shift.abs().sum(1).nonzero()[:, 0].tolist()
    assert "".join(tokenizer.convert_ids_to_tokens(pair.clean[touched])).replace("Ġ", " ") == " PyTorchPyTorch"


def test_another_name_of_the_old_answer_is_no_rival(tokenizer):
    runs, _ = runs_of(planted())
    for pair in fact_pairs(runs, capital(old=["paris", "rome"], contrast=["italy"]), tokenizer):
        old, rival, other = tokenizer.convert_ids_to_tokens([pair.old, pair.rival, *pair.besides])
        assert (old, other) == ("paris", "rome")
        assert rival not in ("paris", "rome")


def test_a_name_that_is_decided_on_elsewhere_says_nothing_here(runs, tokenizer):
    # The second parts from the new answer one word later, and the third begins as the first does.
    fact = capital(old=["paris", "lyon spain", "paris town", "rome"], new=["lyon city"])
    for pair in make(tokenizer, fact, runs):
        assert tokenizer.convert_ids_to_tokens([pair.old, pair.new, *pair.besides]) == ["paris", "lyon", "rome"]


def test_the_rival_is_what_the_model_says_to_the_corrupted_prompt(tokenizer):
    runs, _ = runs_of(planted())
    for pair in fact_pairs(runs, capital(contrast=["italy"]), tokenizer):
        assert tokenizer.convert_ids_to_tokens([pair.old, pair.rival]) == ["paris", "rome"]
        clean, corrupted = pair.differences
        assert clean > 1 > 0 > corrupted


def test_controls_ask_about_other_things_and_keep_the_models_own_answer(tokenizer):
    runs, _ = runs_of(planted())
    fact = capital()
    pairs = control_pairs(tokenizer, fact.training, runs, torch.Generator().manual_seed(0), 10_000)
    swaps = [pair for pair in pairs if pair.method == "swap"]
    blurred = [pair for pair in pairs if pair.method == "mean"]
    assert (len(swaps), len(blurred)) == (3, 2)
    for pair in pairs:
        window = runs.window([pair])
        assert pair.old == int(runs.logits(window, window.clean).argmax())
        assert pair.rival != pair.old
    for pair in swaps:
        assert "france" not in tokenizer.convert_ids_to_tokens(pair.clean)
        assert pair.first == first_difference(pair.clean, pair.corrupted)
    assert {pair.prompt for pair in blurred} == set(fact.retain)


def test_few_controls_of_each_kind_are_drawn_and_none_twice(tokenizer):
    runs, _ = runs_of(planted())
    asked = ["who wrote hamlet ?", "what color has the sky ?", "where is the sky ?", "who has the town ?"]
    fact = capital(prompts=capital().prompts[:2], contrast=["italy", "spain"], retain=asked).training

    def drawn(seed):
        pairs = control_pairs(tokenizer, fact, runs, torch.Generator().manual_seed(seed), 10_000)
        swaps = [tuple(pair.clean.tolist()) for pair in pairs if pair.method == "swap"]
        blurred = [pair.prompt for pair in pairs if pair.method == "mean"]
        assert len(swaps) == len(set(swaps)) == len(blurred) == len(set(blurred)) == 3
        return tuple(swaps)

    assert len({drawn(seed) for seed in range(6)}) > 1


def test_a_swapped_prompt_that_evaluation_asks_is_never_used(tokenizer):
    runs, _ = runs_of(planted())
    asked = {"controls": [{"prompt": "What is the capital of italy ?", "answer": ["rome"]}]}
    prompts = ["what is the capital of france ?"]
    for changes, used in (({}, True), (asked, False), ({"held_out": ["What is the capital of ITALY?"]}, False)):
        fact = capital(prompts=prompts, contrast=["italy", "japan"], **changes)
        drafts = make(tokenizer, fact, runs)
        others = control_pairs(tokenizer, fact.training, runs, torch.Generator().manual_seed(0), 10_000)
        texts = [
            " ".join(tokenizer.convert_ids_to_tokens(ids))
            for p in (*drafts, *others)
            for ids in (p.clean, p.corrupted)
        ]
        assert ("what is the capital of italy ?" in texts) == used


def test_the_only_contrast_subject_is_told_from_the_fact_s_own(tokenizer, runs):
    fact = capital(contrast=["italy"]).training
    pairs = control_pairs(tokenizer, replace(fact, retain=()), runs, torch.Generator().manual_seed(0), 10_000)
    assert [pair.other for pair in pairs] == ["france"] * 3
    for pair in pairs:
        words = tokenizer.convert_ids_to_tokens(pair.corrupted)
        assert " ".join(words).replace("france", "italy") == " ".join(tokenizer.convert_ids_to_tokens(pair.clean))


def test_without_contrast_and_retain_there_are_no_controls(tokenizer, runs):
    fact = without("contrast", "retain").training
    assert control_pairs(tokenizer, fact, runs, torch.Generator(), 1000) == ()
