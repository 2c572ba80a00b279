import pytest
import torch

from peft_surgical.errors import ModelError
from peft_surgical.running.devices import input_device

from .offloading import offloaded
from .tiny import tiny_model


def test_token_ids_go_where_they_are_embedded():
    assert input_device(tiny_model("llama")) == torch.device("cpu")
    assert input_device(offloaded(tiny_model("llama"), ["model.embed_tokens"])) == torch.device("cpu")
    with pytest.raises(ModelError, match="input embedding has no weights at hand"):
        input_device(tiny_model("llama").to("meta"))
