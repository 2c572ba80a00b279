"""Whether an edited checkpoint is one of its base's model: what both compute, but for the weights, and what reads text
for both.

Base and edited are asked through one model and one tokenizer, so that only weights may differ. What differs else is
refused by name, or told where it makes no difference here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from ctypes import c_float
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
# Tokens that a vocabulary keeps free, for whoever trains the model on.
_RESERVED = re.compile(r"[<\[].*(?:unused|reserved|placeholder|extra|dummy|pad\d).*[>\]]", re.IGNORECASE)


def check_same_config(name: str, config: Any, base: Any, *, floating: bool = False) -> None:
    """Refuses an edited checkpoint that computes otherwise than the base, whatever its weights are.

    Args:
        name: What the checkpoint is called.
        config: Its configuration.
        base: That of the base.
        floating: Whether all its parameters are floats, as those of a GGUF file are once transformers has unpacked
            them; its configuration says that they are quantized even then.

    Raises:
        ModelError: If they are of different architectures or sizes, or it is quantized.
    """
    if config.model_type != base.model_type:
        raise ModelError(
            f"{name} is a {brief(config.model_type)} and the base a {brief(base.model_type)}; an edited checkpoint has"
            " other weights than its base, and nothing else."
        )
    quantized = getattr(config, "quantization_config", None)
    if quantized and not (floating and _is_gguf(quantized)):
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
        elif not _alike(theirs, ours):
            yield f"{above}{own}", theirs, ours


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same to a model: JSON knows no tuples, and GGUF no numbers of more than 32 bits."""
    if isinstance(one, float) and isinstance(other, float):
        return c_float(one).value == c_float(other).value
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


def _is_gguf(quantized: Any) -> bool:
    found = quantized if isinstance(quantized, Mapping) else vars(quantized)
    return bool(found.get("quant_method") == "gguf")


def check_same_tokenizer(name: str, tokenizer: Any, base: Any) -> None:
    """Refuses an edited checkpoint whose token ids mean something else than the base's.

    Args:
        name: What the checkpoint is called.
        tokenizer: Its tokenizer.
        base: That of the base, which both are asked through.

    Raises:
        ModelError: If a token has another id, an id stands for another token, or text is cut into other tokens.

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
    renamed = next(_renamed(ours, theirs, base), None)
    if renamed is not None:
        number, their, our = renamed
        raise ModelError(
            f"the id {number} is {brief(their)} to the tokenizer of {name} and {brief(our)} to the base's, so they do"
            " not read one another's text; give the base that the edit was made on."
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


def _renamed(ours: Mapping[str, int], theirs: Mapping[str, int], base: Any) -> Iterator[tuple[int, str, str]]:
    """The ids that are another token than the base's, less those of which no text of the base's is made."""
    added, gone = theirs.keys() - ours.keys(), ours.keys() - theirs.keys()
    if not added or not gone:
        return
    shared = {ours[token] for token in ours.keys() & theirs.keys()}
    known = {ours[token]: token for token in gone}
    held = getattr(base, "added_tokens_decoder", {})
    special = {*base.all_special_ids, *(number for number, token in held.items() if token.special)}
    for token in sorted(added, key=theirs.__getitem__):
        number = theirs[token]
        our = None if number in shared or number in special else known.get(number)
        if our is not None and not _RESERVED.fullmatch(our):
            yield number, token, our


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    # The text is only compared: that no model reads so long a one is no matter here.
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
