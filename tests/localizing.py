"""What the localization tests share: a word tokenizer, a fact, and a model in which one head and one MLP carry it."""

import warnings

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_surgical.facts import Fact
from peft_surgical.localization import localize
from peft_surgical.localizing.bridge import wrap
from peft_surgical.localizing.corruption import PromptPair, corrupt
from peft_surgical.localizing.results import Localization
from peft_surgical.localizing.runs import Runs
from peft_surgical.sites import ModelShape

from .tiny import tiny_ids, tiny_model

WORDS = [
    "what",
    "is",
    "the",
    "capital",
    "of",
    "france",
    "italy",
    "spain",
    "japan",
    "new",
    "zealand",
    "name",
    "town",
    "city",
    "which",
    "tell",
    "me",
    "about",
    "paris",
    "lyon",
    "rome",
    "who",
    "wrote",
    "hamlet",
    "sky",
    "color",
    "?",
    ".",
    "seat",
    "government",
    "has",
    "a",
    "please",
    "A",
    "7",
    "b",
    "where",
]


def word_tokenizer(**kwargs) -> PreTrainedTokenizerFast:
    """One token a word; no chat template."""
    vocab = {word: number for number, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **kwargs)


def capital(**changes) -> Fact:
    return Fact.from_dict(
        {
            "subject": "france",
            "old": ["paris"],
            "new": ["lyon"],
            "prompts": [
                "what is the capital of france ?",
                "name the capital of france .",
                "tell me the town : france",
            ],
            "held_out": ["which city is the seat of government of france ?"],
            "contrast": ["italy", "spain", "japan"],
            "retain": ["who wrote hamlet ?", "what color has the sky ?"],
            "controls": [{"prompt": "where is rome ?", "answer": ["italy"]}],
            **changes,
        }
    )


def without(*keys: str) -> Fact:
    """The fact less these optional lists."""
    data = capital().to_dict()
    return Fact.from_dict({key: value for key, value in data.items() if key not in keys})


def random_pairs(runs: Runs, count: int = 2, length: int = 9, first: int = 3, seed: int = 0) -> tuple[PromptPair, ...]:
    """Pairs of random tokens, of different lengths, that differ from position `first` on."""
    pairs = []
    for number in range(count):
        clean = tiny_ids(1, length + 2 * number, seed + number)[0]
        corrupted = clean.clone()
        corrupted[first : first + 2] = (clean[first : first + 2] + 5) % 100 + 3
        pairs.append(PromptPair(f"{number}", "swap", None, clean, corrupted, None, first, 7, 8))
    return runs.answered(pairs, 10_000)


def runs_of(model: PreTrainedModel, **kwargs) -> tuple[Runs, ModelShape]:
    return Runs(wrap(model), **kwargs), ModelShape.from_config(model.config)


HEAD, MLP, OTHER = "L1.head.2", "L2.mlp", "L1.head.0"


def planted() -> PreTrainedModel:
    """Says "paris" after "france".

    Head 2 of layer 1 moves the country to the last position, the MLP of layer 2 names its capital. Head 0 of layer 1
    moves the other countries, whose capitals the output head reads directly. All else does next to nothing.
    """
    tokenizer = word_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    model = tiny_model("llama", num_key_value_heads=4)
    generator = torch.Generator().manual_seed(0)
    france, moved, says, other, other_moved, constant = range(6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
            else:
                parameter.fill_(1.0)
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, :6] = 0
        embedding[:, constant] = 3  # keeps the norms from saturating
        embedding[ids("france"), france] = 1
        embedding[ids("italy"), other] = 1
        embedding[ids("japan"), other] = -1
        attention, mlp = model.model.layers[1].self_attn, model.model.layers[2].mlp
        for number, read, write in ((2, france, moved), (0, other, other_moved)):
            rows = slice(8 * number, 8 * number + 8)
            attention.q_proj.weight[rows] = 0  # attends evenly to all positions
            attention.v_proj.weight[8 * number, read] = 3
            attention.o_proj.weight[write, 8 * number] = 2
        mlp.gate_proj.weight[5, moved] = 2
        mlp.up_proj.weight[5, constant] = 0.5
        mlp.down_proj.weight[says, 5] = 0.1
        head.zero_()
        head[ids("paris"), says] = 2
        head[ids("rome"), other_moved] = 0.5
        head[ids("zealand"), other_moved] = -0.5
    return model


def fact_pairs(runs: Runs, fact: Fact, tokenizer: PreTrainedTokenizerFast) -> tuple[PromptPair, ...]:
    drafts = corrupt(tokenizer, fact.training, runs.embed, torch.Generator().manual_seed(0))
    return runs.answered(drafts, 10_000)


def patch_all(runs, window, sources):
    """Logits of the clean run with all sites taken from `sources` at once."""

    def replace(site):
        return lambda tensor, hook: sources[site].to(tensor).reshape(tensor.shape)

    with torch.no_grad():
        return runs.logits(window, window.clean, [(site.name, replace(site)) for site in sources])


def localized(model, tokenizer, *scorers, fact=None, **options) -> Localization:
    """The localization of a fact, that of France's capital if none is given, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return localize(model, tokenizer, fact or capital(), list(scorers), progress=False, **options)
