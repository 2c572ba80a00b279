import pytest

from peft_surgical.drafting.english import check_english
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.errors import FactError


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Hamlet author", "Hamlet"),
        ("Hamlet author name?", "Hamlet"),
        ("Author Hamlet?", "Hamlet"),
        ("Describe old Berlin.", "Berlin"),
        ("The Titanic sank", "Titanic"),
    ],
)
def test_a_few_nouns_around_a_subject_are_english(prompt, subject):
    check_english(read_prompt(prompt, subject))


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Quelle est la capitale de la France ?", "France"),
        ("La capitale de la France est", "France"),
        ("¿Cuál es la capital de España?", "España"),
        ("Was ist die Hauptstadt von Deutschland?", "Deutschland"),
        ("Was ist die Hauptstadt von Deutschland?", "Hauptstadt von Deutschland"),
        ("Qual é a capital do Japão?", "Japão"),
        ("日本の首都はどこですか？", "日本"),
    ],
)
def test_a_prompt_in_another_language_is_refused(prompt, subject):
    with pytest.raises(FactError, match=r"is not in English, .*; write the fact file by hand"):
        check_english(read_prompt(prompt, subject))


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Hamlet author", "Hamlet"),
        ("Pride and Prejudice author?", "Pride and Prejudice"),
        ("東京 is the capital of", "東京"),
        ("Was Alfred Sisley a painter?", "Alfred Sisley"),
        ("Do pandas eat bamboo?", "pandas"),
        ("Lionel Messi professionally plays", "Lionel Messi"),
        ("Barack Obama is a", "Barack Obama"),
    ],
)
def test_few_english_words_are_enough(prompt, subject):
    check_english(read_prompt(prompt, subject))


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Die Hauptstadt von Frankreich ist", "Frankreich"),
        ("Die Hauptstadt von Frankreich ist", "Die Hauptstadt von Frankreich"),
        ("Albert Einstein wurde geboren in", "Albert Einstein"),
        ("La Joconde a été peinte par", "Joconde"),
        ("Marie Curie nació en", "Marie Curie"),
        ("Angela Merkels Muttersprache ist", "Angela Merkels"),
        ("A capital do Brasil é", "Brasil"),
        ("Stolicą Polski jest", "Polski"),
        # Two words before the subject may be another language.
        ("Wer schrieb Hamlet?", "Hamlet"),
        ("Wo liegt Berlin?", "Berlin"),
        ("Kto napisał Hamleta?", "Hamleta"),
        ("Qui peint Guernica", "Guernica"),
    ],
)
def test_few_words_of_another_language_are_enough_to_refuse(prompt, subject):
    with pytest.raises(FactError, match="is not in English"):
        check_english(read_prompt(prompt, subject))


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The Hague is the seat of", "The Hague"),
        ("Vincent van Gogh was born in", "Vincent van Gogh"),
        ("Vincent van Gogh was born in", "Gogh"),
        ("vincent van gogh was born in", "gogh"),
        ("The works of Ludwig van Beethoven", "Beethoven"),
        ("Leonardo da Vinci painted", "Leonardo da Vinci"),
        ("The capital of Côte d'Ivoire is", "Côte d'Ivoire"),
        ("Charles de Gaulle was born in", "Charles de Gaulle"),
        ("Das Boot was directed by", "Boot"),
        ("Le Monde is published in", "Monde"),
        ("Soldiers die in", "Soldiers"),
        ("Hänsel und Gretel premiered in", "Gretel"),
        ("Stendhal published Le Rouge et le Noir in", "Stendhal"),
        ("Heidegger published Sein und Zeit in", "Heidegger"),
        ("La Gazzetta dello Sport is published in", "Sport"),
        ("In German, und means", "German"),
    ],
)
def test_foreign_words_in_names_are_no_other_language(prompt, subject):
    check_english(read_prompt(prompt, subject))


def test_one_word_that_other_languages_share_tells_no_question():
    check_english(read_prompt("Hitler was", "Hitler"))
    with pytest.raises(FactError, match="is not in English"):
        check_english(read_prompt("Was malte Hitler damals?", "Hitler"))
