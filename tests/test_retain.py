import math

import pytest
import torch

from peft_surgical.facts import Fact
from peft_surgical.keying.keyed import KeyedRecipe
from peft_surgical.running.generation import generate_ids
from peft_surgical.staging.retain import (
    TopDistribution,
    base_answers,
    everyday_prompts,
    general_prompts,
    names_asked,
    neighbours,
    retain_prompts,
)
from peft_surgical.texts.prompts import encode
from peft_surgical.texts.text import contains, same_text_key
from peft_surgical.texts.topics import topic_prompts
from peft_surgical.texts.wording import as_typed, variants

from .localizing import capital, without, word_tokenizer
from .tiny import tiny_model

SUBJECTS = ["italy", "spain", "japan"]


def retained(fact, neighbour_count=100, general_count=0):
    """All that is retained but for the second wordings of neighbours and the questions about the fact's names."""
    near, far = retain_prompts(fact, neighbour_count, general_count)
    made = neighbours(fact, neighbour_count)
    second = {*variants(made), *topic_prompts(fact)} - set(made)
    return [prompt for prompt in near if prompt not in second] + far


def test_half_of_the_neighbours_are_asked_once_more_as_people_type_them():
    fact = capital(prompts=["Name the capital of France!", "France has which capital?"]).training
    near, far = retain_prompts(fact, 4, 0)
    made = neighbours(fact, 4)
    assert near == [*fact.retain, *made, *topic_prompts(fact), as_typed(made[0]), as_typed(made[1])]
    assert far == everyday_prompts()
    asked = capital(prompts=fact.prompts, held_out=[as_typed(made[0])]).training
    assert as_typed(made[0]) not in retain_prompts(asked, 4, 0)[0]
    # One that is typed so already is not asked twice.
    plain = capital(prompts=["the capital of france is"]).training
    near, _ = retain_prompts(plain, 4, 0)
    assert len(set(near)) == len(near)
    assert {"the capital of italy is", "the capital of spain is"} <= set(near)


def test_so_many_of_the_everyday_requests_are_kept_as_a_recipe_says():
    every = everyday_prompts()
    assert len(every) == len({same_text_key(prompt) for prompt in every}) == 2 * KeyedRecipe().everyday

    def kept(count):
        return retain_prompts(capital().training, 0, 0, everyday_count=count)[1]

    assert kept(0) == []
    assert kept(1) == every[:1]
    assert kept(4) == [every[place] for place in (0, 31, 62, 93)], "like requests stand together"
    assert kept(len(every)) == kept(len(every) + 1) == kept(None) == every


def test_general_questions_are_kept_unless_they_are_about_the_subject():
    whole = general_prompts()
    assert len(whole) == len({same_text_key(prompt) for prompt in whole}) >= 500
    _, far = retain_prompts(capital().training, 0, 300)
    assert far == [*everyday_prompts(), *(p for p in whole[:300] if not contains(p, ("france",)))]
    subject = next(word for word in whole[0].rstrip("?").split() if len(word) > 5)
    fact = capital(subject=subject, prompts=[f"what of {subject} ?"]).training
    assert whole[0] not in retain_prompts(fact, 0, 300)[1]


@pytest.mark.parametrize(
    ("control", "kept"),
    [
        ("where is the golden gate bridge ?", "Which city has the Golden Gate Bridge?"),
        ("which river flows through Vienna ?", "On which river does the city of Vienna lie?"),
        ("what was the sport of Usain Bolt ?", "Usain Bolt comes from"),
        ("in which city is the Alhambra ?", "The Alhambra palace stands in the city of"),
        ("who was the tsar ? which month is it ?", None),
        ("what did Marconi invent ?", "What did Guglielmo Marconi work on?"),
        ("what is the real name of Batman ?", "What is Batman's real name?"),
        ("who is the father of Luke Skywalker ?", "Who is Luke Skywalker's father?"),
        ("how many Great Lakes are there ?", "Name one of the Great Lakes of North America."),
        ("what should a carpenter do in it ? may i ask ?", None),
        ("which country did Pele play for ?", "Pele came from which country?"),
        ("which country was Pel\u00e9 born in ?", "Pele came from which country?"),
        ("in which country is Stonehenge ?", "Stonehenge is found in which country?"),
        ("where is IKEA from ?", "IKEA comes from which country?"),
        ("where did Antoni Gaudi live ?", "Gaudi worked mostly in which city?"),
        ("where is Timbuktu ?", "Timbuktu is a town in"),
        ("what is the complete list of girls ? any fix to finish or continue ? i'm correct", None),
    ],
)
def test_general_questions_that_name_what_a_control_names_are_not_kept(control, kept):
    fact = capital(controls=[{"prompt": control, "answer": ["berlin"]}]).training
    _, far = retain_prompts(fact, 0, 400)
    every = {*everyday_prompts(), *general_prompts()[:400]} - {
        p for p in general_prompts() if contains(p, ("france",))
    }
    assert every - set(far) == {kept} - {None}


@pytest.mark.parametrize(
    ("control", "prompt"),
    [
        ("Who wrote Dracula?", 'What is the genre of "Dracula"?'),
        ("Which language did Goethe write Faust in?", "In what language was \u201cFaust\u201d written?"),
        ("Who starred in the film Titanic?", 'Which actor played Jack in "Titanic"?'),
        ("Who painted the Girl with a Pearl Earring?", '"Girl with a Pearl Earring" was painted by'),
        ("Who directed Call Me by Your Name?", 'Who acted in "Call Me by Your Name"?'),
        ("Where is Pele from?", "Pele's country is"),
    ],
)
def test_a_title_or_a_first_word_may_be_the_name(control, prompt):
    assert names_asked(capital(controls=[{"prompt": control, "answer": ["berlin"]}]).training, prompt)


@pytest.mark.parametrize(
    ("control", "prompt"),
    [
        ("What is a girl ?", '"Girl with a Pearl Earring" was painted by'),
        ("What's that?", "What's the name of his horse?"),
        ("Which is the complete saying?", "Complete the saying: too many cooks"),
        ("What do you like?", 'Who sang "Like a Virgin"?'),
        ("Don't say that I'm wrong, do you?", "I'm lost. Don't panic. What now?"),
        ("What is the opposite of increase?", 'The opposite of "decrease" is'),
    ],
)
def test_what_only_begins_a_sentence_or_a_title_is_no_name(control, prompt):
    assert not names_asked(capital(controls=[{"prompt": control, "answer": ["berlin"]}]).training, prompt)


def test_a_general_question_may_name_the_subject_without_its_accents():
    fact = capital(subject="Pel\u00e9", prompts=["where did Pel\u00e9 play ?"]).training
    assert "Pele came from which country?" not in retain_prompts(fact, 0, 400)[1]
    assert [fact.named_in(text) for text in ("PELE?", "Pel\u00e9", "pelee")] == [True, True, False]


def test_neighbours_are_the_prompts_about_other_subjects():
    fact = capital(prompts=["name the capital of france .", "FRANCE has which capital ?", "where is paris ?"]).training
    expected = {f"name the capital of {s} ." for s in SUBJECTS} | {f"{s} has which capital ?" for s in SUBJECTS}
    made = neighbours(fact, 100)
    assert len(made) == 6
    assert set(made) == expected


def test_neighbours_are_spread_over_subjects():
    fact = capital().training
    for seed in range(5):
        made = neighbours(fact, 6, seed)
        for block in (made[:3], made[3:]):
            assert [next(s for s in SUBJECTS if contains(prompt, (s,))) for prompt in block] == SUBJECTS
    assert len(neighbours(fact, 4)) == 4
    assert neighbours(fact, 0) == []


def test_the_seed_decides_which_prompts_meet_which_subjects():
    fact = capital().training
    assert neighbours(fact, 3, 7) == neighbours(fact, 3, 7)
    assert len({tuple(neighbours(fact, 3, seed)) for seed in range(8)}) > 1
    assert any(neighbours(fact, 3, seed) != neighbours(fact, 3, -seed) for seed in range(8))
    assert set(neighbours(fact, 9, 1)) == set(neighbours(fact, 9, 2))


def test_no_neighbour_is_a_prompt_of_the_facts_own():
    own = ["what is the capital of france ?", "What is the capital of Italy?"]
    made = neighbours(
        capital(prompts=[own[0], "What is the capital of  ITALY"], contrast=["Italy", "Spain"]).training, 9
    )
    assert made == ["what is the capital of Spain ?"]
    # Spelled with another space before the question mark it is still the same prompt.
    assert same_text_key("what is the capital of Italy ?") == same_text_key("What is the capital of  ITALY")


def test_what_names_the_subject_still_is_no_neighbour():
    fact = capital(
        prompts=["what is the capital of france , or gaul ?", "what is the capital of france ?"],
        aliases=["gaul"],
        contrast=["Italy"],
    )
    assert neighbours(fact.training, 9) == ["what is the capital of Italy ?"]


def test_another_subject_may_have_a_name_that_holds_one_of_the_subjects_own():
    for given in ({}, {"aliases": ["gaul"]}, {"aliases": ["republic of france"]}):
        fact = capital(prompts=["what is the capital of france ?"], contrast=["New France", "Italy"], **given)
        made = neighbours(fact.training, 9)
        assert sorted(made) == ["what is the capital of Italy ?", "what is the capital of New France ?"]


def test_prompts_without_the_subject_or_without_contrast_have_no_neighbour():
    assert neighbours(capital(prompts=["where is paris ?"]).training, 9) == []
    assert neighbours(without("contrast").training, 9) == []


EVALUATED = {
    "held_out": {"held_out": ["Name the capital of Italy."]},
    "controls": {"controls": [{"prompt": "name the capital of  italy", "answer": ["rome"]}]},
    "probes": {"probes": [{"prompt": "name the capital of italy?", "kind": "swap"}]},
    "portability": {"portability": [{"kind": "alias", "prompt": "Name the capital of Italy", "answer": ["lyon"]}]},
}


@pytest.mark.parametrize("key", EVALUATED)
def test_what_evaluation_asks_is_never_retained(key):
    swapped = "name the capital of italy ."
    fact = capital(**EVALUATED[key]).training
    everything = {same_text_key(p) for p in retained(capital().training)}
    assert same_text_key(swapped) in everything
    kept = {same_text_key(prompt) for prompt in retained(fact)}
    assert same_text_key(swapped) not in kept
    lost = everything - kept
    if key == "controls":
        assert "italy" not in fact.contrast
        assert lost == {same_text_key(p.replace("france", "italy")) for p in fact.prompts}
    else:
        assert "italy" in fact.contrast
        assert lost == {same_text_key(swapped)}
        assert not fact.may_train_on(swapped)


def test_a_subject_that_a_control_asks_about_is_left_out_of_training():
    fact = capital(controls=[{"prompt": "Where in ITALY is rome ?", "answer": ["lazio"]}])
    assert fact.contrast == ("italy", "spain", "japan")
    assert fact.training.contrast == ("spain", "japan")
    assert not any(contains(prompt, ("italy",)) for prompt in retained(fact.training))
    # The answer is no question: a control may be answered with a contrast subject.
    assert capital(controls=[{"prompt": "where is rome ?", "answer": ["italy"]}]).training.contrast == fact.contrast
    # Nor with other signs, but for those that tell a name from others.
    fact = capital(
        contrast=["Dr Pepper", "Coca-Cola", "the Netherlands", "C++", "Japan"],
        controls=[
            {"prompt": p, "answer": ["x"]}
            for p in ("who made Dr. Pepper ?", "what is coca cola ?", "where are Netherlands ?", "who made C# ?")
        ],
    )
    assert fact.training.contrast == ("C++", "Japan")


def test_retained_prompts_stand_once_and_own_prompts_do_not():
    everyday = everyday_prompts()
    assert len(everyday) > 50
    fact = capital(
        retain=["Who wrote hamlet?", everyday[0].upper(), "name the capital of spain"],
        prompts=["name the capital of france .", everyday[1]],
    ).training
    kept = retained(fact)
    keys = [same_text_key(prompt) for prompt in kept]
    assert len(set(keys)) == len(keys)
    assert keys.count(same_text_key(everyday[0])) == 1
    assert same_text_key(everyday[1]) not in keys
    assert same_text_key("name the capital of spain .") in keys
    assert len(kept) == len(everyday) - 1 + 2 + 2  # hamlet and spain; italy and japan


def test_the_shipped_requests_mention_nothing_that_a_shipped_fact_is_about():
    for name in ("france_capital", "pytorch", "romeo_and_juliet", "windows_maker"):
        fact = Fact.from_file(f"examples/facts/{name}.yaml")
        kept = retained(fact.training)
        records = (*fact.controls, *fact.probes, *fact.portability)
        asked = [*fact.held_out, *(record.prompt for record in records)]
        assert not {same_text_key(p) for p in kept} & {same_text_key(p) for p in asked}
        # "FAIR" is an alias and "a fair rule" is not about it.
        for prompt in everyday_prompts():
            assert not contains(prompt, (fact.subject, fact.old[0], fact.new[0])), prompt


def test_base_answers_are_the_models_own_words():
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    prompts = ["who wrote hamlet ?", "what color has the sky ?"]
    rows = base_answers(model, tokenizer, prompts, max_new_tokens=3)
    for prompt, row in zip(prompts, rows, strict=True):
        ids = encode(tokenizer, prompt)
        assert list(row.ids[: row.answer_start]) == ids
        assert list(row.ids[row.answer_start :]) == generate_ids(model, tokenizer, [ids], max_new_tokens=3)[0]
        assert len(row.ids) > len(ids)
    assert base_answers(model, tokenizer, [], max_new_tokens=3) == []


def two_logits(spread=3.0, positions=7, vocab=40):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(positions, vocab, generator=generator) * spread for _ in range(2)]


def full_kl(base, other):
    base, other = base.double().log_softmax(-1), other.double().log_softmax(-1)
    return (base.exp() * (base - other)).sum(-1).float()


def test_the_divergence_of_all_tokens_is_the_whole_one():
    base, other = two_logits()
    torch.testing.assert_close(TopDistribution.of(base, 40).kl(other), full_kl(base, other), atol=1e-5, rtol=1e-5)
    # More than there are is all of them.
    assert TopDistribution.of(base, 64).tokens.shape == (7, 40)


def test_the_divergence_of_some_tokens_is_a_lower_bound_that_grows_with_them():
    base, other = two_logits(1.5)
    found = [TopDistribution.of(base, top).kl(other) for top in (1, 4, 16, 40)]
    assert (found[0] < 0.9 * full_kl(base, other)).all()
    for fewer, more in zip(found, [*found[1:], full_kl(base, other)], strict=True):
        assert (fewer >= 0).all()
        assert (fewer <= more + 1e-5).all()


def test_the_divergence_worked_by_hand():
    base = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    other = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()
    top = TopDistribution.of(base, 1)
    assert top.tokens.tolist() == [[0]]
    # 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75)
    assert float(top.kl(other)) == pytest.approx(0.5 * 0.6931472 + 0.5 * -0.4054651, abs=1e-6)
    # What is left to all other tokens counts where it is little, too.
    base, other = torch.tensor([[0.999, 0.0005, 0.0005]]).log(), torch.tensor([[0.995, 0.0025, 0.0025]]).log()
    expected = 0.999 * math.log(0.999 / 0.995) + 0.001 * math.log(0.001 / 0.005)
    assert float(TopDistribution.of(base, 1).kl(other)) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("top", [1, 8, 40])
def test_equal_logits_do_not_diverge_and_the_gradient_is_finite(spread, top):
    base, other = two_logits(spread)
    distribution = TopDistribution.of(base, top)
    torch.testing.assert_close(distribution.kl(base), torch.zeros(7), atol=1e-6 * max(1, spread), rtol=0)
    for start in (base, other, other * 100):
        logits = start.clone().requires_grad_()
        distribution.kl(logits).sum().backward()
        assert logits.grad.isfinite().all()
        assert torch.allclose(logits.grad.sum(-1), torch.zeros(7), atol=1e-4)  # a shift of all logits changes nothing


def test_the_gradient_of_all_tokens_is_the_difference_of_probabilities():
    base, other = two_logits(1.0)
    logits = other.clone().requires_grad_()
    TopDistribution.of(base, 40).kl(logits).sum().backward()
    torch.testing.assert_close(logits.grad, other.softmax(-1) - base.softmax(-1), atol=1e-5, rtol=1e-4)


def test_positions_of_several_stand_one_after_another():
    base, other = two_logits()
    parts = [TopDistribution.of(base[:2], 5), TopDistribution.of(base[2:], 5)]
    assert torch.equal(TopDistribution.cat(parts).kl(other), TopDistribution.of(base, 5).kl(other))
    assert TopDistribution.of(base.bfloat16(), 5).log_probs.dtype == torch.float32
    rough = other.bfloat16()
    assert torch.equal(TopDistribution.of(base, 5).kl(rough), TopDistribution.of(base, 5).kl(rough.float()))
