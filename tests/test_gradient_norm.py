"""Norms of gradients where an output goes nowhere, and scorers where prompts are run apart."""

import pytest
import torch

from .localizing import localized, word_tokenizer
from .tiny import tiny_model


@pytest.mark.parametrize("scorer", ["gradient_norm", "activation_magnitude", "lookup"])
def test_prompts_that_are_run_one_by_one_have_the_mean_of_all(scorer):
    together, apart = (
        localized(tiny_model("llama"), word_tokenizer(), scorer, max_tokens=limit).tables[scorer]
        for limit in (2048, 8)
    )
    assert apart.components == pytest.approx(together.components, rel=1e-3, abs=1e-6)
    for mlp, neurons in together.neurons.items():
        torch.testing.assert_close(*map(torch.tensor, (apart.neurons[mlp], neurons)), rtol=1e-3, atol=1e-6)
    matrices = [table.notes.get("weight_matrices", {}) for table in (apart, together)]
    assert matrices[0] == pytest.approx(matrices[1], rel=1e-3, abs=1e-6)


def test_weights_whose_output_goes_nowhere_have_no_gradient():
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    scores = localized(model, word_tokenizer(), "gradient_norm").scores["gradient_norm"]
    assert [name for name, score in scores.items() if score == 0] == ["L1.mlp"]
