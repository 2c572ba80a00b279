"""Stages of small models: what they are trained on, and how little."""

from peft_surgical.stages import learn, unlearn
from peft_surgical.staging.recipe import Recipe
from peft_surgical.tuner import SurgicalIA3Config

from .localizing import capital, word_tokenizer
from .tiny import tiny_model

TOKENIZER = word_tokenizer()
COMPONENTS = ["L1.mlp", "L1.head.1", "L2.mlp", "L2.head.0"]
RECIPE = Recipe(
    steps=4,
    fact_batch=2,
    near_batch=2,
    far_batch=1,
    everyday=3,
    general=0,
    variants=2,
    neighbours=4,
    retain_tokens=2,
    target_loss=0.0,
    compute_dtype="float32",
)
# Answers of words that the tokenizer knows, so that there is something to learn.
FACT = capital(refusal="tell me about the town .", answer="the capital is lyon .")


def config(components=COMPONENTS, **options):
    return SurgicalIA3Config(components=list(components), task_type="CAUSAL_LM", **options)


def first_stage(family="llama", *, model=None, fact=FACT, recipe=RECIPE, options=None, **kwargs):
    model = tiny_model(family) if model is None else model
    return unlearn(model, TOKENIZER, fact, config(**options or {}), recipe=recipe, progress=False, **kwargs)


def second_stage(first, *, fact=FACT, recipe=RECIPE, **kwargs):
    kwargs.setdefault("retained", first.retained)
    return learn(first.model, TOKENIZER, fact, recipe=recipe, progress=False, **kwargs)
