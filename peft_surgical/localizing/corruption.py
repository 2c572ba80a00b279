"""A prompt and its corrupted twin: the same prompt with the subject's identity taken out, token for token aligned.

In order of preference, prompt by prompt, and recorded:

1. `swap`: another subject of the same kind (the fact's `contrast`) whose prompt has the same number of tokens;
2. `noise`: Gaussian noise on the embeddings of the subject's tokens, three standard deviations of the prompt's
   embeddings (ROME, arXiv 2202.05262);
3. `mean`: where the prompt does not name the subject, the mean embedding in place of every token of its own, and of
   the subject where the beginning of the answer names it.

Never an unrelated sentence cut to length: what differs between the two runs must be the subject and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import FactError, brief
from ..facts import TrainingFact
from ..texts.prompts import AnswerTokens, answer_tokens, encode, old_sentence
from ..texts.subjects import answer_spans, subject_spans
from ..texts.text import mentions, swap_subject

Method = Literal["swap", "noise", "mean"]
NOISE_SCALE = 3.0


@dataclass(frozen=True, eq=False)
class PromptPair:
    """A clean prompt, its corrupted twin of equal length, and the tokens whose logits are read after the last.

    Attributes:
        prompt: The prompt, as the fact has it.
        method: How it was corrupted.
        other: The subject swapped in, for `swap`.
        clean: Token ids.
        corrupted: Token ids; the same as `clean` for `noise` and `mean`.
        shift: What the corrupted run adds to its embeddings.
        first: The first position where the two runs differ.
        old: Token id of the old answer.
        new: Token id of the new answer.
        rival: Token id of what the model says to the corrupted prompt, the old answer aside. Paris and Lyon fall
            together when France becomes Italy; Paris and Rome do not. The model has to be asked: -1 before.
        differences: Logit of `old` less that of `rival`, in the clean and in the corrupted run; likewise.
        besides: Token ids of the old answer's other names, none of which is a rival.
    """

    prompt: str
    method: Method
    other: str | None
    clean: Int[Tensor, " pos"]
    corrupted: Int[Tensor, " pos"]
    shift: Float[Tensor, "pos d_model"] | None
    first: int
    old: int
    new: int
    rival: int = -1
    differences: tuple[float, float] = (0.0, 0.0)
    besides: tuple[int, ...] = ()


Embed = Callable[[Int[Tensor, " pos"]], Float[Tensor, "pos d_model"]]


def corrupt(
    tokenizer: Any, fact: TrainingFact, embed: Embed, generator: torch.Generator, prompts: Sequence[str] | None = None
) -> list[PromptPair]:
    """Make the pair of each prompt.

    Args:
        tokenizer: The model's.
        fact: Gives subject, contrast subjects and answers.
        embed: Token ids to the model's input embeddings.
        generator: Decides the order of the contrast subjects and the noise.
        prompts: The fact's prompts unless given.

    Raises:
        FactError: When no token distinguishes the answers after a prompt, or it is too short to be corrupted.
    """
    order = torch.randperm(len(fact.contrast), generator=generator, device="cpu").tolist()
    subjects = [fact.contrast[i] for i in order]
    shared = template_tokens(tokenizer)
    pairs = []
    for number, prompt in enumerate(fact.prompts if prompts is None else prompts):
        tokens = answer_tokens(tokenizer, prompt, fact)
        # Every prompt begins the search at another subject, so that the average is not over one subject's quirks.
        turn = number % len(subjects) if subjects else 0
        swaps = (_swap(tokenizer, fact, prompt, tokens, other) for other in subjects[turn:] + subjects[:turn])
        pair = next((swap for swap in swaps if swap is not None), None)
        if pair is None:
            clean = torch.tensor(tokens.ids, device="cpu")
            asked = encode(tokenizer, prompt)
            spans = [span for part in named_spans(tokenizer, fact, prompt, asked) for span in part]
            positions = sorted({position for span in spans for position in span if position < len(clean)})
            # Between the template's last tokens and the decision may stand the beginning of an answer.
            template = (shared[0], shared[1] + max(0, len(clean) - len(asked)))
            pair = blur(prompt, clean, tokens.old, tokens.new, positions, embed, generator, template)
        pairs.append(replace(pair, besides=_other_names(tokenizer, fact, prompt, tokens)))
    return pairs


def named_spans(
    tokenizer: Any, fact: TrainingFact, prompt: str, asked: Sequence[int]
) -> tuple[list[range], list[range]]:
    """The positions of the subject's tokens, each time that it is named: in a prompt, and in the old answer to it.

    Args:
        tokenizer: The model's.
        fact: Gives subject and answer.
        prompt: The prompt.
        asked: Its token ids.
    """
    return (
        subject_spans(tokenizer, prompt, fact.subject, asked),
        answer_spans(tokenizer, prompt, old_sentence(fact), fact.subject),
    )


def _other_names(tokenizer: Any, fact: TrainingFact, prompt: str, tokens: AnswerTokens) -> tuple[int, ...]:
    """The tokens that other names of the old answer begin with, where the model decides."""
    found = set()
    for name in fact.old[1:]:
        with suppress(FactError):
            other = answer_tokens(tokenizer, prompt, replace(fact, old=(name,)))
            found |= {other.old} if other.ids == tokens.ids else set()
    return tuple(sorted(found - {tokens.old}))


def blur(
    prompt: str,
    clean: Int[Tensor, " pos"],
    old: int,
    new: int,
    positions: Sequence[int],
    embed: Embed,
    generator: torch.Generator,
    template: tuple[int, int],
) -> PromptPair:
    """Corrupt a prompt in its embeddings: noise at the subject's positions, or the mean where it has none.

    Args:
        prompt: For the record.
        clean: Token ids.
        old: The old answer's token.
        new: The new answer's token.
        positions: Of the subject's tokens, ascending; none in the prompt itself when that does not name it.
        embed: Token ids to embeddings.
        generator: Decides the noise.
        template: How many leading and trailing tokens are not the prompt's own.

    Raises:
        FactError: When nothing of the prompt can be corrupted.
    """
    embeddings = embed(clean).float().cpu()
    shift = torch.zeros_like(embeddings)
    head, tail = template
    own = range(head, len(clean) - tail)
    if any(position in own for position in positions):
        method: Method = "noise"
        first = min(positions)
        # The caller's default dtype would draw other numbers, and another device none of this generator's.
        size = (len(positions), embeddings.shape[1])
        noise = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
        shift[list(positions)] = NOISE_SCALE * embeddings.std() * noise
    else:
        method = "mean"
        if not own:
            raise FactError(f"the prompt {brief(prompt)} has no token of its own, so it cannot be corrupted.")
        first, blurred = own.start, [*own, *positions]
        if len(set(clean[blurred].tolist())) == 1:
            # Their mean is what they are.
            raise FactError(
                f"the prompt {brief(prompt)} is too short to be corrupted, as it does not name the subject and has no"
                " two different tokens; give a longer one."
            )
        shift[blurred] = embeddings[own.start : own.stop].mean(0) - embeddings[blurred]
    return PromptPair(prompt, method, None, clean, clean, shift, first, old, new)


def first_difference(left: Int[Tensor, " pos"], right: Int[Tensor, " pos"]) -> int | None:
    """The first position where two runs of equal length differ, `None` when nowhere."""
    differing = (left != right).nonzero()
    return int(differing[0]) if len(differing) else None


def _swap(tokenizer: Any, fact: TrainingFact, prompt: str, tokens: AnswerTokens, other: str) -> PromptPair | None:
    """The pair with another subject, or `None` when the tokens do not align, or evaluation asks that very prompt."""
    if not mentions(prompt, fact.subject) or not fact.may_train_on(swap_subject(prompt, fact.subject, other)):
        return None
    try:
        swapped = answer_tokens(tokenizer, prompt, fact, subject=other)
    except FactError:
        return None
    clean, corrupted = (torch.tensor(side.ids, device="cpu") for side in (tokens, swapped))
    if len(clean) != len(corrupted) or (swapped.old, swapped.new) != (tokens.old, tokens.new):
        return None
    first = first_difference(clean, corrupted)
    if first is None:
        return None
    return PromptPair(prompt, "swap", other, clean, corrupted, None, first, tokens.old, tokens.new)


def template_ids(tokenizer: Any) -> list[int]:
    """The token ids that every prompt begins with: the chat template's, or a beginning-of-sequence token."""
    return encode(tokenizer, "A")[: template_tokens(tokenizer)[0]]


def template_tokens(tokenizer: Any) -> tuple[int, int]:
    """How many leading and trailing tokens all prompts share."""
    one, two = encode(tokenizer, "A"), encode(tokenizer, "7 b")
    head = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 0)
    tail = next((i for i, (a, b) in enumerate(zip(one[::-1], two[::-1], strict=False)) if a != b), 0)
    return head, tail
