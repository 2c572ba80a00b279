"""Numbers that the documentation gives for defaults are the defaults."""

import re
from pathlib import Path

import pytest

from peft_surgical.keying.keyed import KeyedRecipe
from peft_surgical.keying.keyed_by_subject import KeyedSubjectRecipe
from peft_surgical.measuring import relearning
from peft_surgical.running.generation import MAX_NEW_TOKENS
from peft_surgical.stages import RECIPES
from peft_surgical.staging.by_subject import SubjectRecipe

DOCS = Path(__file__).resolve().parents[1] / "docs"
WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
UNLEARN, LEARN, KEYED = RECIPES["unlearn"], RECIPES["learn"], KeyedRecipe()
SUBJECT, KEYED_SUBJECT = SubjectRecipe(), KeyedSubjectRecipe()

# Of each `#` in the words of a page, what it stands for.
CLAIMS = [
    (
        "training.md",
        "unlearn` takes at most # steps, shorter ones after #; `learn` at most #, shorter ones after #.",
        (UNLEARN.steps, UNLEARN.hold, LEARN.steps, LEARN.hold),
    ),
    ("training.md", "a predicted divergence of # nats a token in that metric", (LEARN.step_kl,)),
    (
        "training.md",
        "Each step takes # of the fact's prompts, asked as written and as people type them, # retained prompts that"
        " are close to the fact and # others",
        (LEARN.fact_batch, LEARN.near_batch, LEARN.far_batch),
    ),
    (
        "training.md",
        "# everyday requests and # general questions of the package, less those",
        (LEARN.everyday, LEARN.general),
    ),
    ("training.md", "and those near the fact # times that", (LEARN.near_weight,)),
    ("training.md", "flat [below # nats a token]", (LEARN.margin,)),
    ("training.md", "# × the divergence from the base on the retained prompts", (LEARN.retain_weight,)),
    ("training.md", "# × the predicted divergence from the base", (LEARN.pull,)),
    (
        "training.md",
        "answer to every prompt is below # nats a token and the divergence below #.",
        (LEARN.target_loss, LEARN.target_kl),
    ),
    ("training.md", "everyday requests and # general questions, and, ten times", (SUBJECT.general,)),
    ("training.md", "and with # other names in its place", (SUBJECT.names,)),
    ("training.md", "natural gradient of the answer's loss in this metric, # long by it", (SUBJECT.length,)),
    ("training.md", "moves the subject by at most # of its residual", (KEYED_SUBJECT.length,)),
    ("training.md", "# texts of tokens drawn at random are among them", (KEYED_SUBJECT.drawn,)),
    (
        "training.md",
        "loss is flat only below # nats a token. Each of at most # steps takes # of the fact's prompts, # near and #"
        " other kept rows, the first # tokens",
        (KEYED.margin, KEYED.steps, KEYED.fact_batch, KEYED.near_batch, KEYED.far_batch, KEYED.retain_tokens),
    ),
    (
        "training.md",
        "told apart from all # everyday requests and # general questions that are kept; as neurons are shut at"
        " nearly all of them, what they write is held to # of those",
        (KEYED.everyday, KEYED.general, KEYED.held),
    ),
    (
        "how-to/publish-an-edit.md",
        "on # of the fact's *training* questions with the old answer (LoRA of rank # with Adam, learning rate #,",
        (relearning.PROMPTS, relearning.RANK, relearning.LEARNING_RATE),
    ),
    ("fact-file.md", "Answers are greedy, at most # tokens long", (MAX_NEW_TOKENS,)),
]


def numbers(page, words):
    """What stands in a page for each `#` of these words."""
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    found = re.search(re.escape(words).replace(r"\#", r"(\w+(?:[.-]\d+)?)"), text)
    assert found, f"{page} no longer says {words!r}"
    return tuple(WORDS.index(each) if each in WORDS else float(each) for each in found.groups())


@pytest.mark.parametrize(("page", "words", "expected"), CLAIMS)
def test_a_number_is_the_default(page, words, expected):
    assert numbers(page, words) == expected
