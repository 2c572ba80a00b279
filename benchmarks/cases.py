"""CounterFact cases in EasyEdit's layout: what an edit may see of one, and what only the evaluation reads."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_surgical.errors import FactError
from peft_surgical.texts.text import digest, run_digests

from .baselines.method import Request
from .json_lines import check_texts, read_lines

TEXTS = (
    "subject",
    "prompt",
    "ground_truth",
    "target_new",
    "rephrase_prompt",
    "locality_prompt",
    "locality_ground_truth",
)


@dataclass(frozen=True)
class Case:
    """One counterfactual.

    Attributes:
        case_id: Its number in CounterFact.
        subject: What the prompt is about, as it stands there.
        prompt: The beginning of a sentence that `old` completes.
        old: The true completion.
        new: The completion that an edit shall bring.
        paraphrase: The same asked otherwise; evaluation only.
        neighbour: The same asked of another subject; evaluation only.
        neighbour_answer: What completes `neighbour`.
    """

    case_id: int
    subject: str
    prompt: str
    old: str
    new: str
    paraphrase: str
    neighbour: str
    neighbour_answer: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """Reads one line of the file.

        Raises:
            FactError: If a key is missing, of the wrong type or empty, the prompt does not name the subject, or both
                completions are one.
        """
        number = data.get("case_id")
        if type(number) is not int:
            raise FactError(f"'case_id' must be a whole number, not {number!r}.")
        check_texts(data, TEXTS)
        if data["subject"] not in data["prompt"]:
            raise FactError(f"the prompt {data['prompt']!r} does not name the subject {data['subject']!r}.")
        if data["target_new"].strip() == data["ground_truth"].strip():
            raise FactError(f"'target_new' and 'ground_truth' are both {data['ground_truth']!r}; give two answers.")
        return cls(number, *(data[key].strip() for key in TEXTS))

    def request(self, contexts: tuple[str, ...], asked: Sequence[str] = ()) -> Request:
        """What an edit may see.

        Args:
            contexts: Beginnings that it may put before the prompt.
            asked: What the evaluation asks beside the case's own prompts.
        """
        evaluated = frozenset(map(digest, (self.paraphrase, self.neighbour, *asked)))
        # Behind a beginning the same question has another digest, and asked in other words, too.
        about = frozenset(run for prompt in (self.neighbour, *asked) for run in run_digests(prompt))
        return Request(self.subject, self.prompt, self.old, self.new, contexts, evaluated, about)


def read_cases(path: str | os.PathLike[str], seed: int) -> tuple[list[Case], str]:
    """All cases of a file of JSON lines, shuffled, and the file's SHA-256.

    Raises:
        FactError: If the file cannot be read or holds none, a line is no case, or a case stands there twice; names the
            line.
    """
    lines, sha256 = read_lines(path, Case.from_dict)
    if not lines:
        raise FactError(f"{path} holds no case.")
    cases: dict[int, Case] = {}
    for number, case in lines:
        if case.case_id in cases:
            raise FactError(f"{path}, line {number}: the case {case.case_id} stands there twice.")
        cases[case.case_id] = case
    shuffled = list(cases.values())
    random.Random(seed).shuffle(shuffled)
    return shuffled, sha256
