import copy
import pickle
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_surgical.errors import FactError, ModelError
from peft_surgical.facts import Control
from peft_surgical.stages import learn, unlearn
from peft_surgical.staging.origins import origin_of

from .offloading import offloaded
from .staged import FACT, RECIPE, TOKENIZER, config, first_stage, second_stage
from .tiny import tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")


def chatting(beginning="please"):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = f"{beginning}{{% for message in messages %}} {{{{ message.content }}}}{{% endfor %}}"
    return tokenizer


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": (*FACT.prompts, "where is the seat of france ?")},
        {"subject": "capital"},
        {"old": ("rome",)},
        {"contrast": ("spain",)},
        {"retain": ()},
        {"held_out": ("where is the seat of france ?",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_kept_for_another_fact_is_refused(change):
    first = first_stage()
    other = replace(FACT, **change)
    before = dict(first.model.named_modules())
    for given in (other, other.training):
        with pytest.raises(FactError, match=r"'retained' was worked out for a fact with other .*; leave it out"):
            second_stage(first, fact=given)
    assert dict(first.model.named_modules()) == before


def test_what_differs_is_named():
    first = first_stage()
    with pytest.raises(FactError, match="for a fact with other 'old'; leave it out"):
        second_stage(first, fact=replace(FACT, old=("rome",)))
    asked = replace(FACT, controls=(Control("who sang yesterday ?", ("paul",)),))
    with pytest.raises(FactError, match="for a fact with other questions to evaluate and controls; leave it out"):
        second_stage(first, fact=asked)


def test_what_was_kept_of_another_tokenizer_or_base_is_refused():
    kept = first_stage().retained
    for model, tokenizer, message in [
        (tiny_model("llama"), chatting(), "with another tokenizer or chat template"),
        (tiny_model("llama", seed=1), TOKENIZER, "on another base"),
        (tiny_model("qwen3"), TOKENIZER, "on another base"),
        # Embeddings of other data types are not compared, and sizes are.
        (tiny_model("llama", dtype=torch.bfloat16, num_hidden_layers=4), TOKENIZER, "on another base"),
        (tiny_model("llama", dtype=torch.bfloat16, hidden_size=64), TOKENIZER, "on another base"),
        (tiny_model("qwen3", dtype=torch.bfloat16), TOKENIZER, "on another base"),
    ]:
        for stage in (unlearn, learn):
            with pytest.raises(ModelError, match=f"'retained' was worked out {message}; leave it out"):
                stage(model, tokenizer, FACT, config(), recipe=RECIPE, retained=kept, progress=False)
    one, other = (origin_of(tiny_model("llama"), chatting(word), FACT.training) for word in ("please", "tell me"))
    assert one != other


def test_what_was_kept_goes_on_with_the_fact_whatever_is_taught_and_however():
    first = first_stage()
    taught = replace(FACT, refusal="ask another .", answer="it is lyon .").training
    recipe = replace(RECIPE, variants=5, neighbours=1, everyday=0, general=1, retain_tokens=4, pass_tokens=64)
    assert second_stage(first, fact=taught, recipe=recipe).retained is first.retained


def test_what_was_kept_can_be_copied_and_written():
    first = first_stage()
    for made in (copy.deepcopy(first.retained), pickle.loads(pickle.dumps(first.retained))):
        assert made.origin == first.retained.origin
        second_stage(first_stage(), retained=made)
        with pytest.raises(FactError, match="for a fact with other"):
            second_stage(first_stage(), fact=replace(FACT, old=("rome",)), retained=made)
    # What was written before anybody noted where it was from is taken.
    second_stage(first, retained=replace(first.retained, origin=None))


def test_the_base_is_the_same_however_it_is_held():
    own = origin_of(tiny_model("llama"), TOKENIZER, FACT.training)
    adapted = get_peft_model(tiny_model("llama"), config(modules_to_save=["embed_tokens"]))
    adapted.get_input_embeddings().modules_to_save["default"].weight.data.mul_(3)
    lora = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["embed_tokens"]))
    for model in (adapted, lora, first_stage().model, copy.deepcopy(first_stage().model).merge_and_unload()):
        assert origin_of(model, TOKENIZER, FACT.training) == own
    away = origin_of(offloaded(tiny_model("llama"), ["model.embed_tokens"]), TOKENIZER, FACT.training)
    assert away == replace(own, base=None)
    quantized = tiny_model("llama")
    embeddings = quantized.get_input_embeddings()
    embeddings.weight = nn.Parameter(embeddings.weight.detach().to(torch.int8), requires_grad=False)
    assert origin_of(quantized, TOKENIZER, FACT.training) == away
    hidden = tiny_model("llama")
    hidden.set_input_embeddings(nn.Identity())
    assert origin_of(hidden, TOKENIZER, FACT.training) == away
    del hidden.model.embed_tokens
    assert origin_of(hidden, TOKENIZER, FACT.training) == away
    # Of the tokens that it has embeddings of.
    assert origin_of(tiny_model("llama", vocab_size=8), TOKENIZER, FACT.training).base is not None
    first = first_stage(recipe=replace(RECIPE, steps=1))
    learn(tiny_model("llama", dtype=torch.bfloat16), TOKENIZER, FACT, config(), recipe=RECIPE, retained=first.retained)
