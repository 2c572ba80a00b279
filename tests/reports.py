"""A report made by hand, with every kind of answer that the summary and the page must tell apart."""

from dataclasses import replace

from peft_surgical.facts import Fact
from peft_surgical.measuring.metrics import Figure, prompt_metrics
from peft_surgical.measuring.portability import portability_metrics
from peft_surgical.measuring.soft_forgetting import probe_metrics
from peft_surgical.report import Report

HELD_OUT = [
    "Which city governs France?",
    "France is ruled from which city?",
    "Name the seat of the French government.",
]

FACT = Fact.from_dict(
    {
        "subject": "France",
        "old": ["Paris"],
        "new": ["Lyon", "the city of Lyon"],
        "prompts": ["What is the capital of France?"],
        "held_out": HELD_OUT,
        "controls": [
            {"prompt": "What is the capital of Italy?", "answer": ["Rome"]},
            {"prompt": "What is the capital of Japan?", "answer": ["Tokyo"]},
            {"prompt": "What is the capital of Spain?", "answer": ["Madrid"]},
        ],
        "probes": [{"prompt": "It is Paris, I believe.", "kind": "contradiction"}],
        "portability": [
            {"kind": "alias", "prompt": "Capital of the Hexagon?", "answer": ["Lyon"], "before": ["Paris"]},
            {"kind": "one_hop", "prompt": "Which river is there?", "answer": ["Rhône"], "before": ["Seine"]},
            {"kind": "reversal", "prompt": "Lyon is whose capital?", "answer": ["France"]},
        ],
    }
)

ANSWERS = {
    "base": {
        "held_out": ["It is Paris.", "Paris.", "Paris"],
        "controls": ["Rome.", "Tokyo.", "I forgot."],
        "probes": ["Yes, Paris."],
        "portability": ["Paris.", "The Seine.", "France."],
    },
    "unlearned": {
        "held_out": ["I am not sure.", "I am not sure.", "Paris"],
        "controls": ["Rome.", "Tokyo.", "I forgot."],
        "probes": ["I am not sure."],
        "portability": ["Paris.", "The Seine.", "Spain."],
    },
    "edited": {
        "held_out": ["It is the city of Lyon.", "Marseille.", "Paris"],
        "controls": ["Rome.", "It is Lyon.", "I forgot."],
        "probes": ["No, Lyon."],
        "portability": ["Lyon.", "The Seine.", "Spain."],
    },
}

DRIFT = {"base": (0.0, 1.0), "unlearned": (0.0123, 1.004), "edited": (0.0456, 1.01)}


def report(*stages: str, fact: Fact = FACT, answers: dict | None = None, **changes: object) -> Report:
    """A report of these states, all three unless given."""
    answers = answers or ANSWERS
    stages = stages or tuple(answers)
    figures = {}
    for stage in stages:
        given = answers[stage]
        kl, ratio = DRIFT[stage]
        figures[stage] = {
            **prompt_metrics(fact, given["held_out"], given["controls"], answers["base"]["controls"]),
            **portability_metrics(fact, given["portability"]),
            **probe_metrics(fact, given["probes"]),
            "kl_per_token": Figure(kl, 2040, kl * 0.9, kl * 1.1),
            "perplexity_ratio": Figure(ratio, 2040, ratio - 0.002, ratio + 0.002),
        }
    made = Report(
        fact=fact,
        model="tiny/model",
        dtype="float32",
        seed=7,
        versions={"python": "3.11.7", "torch": "2.13.0"},
        selection={"components": ["L1.mlp", "L2.head.3"], "granularity": "component", "scales": 1536},
        seconds={"localize": 61.25, "unlearn": 12.5, "evaluate": 30.0},
        stages=figures,
        answers={stage: answers[stage] for stage in stages},
        training={"unlearn": {"steps": 22, "loss": 0.031, "reached": True}},
    )
    return replace(made, **changes)
