"""Facts from files: what is read, and what is refused with the line where it is wrong."""

import json

import pytest
import yaml

from peft_surgical.errors import FactError
from peft_surgical.facts import Control, Fact
from peft_surgical.texts.fact_files import MAX_BYTES

from .test_facts import data


def written(tmp_path, text, name="fact.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


YAML = """
subject: PyTorch
old: [Meta AI, No]
new: [1066]
prompts: [Who developed PyTorch?, "Who, then, made PyTorch?", Why is it PyTorch: a name?]
held_out:
  - Who is behind PyTorch?
controls:
  - {prompt: Who developed Linux?, answer: Linus Torvalds}
"""


def test_unquoted_questions_in_flow_style(tmp_path):
    pytest.importorskip("yaml._yaml", reason="this PyYAML has no libyaml")
    fact = Fact.from_file(written(tmp_path, YAML.replace("PyTorch: a", "PyTorch, a")))
    assert fact.prompts == ("Who developed PyTorch?", "Who, then, made PyTorch?", "Why is it PyTorch", "a name?")
    assert fact.controls == (Control("Who developed Linux?", ("Linus Torvalds",)),)
    assert (fact.old, fact.new) == (("Meta AI", "No"), ("1066",))
    assert fact.source.endswith("fact.yaml")


@pytest.mark.parametrize("dump", [json.dumps, lambda value: json.dumps(value, indent="\t", ensure_ascii=False)])
def test_json_is_read_too(tmp_path, dump):
    given = data(subject="🍎 juice", new=[1066], prompts=["Who made 🍎 juice?"])
    fact = Fact.from_file(written(tmp_path, dump(given), "fact.json"))
    assert fact == Fact.from_dict(given)
    assert fact.subject == "🍎 juice"


@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps])
def test_a_byte_order_mark_is_no_text(tmp_path, dump):
    given = data(subject="🍎 juice", prompts=["Who made 🍎 juice?"])
    assert Fact.from_file(written(tmp_path, b"\xef\xbb\xbf" + dump(given).encode())) == Fact.from_dict(given)


def test_numbers_of_json_stay_as_they_are_written(tmp_path):
    text = json.dumps(data(old=["x"], new=["y"])).replace('["x"]', "[NaN, -Infinity]").replace('["y"]', "[1.50, 1e3]")
    fact = Fact.from_file(written(tmp_path, text))
    assert (fact.old, fact.new) == (("NaN", "-Infinity"), ("1.50", "1e3"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "a fact is a mapping of keys to values, not nothing"),
        ("- a", "a fact is a mapping of keys to values, not list"),
        ("subject: [a", "is not valid YAML in line 2: while parsing a flow sequence, did not find"),
        ("a: b\na: c", "is not valid YAML in line 2: the key 'a' stands twice"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("{a: 1, a: 2}", "the key 'a' stands twice"),
        ("[a]: b", "is not valid YAML in line 1"),
        ("a: b\n---\nc: d", "another document"),
        ("a: \x07", "control characters are not allowed"),
        (b"a: \xff", "is not UTF-8 text"),
        ("a: " + "[" * 20 + "]" * 20, "nested more than 20 levels deep in line 1; a fact needs three"),
        ("a: " + "[" * 100, "nested more than 20 levels deep in line 1"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "nested more than 20 levels"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested more than 20 levels"),
        ("a: &x [1]\nb: *x", r"line 2 refers to \*x"),
        ("old: [x]\nnew: [&Sons Ltd]", r"line 2 has a text that begins with &Sons; quote it\.$"),
        ("new: [&pizza]", r"line 1 has a text that begins with &pizza; quote it\.$"),
        ("old: [*Paris]", r"line 1 refers to \*Paris; write the text out, or quote it if it begins with \*"),
        ("old: [*Paris*]", "in line 1: while scanning an alias"),
        (
            "a:\n- é, who wore #23 then?",
            r"line 2 has a # behind a space, .*; quote the text, or put a space behind the #",
        ),
        ("a:\n- [one, two  #2\n]", "line 2 has a # behind a space"),
        ("a: !!python/object:os.system x", "line 1 has the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: !!timestamp soon", "has the tag"),
        ("a: !!binary x", "has the tag"),
        ("a:\n\t- b", "is not valid YAML in line 2"),
        (b"a: " + b"x" * MAX_BYTES, "10,000,000 bytes at most"),
    ],
)
def test_files_that_are_refused(tmp_path, text, match):
    path = written(tmp_path, text)
    with pytest.raises(FactError, match=match) as caught:
        Fact.from_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "a: b # c",
        "a: b #c",
        "a: #c",
        "a:\n- #c\n- b",
        "a: C#",
        "a: 'b #2'",
        "# a\n#b\na: b\n#c",
        "a: b\n  #c\nd: e",
        "a: >\n  b #2\n",
        "a:\n- 'b' #2",
        # As deep as a file may be.
        "a: " + "[" * 19 + "]" * 19,
    ],
)
def test_what_is_a_comment_or_none_without_doubt_is_read(tmp_path, text):
    with pytest.raises(FactError, match=r"unknown key 'a'"):
        Fact.from_file(written(tmp_path, text))


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(FactError, match=r"nowhere.yaml: cannot be read \(No such file or directory\)\."):
        Fact.from_file(tmp_path / "nowhere.yaml")
    with pytest.raises(FactError, match=r"cannot be read \(Is a directory\)\."):
        Fact.from_file(tmp_path)
    with pytest.raises(FactError, match="cannot be the name of a file"):
        Fact.from_file("a\0b")
    with pytest.raises(FactError, match="10,000,000 bytes at most"):
        Fact.from_file("/dev/zero")
