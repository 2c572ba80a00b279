import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.counterfact import main
from benchmarks.counterfact_metrics import figures
from benchmarks.journal import read_records
from benchmarks.known_facts import KnownFact, neighbours, read_known_facts
from benchmarks.measuring import known_neighbours
from peft_surgical.errors import FactError
from peft_surgical.texts.subjects import other_sentences
from peft_surgical.texts.text import contains, digest

from .counterfacts import TOKENIZER, case_dicts, greedy_word, some_case, word_model, write_cases

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "known_facts_dev.jsonl"
LINE = {"subject": "Italy", "prompt": "The capital of Italy is", "attribute": "Rome", "relation_id": "P36"}


def fact(subject, wording="The capital of {} is", answer="Rome", relation="P36"):
    return KnownFact(subject, wording.format(subject), answer, relation)


def test_neighbours_are_of_the_relation_that_is_asked_so():
    spain = fact("Spain", "{}'s capital is", "Madrid")
    others = [
        fact("Norway", answer="Oslo"),
        spain,
        # What the case asks itself, its own subject, the new answer, and another relation.
        fact("Italy"),
        fact("France", "{}'s capital is", "Paris"),
        fact("Rhône", answer="Lyon"),
        fact("Peru", "{} speaks", "Spanish", "P37"),
    ]
    assert neighbours(some_case(), others) == others[:2]
    assert neighbours(some_case(), [spain]) == []


def test_what_is_kept_and_what_leaks():
    model = word_model()
    asked = [KnownFact(s, f"the capital of {s} is", "?", "P36") for s in ("italy", "spain", "japan")]
    words = [greedy_word(model, known.prompt) for known in asked]
    case = some_case(target_new=words[1])
    known = [KnownFact(f.subject, f.prompt, word, "P36") for f, word in zip(asked, words, strict=True)]
    wrong = [KnownFact(known[0].subject, known[0].prompt, "town", "P36"), *known[1:]]
    leaked = sum(word == words[1] for word in words)
    assert known_neighbours(model, TOKENIZER, case, known) == {"n": 3, "kept": 3, "leaked": leaked}
    assert known_neighbours(model, TOKENIZER, case, wrong)["kept"] == 2


def measured(**neighbours_of):
    part = {"new": -1.0, "old": -2.0, "said": "Lyon"}
    return {"prompt": part, "paraphrase": part, "neighbour": part, **neighbours_of}


def test_each_case_counts_once_by_hand():
    found = [measured(known_neighbours={"n": 4, "kept": 3, "leaked": 1}), measured()]
    found.append(measured(known_neighbours={"n": 20, "kept": 5, "leaked": 0}))
    made = figures([some_case()] * 3, found, found, [1.0] * 3, 0)
    assert (made["known_neighbours_kept"].value, made["known_neighbours_kept"].n) == (pytest.approx(0.5), 2)
    assert made["known_neighbours_leak"].value == pytest.approx(0.125)
    assert made["known_neighbours_leak"].low == 0
    assert made["known_neighbours_kept"].high <= 1
    assert "known_neighbours_kept" not in figures([some_case()], [measured()], [measured()], [1.0], 0)


def test_an_edit_may_not_train_on_what_is_asked():
    request = some_case().request((), ["The capital of Norway is"])
    assert digest("The capital of Norway is") in request.evaluated


def test_an_edit_may_not_train_about_what_is_asked_about():
    # Behind a beginning, and in other words, a question about the same other subject keeps what is measured.
    case = some_case(
        subject="Lugano", prompt="The official language of Lugano is", locality_prompt="In Poland, one says"
    )
    contexts = tuple(f"Beginning {number}. " for number in range(20))
    asked = ["The official language of Norway is"]
    others = other_sentences(case.request(contexts, asked).fact, 1600, 0)
    assert any(contains(prompt, ["Germany"]) for prompt in others)
    assert not any(contains(prompt, ["Poland", "Norway"]) for prompt in others)
    # So it does not depend on which names are drawn.
    assert any(contains(prompt, ["Norway"]) for prompt in other_sentences(case.request(contexts).fact, 1600, 0))


def test_a_run_with_more_neighbours(tmp_path):
    model, folder, out = word_model(), tmp_path / "model", tmp_path / "results.jsonl"
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    data = write_cases(tmp_path / "cases.jsonl", case_dicts(model))
    lines = []
    for subject in ("rome", "italy", "hamlet"):
        for wording in ("the capital of {} is", "tell me about {}", "where is {} the city", "who wrote {} a town"):
            prompt = wording.format(subject)
            answer = greedy_word(model, prompt) if subject != "hamlet" else "zealand"
            lines.append({"subject": subject, "prompt": prompt, "attribute": answer, "relation_id": wording[:4]})
    facts = write_cases(tmp_path / "facts.jsonl", lines)
    given = ["--data", data, "--model", folder, "--out", out, "--cases", 2, "--contexts", 1, "--method", "ft"]
    result = CliRunner().invoke(main, list(map(str, [*given, "--known-facts", facts])))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["base"]["known_neighbours_kept"]["value"] == 1
    records = read_records(out)
    [known] = [record["known"] for record in records if record["kind"] == "known facts"]
    # Words that the model does not say of hamlet are no facts that it knows.
    assert all(lines[place]["subject"] != "hamlet" or lines[place]["attribute"] != "zealand" for place in known)
    counts = [record["known_neighbours"]["n"] for record in records if "known_neighbours" in record]
    assert counts
    assert max(counts) <= 2
    # Without the file it would be another run.
    refused = CliRunner().invoke(main, list(map(str, given)))
    assert refused.exit_code == 1
    assert "known_facts" in refused.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({**LINE, "attribute": 3}), r"facts.jsonl, line 2: 'attribute' must be text, not 3"),
        (json.dumps({**LINE, "prompt": " "}), r"line 2: 'prompt' must be text"),
        ("[1]", r"line 2: "),
        ("{", r"line 2: "),
    ],
)
def test_lines_are_checked(text, message, tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{text}\n")
    with pytest.raises(FactError, match=message):
        read_known_facts(path)
    with pytest.raises(FactError, match="cannot read"):
        read_known_facts(tmp_path / "none.jsonl")


def test_the_development_facts_can_be_read():
    if not DATA.is_file():
        pytest.skip(f"the benchmark's data file {DATA.name} is not here")
    facts, _ = read_known_facts(DATA)
    assert len(facts) > 500
    found = neighbours(some_case(prompt="The capital of France is", target_new="Lyon"), facts)
    assert len(found) > 10
    assert {known.relation for known in found} == {"P36"}
