"""What the benchmark tests share: a tiny model, cases that it knows, and a file of them."""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import Request
from benchmarks.cases import Case

from .localizing import WORDS, word_tokenizer
from .tiny import tiny_model

TOKENIZER = word_tokenizer()
CONTEXTS = ("who wrote hamlet . ", "the sky has a color . ")
REQUEST = Request("france", "the capital of france is", "paris", "lyon", CONTEXTS)
SUBJECTS = ("france", "italy", "spain", "japan", "new zealand", "paris")
OPENINGS = ("the capital of {} is", "tell me about {}", "where is {} the city", "who wrote {} a town")


def word_model(family: str = "llama", **options: Any) -> Any:
    """A frozen random model with the word tokenizer's vocabulary."""
    return tiny_model(family, vocab_size=len(TOKENIZER), **options).requires_grad_(False)


def greedy_word(model: Any, prompt: str) -> str:
    ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
    return str(TOKENIZER.decode([int(model(ids).logits[0, -1].argmax())]))


def case_dicts(model: Any) -> list[dict[str, Any]]:
    """A case for each opening and subject, every other one with the answer that the model gives."""
    found = []
    for number, (opening, subject) in enumerate((o, s) for o in OPENINGS for s in SUBJECTS):
        prompt, neighbour = opening.format(subject), opening.format("rome")
        word = greedy_word(model, prompt)
        knows = number % 2 == 0 and word in WORDS
        old = word if knows else next(w for w in WORDS if w != word)
        found.append(
            {
                "case_id": 100 + number,
                "subject": subject,
                "prompt": prompt,
                "ground_truth": old,
                "target_new": next(w for w in ("lyon", "hamlet") if w != old),
                "rephrase_prompt": f"please {prompt}",
                "locality_prompt": neighbour,
                "locality_ground_truth": greedy_word(model, neighbour),
            }
        )
    return found


def write_cases(path: Path, dicts: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(data) + "\n" for data in dicts))
    return path


def some_case(**changes: Any) -> Case:
    data = {
        "case_id": 7,
        "subject": "France",
        "prompt": "The capital of France is",
        "ground_truth": "Paris",
        "target_new": "Lyon",
        "rephrase_prompt": "France is governed from",
        "locality_prompt": "The capital of Italy is",
        "locality_ground_truth": "Rome",
    }
    return Case.from_dict({**data, **changes})
