"""A fact from one sentence of plain text, learned by its subject.

Fitted to a sentence alone, an edit holds at that sentence's beginning of a text. So the model makes up beginnings, and
the sentence is put behind them too, as ROME does (Meng et al., arXiv 2202.05262).

```py
>>> stage = learn_sentence(model, tokenizer, "The capital of France is", new="Lyon")
>>> stage.save("out/learn")
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .architectures import architecture_of, check_causal, output_projections
from .counts import check_counts, check_seed
from .drafting.guess import guess_subject
from .errors import FactError, brief
from .facts import TrainingFact
from .keying.keyed_by_subject import KeyedSubjectRecipe, learn_keyed_by_subject
from .running.devices import input_device
from .running.forwards import read_at
from .running.modes import evaluating, told_places
from .staging.by_subject import SubjectRecipe, learn_by_subject
from .staging.placeable import check_bare
from .staging.recipe import check_recipe
from .staging.stage import Stage, check_config
from .staging.training import check_finite
from .staging.training_here import training_here
from .texts.fact_files import cleaned
from .texts.lengths import check_row
from .texts.prompts import encode, without_template
from .texts.text import mentions, same_text_key
from .tuner import SurgicalIA3Config

CONTEXTS = 20
STARTS = ("The", "Therefore", "Because", "I", "You")
LENGTHS = (5, 10)
TOP = 5


def learn_sentence(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    new: str,
    subject: str | None = None,
    config: SurgicalIA3Config | None = None,
    recipe: SubjectRecipe | None = None,
    contexts: int = CONTEXTS,
    seed: int = 0,
    progress: bool = True,
) -> Stage:
    """Trains an adapter that ends a sentence, as plain text, with a new answer; see [`learn_by_subject`].

    Args:
        model: A bare causal language model; becomes part of the returned PEFT model, as with `get_peft_model`.
        tokenizer: Its tokenizer; its chat template is not used.
        prompt: The beginning of a sentence that the answer ends.
        new: The new answer.
        subject: What the sentence is about; guessed when None.
        config: Which neurons get a scale; those of [`subject_components`] when None.
        recipe: How to train.
        contexts: How many beginnings the sentence is put behind.
        seed: Decides the beginnings, which names stand in for the subject, and the order of training.
        progress: Whether to show progress bars.

    Returns:
        The stage; its adapter is named `learn`.

    Raises:
        FactError: If the answer is empty, or the prompt does not name the subject, or none can be guessed.
        AdapterError: As for [`learn_by_subject`].
        SelectionError: As for [`learn_by_subject`].
        ModelError: As for [`learn_by_subject`].
        ArchitectureError: As for [`learn_by_subject`].
    """
    # Beginnings take seconds, which a model that is refused afterwards would cost for nothing.
    check_recipe(recipe, SubjectRecipe)
    check_seed(seed)
    check_config(config)
    check_bare(model, "learning by subject")
    plain = without_template(tokenizer)
    fact = _behind_beginnings(model, plain, prompt, new, subject, contexts, seed)
    return learn_by_subject(model, plain, fact, config, recipe=recipe, seed=seed, progress=progress)


def learn_sentence_keyed(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    new: str,
    subject: str | None = None,
    aliases: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    recipe: KeyedSubjectRecipe | None = None,
    contexts: int = CONTEXTS,
    seed: int = 0,
    progress: bool = True,
) -> Stage:
    """Does what [`learn_sentence`] does by two neurons that fire at its subject; see [`learn_keyed_by_subject`].

    Args:
        model: As for [`learn_sentence`].
        tokenizer: As for [`learn_sentence`].
        prompt: As for [`learn_sentence`].
        new: As for [`learn_sentence`].
        subject: As for [`learn_sentence`].
        aliases: Other names of the subject, under which it is learned, too.
        layers: Whose MLPs are updated; see [`learn_keyed_by_subject`].
        recipe: How to train.
        contexts: As for [`learn_sentence`].
        seed: As for [`learn_sentence`].
        progress: As for [`learn_sentence`].

    Returns:
        The stage; its adapter is named `learn`.

    Raises:
        FactError: As for [`learn_sentence`], or if an alias is empty or the subject itself.
        AdapterError: As for [`learn_keyed_by_subject`].
        SelectionError: As for [`learn_keyed_by_subject`].
        ModelError: As for [`learn_keyed_by_subject`].
        ArchitectureError: As for [`learn_keyed_by_subject`].
    """
    check_recipe(recipe, KeyedSubjectRecipe)
    check_seed(seed)
    check_bare(model, "keyed learning")
    if layers is not None:
        output_projections(model, layers)
    plain = without_template(tokenizer)
    fact = _behind_beginnings(model, plain, prompt, new, subject, contexts, seed, aliases)
    return learn_keyed_by_subject(model, plain, fact, layers=layers, recipe=recipe, seed=seed, progress=progress)


def _behind_beginnings(
    model: Any,
    plain: Any,
    prompt: str,
    new: str,
    subject: str | None,
    contexts: int,
    seed: int,
    aliases: Sequence[str] = (),
) -> TrainingFact:
    # Of another kind of model, such as one with an encoder, nothing could be drawn.
    architecture_of(model.config.model_type)
    check_causal(model)
    subject = subject_of(prompt, new, subject)
    aliases = checked_aliases(subject, aliases)
    # A space at the end would stand twice, and as a token of its own.
    prompt, new = cleaned(prompt, "the prompt", None), cleaned(new, "the new answer", None)
    # As training is: neither autocast nor what else is around decides what is drawn.
    with training_here(model):
        beginnings = sample_contexts(model, plain, contexts, seed)
    return TrainingFact(
        subject=subject,
        old=(),
        new=(new,),
        prompts=(prompt, *(beginning + prompt for beginning in beginnings)),
        refusal="",
        answer=new,
        aliases=tuple(aliases),
    )


def checked_aliases(subject: str, aliases: Sequence[str]) -> list[str]:
    """Other names of a subject, stripped.

    Raises:
        FactError: If one is empty or the subject itself, or they are no list.
    """
    if isinstance(aliases, str) or not isinstance(aliases, Sequence):
        kind = "the text " if isinstance(aliases, str) else ""
        raise FactError(f"aliases are a list of names; got {kind}{brief(aliases)}.")
    aliases = [cleaned(name, "an alias", None) for name in aliases]
    for name in aliases:
        if not same_text_key(name):
            raise FactError(f"the alias {brief(name)} has no letter, digit or sign to look for.")
        if same_text_key(name) == same_text_key(subject):
            raise FactError(f"the alias {brief(name)} is the subject itself.")
    return aliases


def subject_of(prompt: str, new: str, subject: str | None = None) -> str:
    """What a sentence is about, as it is given or guessed.

    Args:
        prompt: The beginning of a sentence.
        new: The new answer.
        subject: What it is about, if that is given.

    Raises:
        FactError: If the answer is empty, or the prompt does not name the subject, or none can be guessed.
    """
    prompt, new = cleaned(prompt, "the prompt", None), cleaned(new, "the new answer", None)
    if not new:
        raise FactError("the new answer is empty.")
    if not same_text_key(new):
        raise FactError("the new answer has no letter, digit or sign.")
    if not prompt:
        raise FactError("the prompt is empty; give the beginning of a sentence that the new answer ends.")
    found = guess_subject(prompt) if subject is None else cleaned(subject, "the subject", None)
    if not mentions(prompt, found):
        raise FactError(f"the prompt {brief(prompt)} does not name the subject {brief(found)}.")
    return found


@torch.no_grad()
def sample_contexts(model: Any, tokenizer: Any, count: int, seed: int) -> tuple[str, ...]:
    """Beginnings that a model makes up and a prompt is put behind: sentences, each with a full stop and a space.

    Args:
        model: The base.
        tokenizer: Without a chat template.
        count: How many, over five first words and two lengths in turn.
        seed: Decides what is drawn among the five likeliest tokens.

    Raises:
        ModelError: If a beginning does not fit the model's positions, its logits are not finite, or `count` is no
            whole number of 0 or more.
    """
    check_counts(0, contexts=count)
    generator, device = torch.Generator().manual_seed(seed), input_device(model)
    made = [encode(tokenizer, STARTS[number % len(STARTS)]) for number in range(count)]
    lengths = [LENGTHS[number // len(STARTS) % len(LENGTHS)] for number in range(count)]
    for ids, length in zip(made, lengths, strict=True):
        check_row(model.config, ids, length)
    # By what `torch.multinomial` draws, beginning after beginning, so that how many run at once decides nothing.
    drawn = [
        [torch.empty(TOP, dtype=torch.float32, device="cpu").exponential_(generator=generator) for _ in range(length)]
        for length in lengths
    ]
    with evaluating(model):
        for size in sorted({len(ids) for ids in made}):
            alike = [i for i, ids in enumerate(made) if len(ids) == size]
            for step in range(max(LENGTHS)):
                if going := [i for i in alike if step < lengths[i]]:
                    batch = torch.tensor([made[i] for i in going], device=device)
                    last = torch.zeros(batch.shape, dtype=torch.bool, device=device)
                    last[:, -1] = True
                    with read_at(model.get_output_embeddings(), last):
                        own = told_places(model, 0, batch.shape[1])
                        [logits] = model(input_ids=batch, use_cache=False, **own).logits
                    best = logits.float().cpu().topk(TOP)
                    check_finite(float(best.values[:, 0].sum()), model.dtype)
                    for i, values, tokens in zip(going, *best, strict=True):
                        made[i].append(int(tokens[(values.softmax(-1) / drawn[i][step]).argmax()]))
    return tuple(tokenizer.decode(ids, skip_special_tokens=True).strip() + ". " for ids in made)
