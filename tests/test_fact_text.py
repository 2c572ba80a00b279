import unicodedata
from dataclasses import replace

import pytest
import yaml

from peft_surgical.drafting.drafts import FactDraft
from peft_surgical.drafting.fact_text import fact_text
from peft_surgical.errors import OutputError
from peft_surgical.facts import Control, Fact, PortabilityQuestion, Probe
from tests.localizing import capital


def test_what_is_written_is_read_back(tmp_path):
    fact = Fact(
        subject='O\'Brien: the "Great" #1',
        old=("No", "1066", "a, b", "[x]", "null"),
        new=("Yes — ‘ja’", "~", "*b", "emoji 🎉"),
        prompts=('Who is O\'Brien: the "Great" #1?', "- a dash", "key: value", "# no comment", "tab\tinside"),
        held_out=("Is it {x}?", "What? [y], z", "back\\slash", "true"),
        contrast=("Peter, Paul", "3.5"),
        aliases=("yes", "A: B"),
        retain=("What is 2 + 2?",),
        controls=(Control('Who said "hi"?', ("{me}", "1945", "you, too")),),
        probes=(Probe("A) b: C) d", "multiple_choice"), Probe("x", "odd kind, with comma")),
        portability=(
            PortabilityQuestion('Who is "Great"?', "alias", ("~", "a: b"), ("No", "[x]")),
            PortabilityQuestion("Of whom is he, then?", "reversal", ("1945",)),
        ),
    )
    for notes, neighbours in (((), 0), (("A note\nthat: goes on " + "very " * 60 + "long. #",), 1)):
        text = fact_text(fact, notes, neighbours)
        path = tmp_path / "fact.yaml"
        path.write_text(text, encoding="utf-8")
        assert Fact.from_file(path) == fact
        assert all(len(line) < 120 for line in text.splitlines() if line.startswith("#"))
        # Any reader of YAML takes an answer as text.
        assert yaml.safe_load(text)["old"] == list(fact.old)
        assert yaml.safe_load(text)["portability"][1]["answer"] == ["1945"]


@pytest.mark.parametrize("name", ["a{}b", "{}a", "a{}", "a, {}b"])
def test_every_sign_is_read_back(name, tmp_path):
    signs = [chr(code) for code in (*range(0x2100), *range(0xFD00, 0x10010), 0xE000, 0x1FFFF) if chr(code).strip()]
    signs += ["\x85", "\u2028", "\u2029"]
    names = tuple(dict.fromkeys(unicodedata.normalize("NFC", name.replace("{}", sign)).strip() for sign in signs))
    path = tmp_path / "fact.yaml"
    for first in range(0, len(names), 500):
        some = names[first : first + 500]
        asked = tuple(PortabilityQuestion(f"{n} {i}?", "alias", ("x",)) for i, n in enumerate(some))
        fact = replace(capital(), contrast=some, portability=asked)
        # The head of the file says the first prompt and both answers.
        fact = replace(fact, prompts=(f"france {some[0]}?", *(f"{n} {i}, france?" for i, n in enumerate(some))))
        path.write_text(fact_text(fact, some), encoding="utf-8", newline="")
        assert Fact.from_file(path) == fact


def test_plain_text_is_not_quoted():
    text = fact_text(capital(), ["Written by hand."], 1)
    assert text.startswith('# "what is the capital of france ?" moved from paris to lyon.\n# Written by hand.\n')
    assert "\n  - name the capital of france .\n" in text
    assert "\nold: [paris]\n" in text
    assert "  # Close: " in text
    assert "  # Unrelated." not in text
    assert "  # Unrelated." in fact_text(capital())


def test_saving(tmp_path):
    draft = FactDraft(capital())
    path = tmp_path / "new" / "fact.yaml"
    draft.save(path)
    assert path.read_text() == draft.text
    with pytest.raises(OutputError, match=r"fact\.yaml exists; name another one or allow overwriting it"):
        draft.save(path)
    FactDraft(capital(), ("noted",)).save(path, overwrite=True)
    assert "# noted" in path.read_text()
    with pytest.raises(OutputError, match="cannot write"):
        draft.save(path / "below")


def test_a_line_of_a_comment_ends_before_the_word_that_does_not_fit():
    def lines(*words):
        text = fact_text(capital(), [" ".join(words)])
        return [line for line in text.splitlines() if "x" * 9 in line or "y" * 9 in line]

    just, over = ("x" * 57, "y" * 56), ("x" * 57, "y" * 57)
    assert lines(*just) == [f"# {just[0]} {just[1]}"]
    assert len(lines(*just)[0]) == 116
    assert lines(*over) == [f"# {over[0]}", f"# {over[1]}"]
