import pytest
import torch
from torch import nn

from peft_surgical.errors import FactError, ModelError
from peft_surgical.localizing.bridge import wrap
from peft_surgical.running.generation import generate_answers
from peft_surgical.wrapped import check_uncompiled, check_unwrapped

from .localizing import word_tokenizer
from .tiny import tiny_model


def test_a_compiled_model_is_told_by_its_names():
    model = tiny_model("llama")
    check_uncompiled(name for name, _ in model.named_modules())
    model.compile()
    check_uncompiled(name for name, _ in model.named_modules())
    wrapped = torch.compile(model)
    with pytest.raises(ModelError, match=r"the model is wrapped by torch\.compile"):
        check_uncompiled(name for name, _ in wrapped.named_modules())


def test_a_name_that_only_looks_like_it_is_none():
    check_uncompiled(["model.my_orig_mod", "model._orig_model"])


def test_wrappers_are_told():
    model = tiny_model("llama")
    check_unwrapped(model)
    with pytest.raises(ModelError, match="wrapped by DataParallel; give what it wraps, its `module`"):
        check_unwrapped(nn.DataParallel(model))
    with pytest.raises(ModelError, match="under TransformerLens hooks already"):
        check_unwrapped(wrap(model))
    # Localizing leaves the model itself as it was.
    check_unwrapped(model)


def test_what_cannot_answer_is_told():
    with pytest.raises(FactError, match="prompts are a list of texts; got the text 'what is'"):
        generate_answers(tiny_model("llama"), word_tokenizer(), "what is")
    with pytest.raises(ModelError, match="wrapped by DataParallel; give what it wraps, its `module`"):
        generate_answers(nn.DataParallel(tiny_model("llama")), word_tokenizer(), ["what is"])
    with pytest.raises(ModelError, match="a TransformerBridge of TransformerLens; give a Hugging Face model"):
        generate_answers(wrap(tiny_model("llama")), word_tokenizer(), ["what is"])
