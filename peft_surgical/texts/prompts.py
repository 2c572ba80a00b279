"""From prompts and answers to token ids: the one place that knows chat templates, and which token *is* the answer.

A prompt and its answer are tokenized together, and apart where a chat model's answer would take the end of its prompt
into its own first token, so that the boundary between them has the tokens the model meets when it answers. The
answer's token is the first one that tells the old answer from the new one in that context; a bare white-space token (a
sentencepiece `▁`) tells nothing and is refused.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FactError, FactWarning, ModelError, brief
from ..facts import TrainingFact
from .text import goes_on_unspaced, occurrences_outside, replace_first, same_text_key, swap_subject

_MARKER = "@@answer@@"


@dataclass(frozen=True)
class EncodedAnswer:
    """A prompt with an answer.

    Attributes:
        ids: Token ids of the rendered prompt, the answer and the end of the turn.
        answer_start: Index in `ids` of the answer's first token; it is predicted from position `answer_start - 1`.
    """

    ids: tuple[int, ...]
    answer_start: int

    @property
    def read(self) -> tuple[int, ...]:
        """What a model has to read to predict the answer: all ids but the last, which nothing follows."""
        return self.ids[:-1]


def span(row: EncodedAnswer) -> tuple[int, int]:
    """The half-open range of positions whose logits predict an answer's tokens."""
    return row.answer_start - 1, len(row.ids) - 1


def answer_ids(row: EncodedAnswer) -> tuple[int, ...]:
    """Token ids of an answer and, where it is taught, of the end of the turn."""
    return row.ids[row.answer_start :]


def answer_count(rows: Iterable[EncodedAnswer]) -> int:
    """How many such tokens some rows have together, which is as many as there are positions to read."""
    return sum(len(answer_ids(row)) for row in rows)


def unanswered(ids: Sequence[int]) -> EncodedAnswer:
    """A text with no answer behind it."""
    return EncodedAnswer(tuple(ids), len(ids))


@dataclass(frozen=True)
class AnswerTokens:
    """Where a model decides between the old and the new answer.

    Attributes:
        ids: Context token ids; the logits after the last of them decide.
        old: The token id that leads to the old answer.
        new: The token id that leads to the new answer.
    """

    ids: tuple[int, ...]
    old: int
    new: int


def has_chat_template(tokenizer: Any) -> bool:
    """Whether prompts are rendered as a chat turn rather than continued as plain text."""
    return bool(getattr(tokenizer, "chat_template", None))


def without_template(tokenizer: Any) -> Any:
    """A copy of a tokenizer that makes plain text of prompts, to be gone on with and not answered.

    Raises:
        ModelError: If it is no tokenizer.
    """
    _check_tokenizer(tokenizer)
    plain = copy.copy(tokenizer)
    plain.chat_template = None
    return plain


def render(tokenizer: Any, prompt: str) -> str:
    """The text that the model continues with its answer: one user turn of the chat template, or the prompt itself.

    Raises:
        ModelError: If the template fails, or leaves the prompt out.
    """
    if not has_chat_template(tokenizer):
        return prompt
    text = _render_turn(tokenizer, prompt)
    # A template may write a prompt otherwise, in capitals, say; one that makes the same of another does not hold it.
    if text and prompt.strip() not in text and text == _render_turn(tokenizer, f"{prompt} {_MARKER}"):
        raise ModelError(
            "the tokenizer's chat template leaves the question out, as those of models do that also see pictures and"
            " take a message in parts; give a template whose messages are text."
        )
    return text


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of [`render`]; special tokens of the template stand once, those of a plain tokenizer are added.

    Raises:
        FactError: If there are none, so that the model had nothing to go on from.
    """
    ids = _tokenize(tokenizer, render(tokenizer, prompt))
    if not ids:
        raise FactError(f"as this tokenizer renders it, the prompt {brief(prompt)} gives no token to go on from.")
    return ids


def token_offsets(tokenizer: Any, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Where in a rendered text each of its tokens begins and ends; none where the tokenizer does not tell."""
    if not getattr(tokenizer, "is_fast", False):
        return []
    special = not has_chat_template(tokenizer)
    told = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    same = [*told["input_ids"][: len(ids)]] == [*ids]
    return list(told.get("offset_mapping", ()))[: len(ids)] if same else []


def bare_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text alone, without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_answer(tokenizer: Any, prompt: str, answer: str) -> EncodedAnswer:
    """Tokenizes a prompt, its answer and the end of the turn, as the model meets them when it answers.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        prompt: The question, or the beginning of a sentence.
        answer: What the model shall say.

    Returns:
        The ids, and where the answer begins.

    Raises:
        FactError: If no token of the prompt comes before the answer, so that nothing would predict its first token.
        ModelError: If the chat template fails, or leaves the prompt out, or neither it nor the tokenizer has a token
            that ends an answer.
    """
    row = encode_open(tokenizer, prompt, answer)
    return EncodedAnswer((*row.ids, end_of_turn(tokenizer)), row.answer_start)


def encode_target(tokenizer: Any, prompt: str, answer: str) -> EncodedAnswer:
    """As [`encode_answer`], without an end where prompts are continued as plain text: a sentence may go on."""
    encoded = encode_answer if has_chat_template(tokenizer) else encode_open
    return encoded(tokenizer, prompt, answer)


def end_of_turn(tokenizer: Any) -> int:
    """The token id that ends an answer: what the chat template puts after one, else the end-of-sequence token.

    Raises:
        ModelError: If there is neither.
    """
    end = _find_end(tokenizer)
    if end is None:
        raise ModelError("the tokenizer has no end-of-sequence token, so an answer could not be taught to end.")
    return end


def stops(tokenizer: Any) -> list[int]:
    """The token ids at which an answer is over; none where the tokenizer has no end, so that answers are cut."""
    return sorted({_find_end(tokenizer), tokenizer.eos_token_id} - {None})


def special_tokens(tokenizer: Any) -> set[int]:
    """The token ids that stand for no text."""
    return set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))


def _find_end(tokenizer: Any) -> int | None:
    if has_chat_template(tokenizer):
        _, found, tail = _render_turn(tokenizer, "?", _MARKER).rpartition(_MARKER)
        special = special_tokens(tokenizer)
        for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if found else ():
            if token in special and tokenizer.decode([token]).strip():
                return int(token)
    return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def answer_tokens(tokenizer: Any, prompt: str, fact: TrainingFact, subject: str | None = None) -> AnswerTokens:
    """Finds the first token at which the old and the new answer part.

    The answers compared are `fact.answer` and the same sentence with the old answer in it, so that the decision is
    read where the model makes it ("The capital of France is" …), not where no answer of that form has begun.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        prompt: The question.
        fact: Gives both answers.
        subject: Put in the place of `fact.subject`, in prompt and answer alike: the corrupted run of patching.

    Returns:
        The context and the two tokens.

    Raises:
        FactError: If no token distinguishes the answers, or one begins with a token that is only white space; as for
            [`old_sentence`].
    """
    new_answer, old_answer = fact.answer, old_sentence(fact)
    if subject is not None:
        prompt, new_answer, old_answer = (
            swap_subject(text, fact.subject, subject) for text in (prompt, new_answer, old_answer)
        )
    end, text = _find_end(tokenizer), render(tokenizer, prompt)
    old, new = (
        [*_answered(tokenizer, text, answer)[0], *([] if end is None else [end])]
        for answer in (old_answer, new_answer)
    )
    shared = common_prefix(old, new)
    if shared == len(old) or shared == len(new):
        raise FactError(
            f"no token distinguishes the old answer {brief(fact.old[0])} from the new answer {brief(fact.new[0])} "
            f"after {brief(prompt)}; give answers that this tokenizer tells apart."
        )
    for answer, token in ((fact.old[0], old[shared]), (fact.new[0], new[shared])):
        if token == end:
            continue
        if not tokenizer.decode([token]).strip():
            raise FactError(
                f"the answer {brief(answer)} begins with the white-space token {token} after {brief(prompt)}, which "
                "distinguishes nothing; give an answer that this tokenizer begins with a letter."
            )
        if token == tokenizer.unk_token_id:
            raise FactError(
                f"the answer {brief(answer)} begins with a token that is not in this tokenizer's vocabulary."
            )
    if shared == 0:
        raise FactError(f"the prompt {brief(prompt)} gives no token before the answers; give a longer prompt.")
    return AnswerTokens(tuple(old[:shared]), old[shared], new[shared])


def knows(tokenizer: Any, ids: Collection[int]) -> bool:
    """Whether none of these token ids is the one that a tokenizer has for anything unknown."""
    unknown = tokenizer.unk_token_id
    # Tokenizers of bytes know all, and may have given the token that ends a text the name of unknown, too.
    return unknown is None or unknown not in ids or unknown in stops(tokenizer)


def check_spelled(tokenizer: Any, text: str, ids: Collection[int], what: str) -> None:
    """Refuses what a tokenizer has a token for only as it has for anything unknown.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        text: What is spelled.
        ids: Its token ids, or those that matter; ends of a turn count as none.
        what: What it is, to name it by.

    Raises:
        FactError: If there is one.
    """
    if not knows(tokenizer, ids):
        raise FactError(f"{what} {brief(text)} has a token that is not in this tokenizer's vocabulary.")


def check_answer_spelled(tokenizer: Any, fact: TrainingFact) -> None:
    """As [`check_spelled`], the new answer as the fact's answer spells it; what else that says may be unknown.

    Raises:
        FactError: If the tokenizer does not know a token of it.
    """
    found = (span for name in fact.new for span in occurrences_outside(fact.answer, name, ()))
    for name in [fact.answer[start:stop] for start, stop in found] or [fact.answer]:
        check_spelled(tokenizer, name, bare_ids(tokenizer, name), "the answer")


def old_sentence(fact: TrainingFact) -> str:
    """`fact.answer` with the new answer, where it first stands, replaced by the canonical old one.

    Raises:
        FactError: If the answer holds the new one only as other signs for the same letters, inside of more words.
    """
    sentence = replace_first(fact.answer, fact.new, fact.old[0], besides=fact.names)
    if sentence is not None:
        return sentence
    if same_text_key(fact.answer) in map(same_text_key, fact.new):
        return fact.old[0] + "."
    raise FactError(
        f"'answer' {brief(fact.answer)} spells the new answer {brief(fact.new[0])} with other signs than 'new' does; "
        "spell it alike in both."
    )


def encode_open(tokenizer: Any, prompt: str, answer: str, between: str | None = None) -> EncodedAnswer:
    """A prompt and its answer, which may go on; `between` stands before it, what usually does if that is None."""
    ids, start = _answered(tokenizer, render(tokenizer, prompt), answer, between)
    if start == 0:
        raise FactError(
            f"the prompt {brief(prompt)} gives no token before the answer {brief(answer)}; give a longer prompt."
        )
    return EncodedAnswer(tuple(ids), start)


def _answered(tokenizer: Any, text: str, answer: str, between: str | None = None) -> tuple[list[int], int]:
    """Token ids of a rendered prompt and its answer, and where the answer's begin."""
    asked, between = _tokenize(tokenizer, text), _between(tokenizer, text) if between is None else between
    if text.rstrip().endswith("<think>") and has_chat_template(tokenizer) and not between:
        # By default, at this one place, Python says it once.
        warnings.warn(
            "the chat template opens <think> and closes it in no answer, so answers are taught and read inside of"
            " thoughts that do not end.",
            FactWarning,
            stacklevel=1,
        )
    ids = _tokenize(tokenizer, text + between + answer)
    start = common_prefix(asked, ids)
    if start < len(asked) and has_chat_template(tokenizer) and not between:
        # A space at the prompt's end, say, would be one token with the first word, and a model that is asked has read
        # that space by itself. Alone the answer may get a space before it, and behind these it gets none.
        for head in ("", "x\n", "("):
            lead, both = _tokenize(tokenizer, head), _tokenize(tokenizer, head + answer)
            row = [*asked, *both[len(lead) :]]
            if both[: len(lead)] == lead and tokenizer.decode(row) == tokenizer.decode(ids):
                return row, len(asked)
    return ids, start


def _between(tokenizer: Any, text: str) -> str:
    if has_chat_template(tokenizer):
        return _gap(tokenizer)
    return "" if not text or text[-1].isspace() or goes_on_unspaced(text) else " "


def _gap(tokenizer: Any) -> str:
    """What the chat template itself puts before an answer: a space ("[/INST] Yes"), or the end of its thoughts."""
    turn, head = _render_turn(tokenizer, "?", _MARKER), _render_turn(tokenizer, "?")
    between, found, _ = turn[len(head) :].partition(_MARKER) if turn.startswith(head) else ("", "", "")
    return between if found else ""


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    _check_tokenizer(tokenizer)
    # A chat template spells its own beginning-of-sequence token; a second one would shift what the model sees.
    chat = has_chat_template(tokenizer)
    ids = list(tokenizer(text, add_special_tokens=not chat)["input_ids"])
    # Some tokenizers end every text, BERT's by a separator, which would end the answer before it begins.
    ends = {tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)}
    while not chat and len(ids) > 1 and ids[-1] in ends:
        ids.pop()
    return ids


def _check_tokenizer(tokenizer: Any) -> None:
    if not callable(tokenizer):
        raise ModelError(f"a tokenizer must be one of transformers, such as load_model gives, not {brief(tokenizer)}.")


def common_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many of their first items two lists or texts have in common."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _render_turn(tokenizer: Any, prompt: str, answer: str | None = None) -> str:
    turns = [{"role": "user", "content": prompt}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    # An answer is what follows the question, and a model that may think first does so for longer than answers are.
    mute = {"enable_thinking": False} if "enable_thinking" in str(tokenizer.chat_template) else {}
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=answer is None, tokenize=False, **mute))
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise ModelError(f"the tokenizer's chat template fails on a plain question: {error}.") from error
