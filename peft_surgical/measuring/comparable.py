"""Whether an edited checkpoint is one of its base's model: what both compute, but for the weights, and what reads text
for both.

Base and edited are asked through one model and one tokenizer, so that only weights may differ. What differs else is
refused by name, or told where it makes no difference here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ModelError, brief
from ..texts.tables import read_data

# What says where a model came from, how it trains, what it gives beside logits, and which tokens begin or end a text,
# of which the base's hold for both.
_SAYS_NOTHING = {
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
# Nothing is dropped where a model answers.
_TRAINS_ONLY = ("dropout", "pdrop", "router_aux_loss_coef", "output_router_logits")
_NAMED = 3
# Characters of running text, which two tokenizers that merge alike cut alike.
_TEXT = 20_000


def check_same_config(name: str, config: Any, base: Any) -> None:
    """Refuses an edited checkpoint that computes otherwise than the base, whatever its weights are.

    Args:
        name: What the checkpoint is called.
        config: Its configuration.
        base: That of the base.

    Raises:
        ModelError: If they are of different architectures or sizes, or it is quantized.
    """
    if config.model_type != base.model_type:
        raise ModelError(
            f"{name} is a {brief(config.model_type)} and the base a {brief(base.model_type)}; an edited checkpoint has"
            " other weights than its base, and nothing else."
        )
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{name} is quantized; give it in bfloat16, float16 or float32, as the base is.")
    found = list(_differences(config.to_dict(), base.to_dict()))
    if found:
        told = "; ".join(
            f"{key} is {brief(theirs)} there and {brief(ours)} in the base" for key, theirs, ours in found[:_NAMED]
        )
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise ModelError(f"{name} is no edit of the base, whose weights alone would differ: {told}{more}.")


def _differences(
    config: Mapping[str, Any], base: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """What both configurations say and say otherwise; programs write keys of their own into some."""
    for key in sorted(config.keys() & base.keys(), key=str):
        own = str(key)
        if own.startswith("_") or own in _SAYS_NOTHING or own.endswith(_TRAINS_ONLY):
            continue
        theirs, ours = config[key], base[key]
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
            yield from _differences(theirs, ours, f"{above}{own}.")
        elif _plain(theirs) != _plain(ours):
            yield f"{above}{own}", theirs, ours


def _plain(value: Any) -> Any:
    """A value as JSON has it, which knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def check_same_tokenizer(name: str, tokenizer: Any, base: Any) -> None:
    """Refuses an edited checkpoint whose token ids mean something else than the base's.

    Args:
        name: What the checkpoint is called.
        tokenizer: Its tokenizer.
        base: That of the base, which both are asked through.

    Raises:
        ModelError: If a token has another id, or text is cut into other tokens.

    Warns:
        UserWarning: Of what else differs: the chat template, what is put around a text, tokens that only one has.
    """
    ours, theirs = base.get_vocab(), tokenizer.get_vocab()
    moved = next((token for token, number in theirs.items() if ours.get(token, number) != number), None)
    if moved is not None:
        raise ModelError(
            f"the tokenizer of {name} gives {brief(moved)} the id {theirs[moved]} and the base's {ours[moved]}, so"
            " they do not read one another's text; give the base that the edit was made on."
        )
    text = read_data("retention.txt")[:_TEXT]
    if _ids(tokenizer, text, False) != _ids(base, text, False):
        raise ModelError(
            f"the tokenizer of {name} cuts text into other tokens than the base's; give the base that the edit was"
            " made on."
        )
    others = {
        "its chat template": getattr(tokenizer, "chat_template", None) != getattr(base, "chat_template", None),
        "what it puts around a text": _ids(tokenizer, "a", True) != _ids(base, "a", True),
        "which tokens there are": ours.keys() != theirs.keys(),
    }
    if any(others.values()):
        told = " and ".join(what for what, differs in others.items() if differs)
        warnings.warn(
            f"the tokenizer of {name} differs from the base's in {told}; base and edited are both asked through the"
            " base's.",
            stacklevel=4,
        )


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])
