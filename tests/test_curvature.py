import pytest
import torch

from peft_surgical import curvature as module
from peft_surgical.curvature import Curvature, Metric, _cut, _products, measure_curvature, trained_layers

from .test_training import Task, span

ADAPTER = "default"


def layers_of(task):
    return trained_layers(task.model, ADAPTER)


def whole(curvature):
    return torch.block_diag(*(block for layer in curvature.blocks for block in layer))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi3"])
def test_products_of_tokens_add_up_to_the_gradient(family):
    task = Task(family)
    layers = layers_of(task)
    assert [layer.surgical_ia3_delta[ADAPTER] for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.surgical_ia3_delta[ADAPTER].uniform_(-0.3, 0.3)
    rows = task.facts
    with _products(layers, ADAPTER) as found:
        task.runner.logits(range(len(rows)), [span(row) for row in rows]).logsumexp(-1).sum().backward()
    for position, layer in enumerate(layers):
        summed = torch.cat(found[position]).sum(0)
        torch.testing.assert_close(summed, layer.surgical_ia3_delta[ADAPTER].grad, rtol=1e-4, atol=1e-6)
        assert "apply_scale" not in layer.__dict__


def measured(task, **options):
    indices = [len(task.facts) + i for i in range(len(task.retains))]
    return measure_curvature(task.runner, layers_of(task), ADAPTER, indices, task.retains, **options)


def test_curvature_is_symmetric_positive_and_leaves_nothing_behind():
    task = Task()
    found = measured(task)
    sizes = [sum(map(len, layer)) for layer in found.blocks]
    assert sizes == [layer.coordinates[ADAPTER].n for layer in layers_of(task)]
    matrix = whole(found)
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-6
    assert matrix.diagonal().max() > 0
    assert all(p.grad is None for p in task.parameters)


def test_the_seed_and_nothing_else_draws_labels():
    state = torch.random.get_rng_state()
    one, again, other = (whole(measured(Task(), seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_logits_met_are_given_in_place():
    task, seen = Task(), {}
    measured(task, batch_size=2, on_logits=seen.__setitem__)
    expected = task.read(task.retains)
    assert sorted(seen) == list(range(len(expected)))
    for i, logits in enumerate(expected):
        torch.testing.assert_close(seen[i], logits, rtol=1e-4, atol=1e-5)


def test_no_row_is_no_curvature():
    task = Task()
    assert whole(measure_curvature(task.runner, layers_of(task), ADAPTER, [], [])).abs().max() == 0


def test_wide_layers_are_cut(monkeypatch):
    assert _cut(2048) == [2048]
    assert _cut(5000) == [1667, 1667, 1666]
    monkeypatch.setattr(module, "BLOCK", 10)
    task = Task()
    small = measured(task)
    assert all(len(block) <= 10 for layer in small.blocks for block in layer)
    monkeypatch.undo()
    matrix = whole(measured(Task()))
    assert torch.allclose(whole(small).diagonal(), matrix.diagonal(), rtol=1e-4, atol=1e-9)


def test_curvatures_add_and_scale():
    one = Curvature(((torch.eye(2),), (torch.ones(1, 1),)))
    both = one + 2.0 * one
    assert torch.equal(whole(both), 3 * whole(one))


def test_the_natural_gradient_by_hand():
    block = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    metric = Curvature(((block,),)).metric(damping=0.5)  # 0.5 times the mean of (2, 2) on the diagonal
    damped = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    gradient = torch.tensor([1.0, -1.0])
    [natural] = metric.natural([gradient])
    torch.testing.assert_close(natural, torch.tensor([0.5, -0.5]))
    [back] = metric.apply([natural])
    torch.testing.assert_close(back, gradient)
    torch.testing.assert_close(back, damped @ natural)


def test_the_identity_metric_changes_nothing():
    parameters = [torch.randn(3), torch.randn(2)]
    metric = Metric.identity(parameters)
    for given, made in zip(parameters, metric.natural(parameters), strict=True):
        torch.testing.assert_close(made, given)


def test_a_block_that_nothing_reached_still_gives_steps():
    [made] = Curvature(((torch.zeros(2, 2),),)).metric(1.0).natural([torch.ones(2)])
    assert torch.isfinite(made).all()
