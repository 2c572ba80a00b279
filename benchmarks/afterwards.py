"""What is left of an edit in fewer bits or after some fine-tuning on the old answer, whatever method made it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

import peft_surgical as ps
from peft_surgical.measuring.metrics import Figure, rate, says_new, says_old
from peft_surgical.measuring.ratio import paired_ratio
from peft_surgical.measuring.relearning import relearned_state
from peft_surgical.measuring.rounding import rounded_state
from peft_surgical.measuring.states import State
from peft_surgical.running.generation import generate_answers

from .baselines.restoring import unwrap
from .broken import unless_broken


@dataclass(frozen=True)
class Afterwards:
    """What is done to the weights of every edit, each to the edit as it was made.

    Attributes:
        bits: They are rounded to so many bits, once for each number.
        relearn: They are fine-tuned on the old answer for so many steps, once for each number.
    """

    bits: tuple[int, ...] = ()
    relearn: tuple[int, ...] = ()

    def answers(self, model: Any, tokenizer: Any, fact: ps.Fact) -> dict[str, tuple[str, ...]]:
        """What the model then says to the held-out prompts.

        Args:
            model: Bare, or with adapters that act; it is left as it is.
            tokenizer: Its tokenizer.
            fact: The fact.
        """
        if not (self.bits or self.relearn):
            return {}
        plain = merged_copy(model)
        states: dict[str, State] = {rounded(bits): rounded_state(plain, [], bits) for bits in self.bits}
        for steps in self.relearn:
            states[relearned(steps)] = relearned_state(plain, tokenizer, fact, [], steps)
        nothing = [""] * len(fact.held_out)

        def ask(state: State) -> list[str]:
            # What is not finite may be met on entering, as relearning takes steps then.
            with state():
                return generate_answers(plain, tokenizer, fact.held_out)

        return {name: tuple(unless_broken(partial(ask, state), nothing)) for name, state in states.items()}

    def figures(
        self, fact: ps.Fact, said: Mapping[str, Sequence[str]], base: Mapping[str, Sequence[str]] | None
    ) -> dict[str, Figure]:
        """Rates over those answers, and how much of the old answer came back.

        Args:
            fact: The fact.
            said: What [`answers`] returned for an edit.
            base: The same for the base; None where `said` is the base's.
        """
        found: dict[str, Figure | None] = {}
        for name, answers in said.items():
            found[f"new_answer_rate {name}"] = rate([says_new(answer, fact) for answer in answers])
            old = [says_old(answer, fact) for answer in answers]
            found[f"old_answer_rate {name}"] = rate(old)
            if base is not None and name in map(relearned, self.relearn):
                recovery = paired_ratio(old, [says_old(answer, fact) for answer in base[name]])
                found[f"relearning_recovery {name}"] = recovery
        return {name: figure for name, figure in found.items() if figure is not None}


def rounded(bits: int) -> str:
    """The name of a state."""
    return f"in {bits} bits"


def relearned(steps: int) -> str:
    """The name of a state."""
    return f"relearned {steps} steps"


def merged_copy(model: Any) -> Any:
    """A copy of a model without adapters, those that act merged into its weights."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    unwrap(plain)
    # PEFT leaves it on the model that it puts an adapter on, and it says that there is one.
    vars(plain).pop("peft_config", None)
    return plain
