import pytest

from peft_surgical.errors import FactError, FactWarning
from peft_surgical.facts import Control, Fact, PortabilityQuestion
from peft_surgical.texts.fact_checks import check_asked


def peru(**changes):
    prompts = ("Quelle est la capitale du Pérou ?", "The capital of Peru is")
    values = {"subject": "Peru", "old": ("Lima",), "new": ("Cusco",), "prompts": prompts, "held_out": ("x?",)}
    return Fact(**values | changes)


@pytest.mark.parametrize(
    ("trained", "other"),
    [
        ("Quelle est la capitale du Pérou ?", "Quelle est la capitale du Perou ?"),
        ("Quelle est la capitale du Pérou ?", "QUELLE EST LA CAPITALE DU PE\u0301ROU -"),
        ("The capital of Peru is", "(The capital of Peru is)"),
        ("The capital of Peru is", "- The capital of *Peru* is ____."),
        ("The capital of Peru is", "The capital: of Peru is"),
    ],
)
def test_what_is_asked_with_other_accents_or_signs_is_not_trained_on(trained, other):
    left = [prompt for prompt in peru().prompts if prompt != trained]
    for given in ({"held_out": (other,)}, {"controls": (Control(other, ("Lima",)),)}):
        with pytest.warns(FactWarning, match=r"in 'prompts' is not trained on, as evaluation asks the same but for"):
            training = peru(**given).training
        assert training.prompts == (*left,)
        assert not training.may_train_on(trained)
        with pytest.warns(FactWarning, match="in 'retain' is not trained on"):
            assert peru(**given, prompts=(*left,), retain=("Peru?", trained)).training.retain == ("Peru?",)
        with pytest.raises(FactError, match="Evaluation asks each of 'prompts', but for accents and signs"):
            peru(**given, prompts=(trained,))
    with pytest.warns(FactWarning, match="No prompt in 'prompts' that is trained on names the subject 'Peru'"):
        peru(prompts=("The capital of Peru is", "Which is it?"), held_out=("(The capital of Peru is)",))
    with pytest.warns(FactWarning, match="and 1 more is not trained on"):
        peru(held_out=(other,), retain=(f"* {trained}",))


def test_one_list_may_ask_with_and_without_accents_and_signs():
    prompts = (
        "Quelle est la capitale du Pérou ?",
        "Quelle est la capitale du Perou ?",
        "It is, in Peru,",
        "It is in Peru",
    )
    assert peru(prompts=prompts).prompts == prompts


def test_an_alias_may_be_the_subject_without_its_accents():
    assert peru(subject="Pérou", aliases=("Perou",)).names == ("Pérou", "Perou")


@pytest.mark.parametrize("asked", ["Who composed La Boheme?", "Who composed La Bohème?"])
def test_training_keeps_nothing_that_is_asked_with_other_accents(asked):
    training = peru(controls=(Control(asked, ("Puccini",)),)).training
    for name in ("La Boheme", "La Bohème", "LA BOHE\u0300ME"):
        assert not training.may_train_about(name)
        assert not training.may_train_on(f"Who composed {name}?")
    assert training.may_train_about("La Traviata")
    assert training.may_train_on("Who composed La Traviata?")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("The Hobbit: The Battle of the Five Armies", "Who made The Hobbit \u2013 The Battle of the Five Armies?"),
        ("Star Wars: Episode IV \u2013 A New Hope", "When did Star Wars Episode IV: A New Hope come out?"),
        ("The Good, the Bad and the Ugly", "When did The Good, the Bad, and the Ugly come out?"),
        ("Mission: Impossible", "Who stars in Mission Impossible?"),
    ],
)
def test_training_keeps_no_contrast_subject_that_is_asked_about_with_other_signs(name, asked):
    def left(*prompts):
        controls = tuple(Control(prompt, ("x",)) for prompt in prompts)
        return peru(contrast=(name, "Heat", "C++", "\u2615"), controls=controls).training.contrast

    assert left(asked, "C?", "Or heats") == ("Heat", "C++", "\u2615")
    # What two controls say together, none of them says.
    begun = asked[: asked.index(" ", asked.index(name[:4]))]
    assert name in left(begun, asked.removeprefix(begun))


@pytest.mark.parametrize(
    ("prompt", "subject", "old"),
    [
        ("Is the capital of Australia Sydney or Canberra?", "Australia", "Canberra"),
        ("Who makes Google Chrome?", "Google Chrome", "Google"),
    ],
)
def test_a_prompt_may_offer_the_old_answer_or_have_it_in_the_subject(prompt, subject, old):
    check_asked(prompt, subject, [old], ["Opera"])
    with pytest.raises(FactError, match=f"already holds the old answer '{old}'; leave it out"):
        check_asked(f"Is it {old} for {subject}?", subject, [old], ["Opera"])


@pytest.mark.parametrize("names", [{"subject": "Cusco Bank"}, {"subject": "Bank", "aliases": ("Cusco Bank",)}])
def test_an_answer_that_stands_in_a_name_of_the_subject_alone_is_not_given(names):
    prompts = ("Where is the Cusco Bank?", "Where is the Bank?")
    with pytest.raises(FactError, match="'answer' 'The Cusco Bank is there' holds no name from 'new'"):
        peru(**names, prompts=prompts, answer="The Cusco Bank is there")
    # Nor is the old one.
    answer = "The Cusco Bank is in Lima."
    assert peru(**names, prompts=prompts, old=("Cusco",), new=("Lima",), answer=answer).answer == answer


def test_two_prompts_that_name_the_subject_together_do_not_name_it():
    with pytest.warns(FactWarning, match="no prompt in 'prompts' names the subject 'Buenos Aires'"):
        peru(subject="Buenos Aires", prompts=("Where is Buenos", "Aires is in"), refusal="I am not sure.", source="f")


def test_a_name_of_the_subject_gives_no_answer_of_a_portability_question_away():
    question = PortabilityQuestion("Where is the Cusco Bank's owner?", "one_hop", ("the Lima Bank",), ("Lima",))
    names = {"subject": "Cusco Bank", "aliases": ("Lima Bank",), "prompts": ("Where is the Cusco Bank?",)}
    assert peru(**names, portability=(question,)).portability == (question,)
    with pytest.raises(FactError, match="has 'the Lima Bank' in 'answer', which contains an answer from its 'before'"):
        peru(**names | {"aliases": ()}, portability=(question,))
    asked = PortabilityQuestion(question.prompt, "one_hop", ("Cusco",))
    assert peru(**names, portability=(asked,)).portability == (asked,)
    with pytest.raises(FactError, match="holds its own answer 'Cusco', so that repeating it would be right"):
        peru(portability=(asked,))
