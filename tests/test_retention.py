import math
from contextlib import nullcontext

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from peft_surgical import evaluation
from peft_surgical.errors import ModelError
from peft_surgical.measuring.retention import measure_retention

from .adapters import perturb, tiny_peft
from .localizing import capital, word_tokenizer
from .small_tokenizers import CHATML, small_tokenizer
from .test_evaluation import TEXT, two_states
from .tiny import VOCAB, tiny_model

TOKENIZER = word_tokenizer()


def masking(base, edited, by):
    """A model that gives tokens from `base` or `edited` on no weight, as its adapter does not act or does."""
    model = tiny_peft("llama")
    perturb(model)

    def mask(module, args, out):
        layer = next(part for part in module.modules() if isinstance(part, BaseTunerLayer))
        out.logits[..., base if layer.disable_adapters else edited :] = by

    model.get_base_model().register_forward_hook(mask)
    return model


@pytest.mark.parametrize("by", [-math.inf, torch.finfo(torch.float32).min])
def test_a_model_may_mask_tokens_that_the_text_does_not_have(by):
    unused = len(TOKENIZER) + 1
    found = [
        measure_retention(model, TOKENIZER, two_states(model), text=TEXT, window=32)["edited"]
        for model in (masking(unused, unused, by), masking(unused, unused, -1e4))
    ]
    assert found[0] == found[1]
    assert found[0]["kl_per_token"].value > 0


@pytest.mark.parametrize(("base", "edited", "name"), [(9, 9, "base"), (VOCAB, 9, "edited"), (VOCAB, 100, "edited")])
def test_a_model_that_masks_what_it_would_have_to_say_is_refused(base, edited, name):
    model = masking(base, edited, -math.inf)
    with pytest.raises(ModelError, match=f"the {name} model gives no probability to a token that the text"):
        measure_retention(model, TOKENIZER, two_states(model), text=TEXT)


def test_a_model_that_all_but_masks_the_text_is_worse_by_a_number_that_json_has():
    model = masking(VOCAB, 9, -1e4)
    found = measure_retention(model, TOKENIZER, two_states(model), text=TEXT, window=32)["edited"]
    assert found["kl_per_token"].value > 700
    assert found["perplexity_ratio"].value == math.exp(700)


def test_the_base_need_not_be_the_first_state():
    model = tiny_peft("llama")
    perturb(model)
    states = two_states(model)
    found = measure_retention(model, TOKENIZER, states, text=TEXT)
    assert found["edited"]["kl_per_token"].value > 0
    assert measure_retention(model, TOKENIZER, dict(reversed(states.items())), text=TEXT) == found


def test_a_token_without_an_embedding_is_told_before_anything_is_answered(monkeypatch):
    tokenizer = small_tokenizer("byte_level", CHATML)
    model = tiny_model("llama", vocab_size=len(tokenizer) - 20)
    told = rf"the tokenizer gives token \d+, and the model has embeddings of {len(tokenizer) - 20} tokens only"
    with pytest.raises(ModelError, match=told):
        measure_retention(model, tokenizer, {"base": nullcontext})
    model.register_forward_pre_hook(lambda *_: pytest.fail("it is not run"))
    # What is asked has embeddings.
    monkeypatch.setattr(evaluation, "answer_fact", lambda *_, **__: pytest.fail("nothing is asked"))
    with pytest.raises(ModelError, match=told):
        evaluation.evaluate(model, tokenizer, capital(), progress=False)
