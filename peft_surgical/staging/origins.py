"""Whose answers are kept: what tells that those of an earlier stage are not this one's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..errors import FactError, ModelError
from ..facts import TrainingFact
from ..running.identity import content_hash, json_hash
from ..running.modes import base_model_of
from ..texts.lengths import text_config

# What a stage teaches decides nothing of what it keeps.
_TAUGHT = ("refusal", "answer")
# A few prompts tell one tokenizer from another, and one base's embeddings.
_READ = 4


@dataclass(frozen=True)
class Origin:
    """Hashes of what decides the answers to keep.

    Attributes:
        fact: Of each field of the fact but for the sentences that are taught, which decide nothing of it.
        tokenizer: Of the tokens of some of its prompts and the chat template. A template may render the day, too, so
            that what it renders is not read.
        shape: Of the base's kind and sizes.
        base: The data type of the base's embeddings and a hash of those of these tokens; None where they are not at
            hand as plain numbers. A stage that is merged leaves them as they are.
    """

    fact: tuple[tuple[str, str], ...]
    tokenizer: str
    shape: str
    base: tuple[str, str] | None


def origin_of(model: Any, tokenizer: Any, fact: TrainingFact) -> Origin:
    """What the answers come from that the base of `model` gives about a fact."""
    decides = tuple((f.name, json_hash(getattr(fact, f.name))) for f in fields(TrainingFact) if f.name not in _TAUGHT)
    told = [list(tokenizer(prompt)["input_ids"]) for prompt in fact.prompts[:_READ]]
    template = str(getattr(tokenizer, "chat_template", None))
    base = base_model_of(model)
    config = text_config(base.config)
    sizes = [getattr(config, name, None) for name in ("model_type", "hidden_size", "num_hidden_layers")]
    tokens = sorted({token for ids in told for token in ids})
    return Origin(decides, json_hash([told, template]), json_hash(sizes), _hash_of_embeddings(base, tokens))


def check_origin(given: Origin | None, own: Origin) -> None:
    """Refuses what was kept of something else, which would hold a model to answers that are not its own or that the
    fact changes.

    Args:
        given: Where it is from; None where nobody knows.
        own: Where it would have to be from.

    Raises:
        FactError: If that is another fact.
        ModelError: If that is another tokenizer, chat template or base.
    """
    if given is None:
        return
    another = "'retained' was worked out {}; leave it out, or give that of a stage of this {}."
    if differ := [name for (name, mine), (_, its) in zip(own.fact, given.fact, strict=True) if mine != its]:
        raise FactError(another.format(f"for a fact with other {' and '.join(map(_named, differ))}", "fact"))
    if given.tokenizer != own.tokenizer:
        raise ModelError(another.format("with another tokenizer or chat template", "one"))
    # The same base in another precision has other digits.
    comparable = given.base and own.base and given.base[0] == own.base[0]
    if given.shape != own.shape or (comparable and given.base != own.base):
        raise ModelError(another.format("on another base", "one"))


def _named(field: str) -> str:
    """A field as a fact file has it: what evaluation asks is no field of what training sees."""
    return {"evaluated": "questions to evaluate", "asked_about": "controls"}.get(field, repr(field))


def _hash_of_embeddings(base: Any, tokens: list[int]) -> tuple[str, str] | None:
    try:
        module = base.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    if isinstance(module, AuxiliaryTrainingWrapper):
        module = module.original_module
    weight: Any = getattr(module, "weight", None)
    # What is quantized, spread over processes or offloaded has weights of other kinds, or none.
    if type(weight) not in (Tensor, nn.Parameter) or weight.is_meta or not weight.is_floating_point():
        return None
    rows = weight.detach()[[token for token in tokens if token < len(weight)]]
    return str(rows.dtype), content_hash(rows.cpu()).hex()
