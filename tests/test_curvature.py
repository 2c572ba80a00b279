import itertools

import pytest
import torch

from peft_surgical.errors import ArchitectureError, ModelError
from peft_surgical.staging.curvature import (
    Curvature,
    Metric,
    _generator,
    _row_gradients,
    _signs,
    _sketch,
    measure_curvature,
)
from peft_surgical.texts.prompts import EncodedAnswer
from peft_surgical.tuner import activate
from peft_surgical.tuner.layer import layers_with

from .adapters import add
from .filling import fill_rows
from .test_training import Task, span
from .threads import threads

ADAPTER = "default"


def layers_of(task):
    return layers_with(ADAPTER, task.model)


def samples(curvature):
    return torch.cat(curvature.gradients, dim=1)


def whole(curvature):
    return samples(curvature).T @ samples(curvature)


@pytest.mark.parametrize("frozen", [(), ("other",)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi3"])
def test_each_row_has_the_gradient_that_it_has_alone(family, frozen):
    task = Task(family)
    for name in frozen:
        add(task.model, name)
    activate(task.model, [*frozen, ADAPTER], trainable=[ADAPTER])
    layers = layers_of(task)
    parameters = [layer.surgical_ia3_delta[ADAPTER] for layer in layers]
    with torch.no_grad():
        for parameter in parameters:
            parameter.uniform_(-0.3, 0.3)
    rows = task.facts
    runner = task.runner.unshared()
    with _row_gradients(task.model, layers, ADAPTER) as found:
        found.rows, found.tokens = len(rows), max(len(row.ids) for row in rows)
        runner.logits(range(len(rows)), [span(row) for row in rows]).logsumexp(-1).sum().backward()
    assert sorted(found.gradients) == list(range(len(layers)))
    for i, row in enumerate(rows):
        for parameter in parameters:
            parameter.grad = None
        # With the prefix shared, as training runs it: what a row does alone is the same.
        task.runner.logits([i], [span(row)]).logsumexp(-1).sum().backward()
        for position, parameter in enumerate(parameters):
            torch.testing.assert_close(found.gradients[position][i], parameter.grad, rtol=1e-4, atol=1e-6)
    assert all("apply_scale" not in layer.__dict__ for layer in layers)


def measured(task, **options):
    indices = [len(task.facts) + i for i in range(len(task.retains))]
    return measure_curvature(task.runner, layers_of(task), ADAPTER, indices, task.retains, **options)


def test_a_sample_for_each_row_and_draw_and_nothing_is_left_behind():
    task = Task()
    found = measured(task, draws=3)
    assert [len(own) for own in found.gradients] == [3 * len(task.retains)] * len(layers_of(task))
    assert [own.shape[1] for own in found.gradients] == [layer.coordinates[ADAPTER].n for layer in layers_of(task)]
    assert samples(found).abs().max() > 0
    assert all(p.grad is None for p in task.parameters)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi3"])
def test_rows_are_measured_side_by_side(family, monkeypatch):
    monkeypatch.setattr("peft_surgical.running.workers._LEAST", 1)
    read = {}
    with threads(1):
        expected = measured(Task(family), draws=2)
    with threads(2):
        task = Task(family)
        ran, plain = set(), type(task.runner).read
        with monkeypatch.context() as patch:
            patch.setattr(type(task.runner), "read", lambda self, *args: ran.add(id(self.model)) or plain(self, *args))
            # Of each worker the tokens of one row.
            found = measured(task, draws=2, tokens=2, on_logits=read.__setitem__)
    assert len(ran) == 2
    assert sorted(read) == list(range(len(task.retains)))
    for a, b in zip(found.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in task.parameters)
    assert all("apply_scale" not in layer.__dict__ for layer in layers_of(task))


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi3", "qwen3"])
def test_a_prefix_that_runs_once_changes_no_sample(family, draws, monkeypatch):
    monkeypatch.setattr("peft_surgical.running.suffix.MIN_SHARED", 1)
    task = Task(family)
    with torch.no_grad():
        for parameter in task.parameters:
            parameter.uniform_(-0.3, 0.3)
    ran, plain = [], type(task.runner).read

    def noted(self, *args):
        ran.append(len(self.prefix))
        return plain(self, *args)

    monkeypatch.setattr(type(task.runner), "read", noted)
    assert len(task.runner.prefix) == 4
    found = samples(measured(task, draws=draws, tokens=10))
    shared, ran = ran, []
    monkeypatch.setattr(type(task.runner), "tells_rows_apart", lambda *_: False)
    expected = samples(measured(task, draws=draws, tokens=10))
    assert set(shared) == {4}
    assert set(ran) == {0}
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi3"])
def test_filling_rows_and_pieces_changes_no_sample(family, monkeypatch):
    task = Task(family)
    expected = samples(measured(task))
    longest = max(map(task.runner.length, range(len(task.facts) + len(task.retains))))
    fill_rows(monkeypatch, longest + 3)
    assert task.runner.width([0]) == longest + 3
    torch.testing.assert_close(samples(measured(task)), expected, rtol=1e-4, atol=1e-6)


def test_draws_differ_and_their_mean_is_taken():
    one, two = samples(measured(Task(), seed=0)), samples(measured(Task(), seed=0, draws=2))
    rows = len(one)
    # The first draw is the same.
    torch.testing.assert_close(two[:rows] * 2**0.5, one, rtol=1e-4, atol=1e-7)
    assert not torch.equal(two[:rows], two[rows:])


def test_the_predicted_divergence_is_the_divergence():
    task = Task()
    curvature = measured(task, draws=400)
    generator = torch.Generator().manual_seed(0)
    change = [0.01 * torch.randn(p.shape, generator=generator) for p in task.parameters]
    flat = torch.cat(change)
    predicted = float(0.5 * flat @ whole(curvature) @ flat)
    before = torch.cat(task.read(task.retains)).log_softmax(-1)
    with torch.no_grad():
        for parameter, by in zip(task.parameters, change, strict=True):
            parameter += by
    after = torch.cat(task.read(task.retains)).log_softmax(-1)
    happened = float((before.exp() * (before - after)).sum(-1).mean())
    # 400 draws leave a few percent of chance; what is cut off beyond the second order is far less.
    assert predicted == pytest.approx(happened, rel=0.2)


def test_sketches_make_up_the_fisher_information_of_a_distribution():
    chances = torch.tensor([0.1, 0.0, 0.6, 0.3])
    # All signs there are, so that the mean is no estimate.
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
    slopes = _sketch(chances.expand(16, 4), every)
    torch.testing.assert_close(slopes.T @ slopes / 16, chances.diag() - chances[:, None] * chances)
    # Adding to all logits changes nothing, so no slope may point there.
    torch.testing.assert_close(slopes.sum(-1), torch.zeros(16))
    torch.testing.assert_close((slopes**2).sum(-1).mean(), 1 - chances.square().sum())


def test_signs_are_as_often_plus_as_minus():
    drawn = _signs(torch.Generator().manual_seed(0), 200, 100).float()
    assert drawn.abs().eq(1).all()
    # Three standard deviations of a mean of 20,000.
    assert drawn.mean().abs() < 0.022


def test_rows_have_signs_of_their_own():
    rows = [EncodedAnswer((3, 4, 5), 2), EncodedAnswer((3, 6, 5), 2), EncodedAnswer((3, 4, 5), 1)]
    drawn = {tuple(_signs(_generator(seed, row), 1, 64)[0].tolist()) for row in rows for seed in (0, 1)}
    assert len(drawn) == 6


def test_a_row_has_its_own_signs_whatever_passes_with_it():
    together, alone = measured(Task(), draws=2), measured(Task(), draws=2, tokens=1)
    torch.testing.assert_close(samples(together), samples(alone), rtol=1e-3, atol=1e-6)


def test_the_seed_and_nothing_else_draws_signs():
    state = torch.random.get_rng_state()
    one, again, other = (whole(measured(Task(), seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_logits_met_are_given_in_place():
    task, seen = Task(), []
    measured(task, draws=2, tokens=1, on_logits=lambda *met: seen.append(met))
    expected = task.read(task.retains)
    # Once, however often signs are drawn.
    assert sorted(place for place, _ in seen) == list(range(len(expected)))
    for place, logits in seen:
        torch.testing.assert_close(logits, expected[place], rtol=1e-4, atol=1e-5)


def test_no_row_is_no_curvature():
    task = Task()
    found = measure_curvature(task.runner, layers_of(task), ADAPTER, [], [])
    assert [len(own) for own in found.gradients] == [0] * len(layers_of(task))
    assert all((made > 0).all() for made in found.metric(1.0).natural([torch.ones_like(p) for p in task.parameters]))


def test_curvatures_add_and_scale():
    one = Curvature((torch.eye(2), torch.ones(2, 1)))
    both = one + 2.0 * one
    torch.testing.assert_close(whole(both), 3 * whole(one))


def test_the_natural_gradient_by_hand():
    # One sample across two layers of one coordinate each: squares 4 and 4, damping half their mean, so 6 and 6 on the
    # diagonal, and the sample ten times: [[46, 40], [40, 46]].
    metric = Curvature((torch.tensor([[2.0]]), torch.tensor([[2.0]]))).metric(damping=0.5)
    full = torch.tensor([[46.0, 40.0], [40.0, 46.0]])
    gradient = torch.tensor([43.0, -43.0])
    natural = torch.cat(metric.natural(list(gradient.split(1))))
    torch.testing.assert_close(natural, torch.linalg.solve(full, gradient))
    torch.testing.assert_close(torch.cat(metric.apply(list(natural.split(1)))), gradient)


def test_a_step_all_but_avoids_what_was_sampled():
    generator = torch.Generator().manual_seed(0)
    curvature = Curvature((torch.randn(3, 20, generator=generator), torch.randn(3, 30, generator=generator)))
    gradient = torch.randn(50, generator=generator)
    step = torch.cat(curvature.metric(1.0).natural(list(gradient.split([20, 30]))))
    plain = gradient / torch.cat(curvature.metric(1.0).diagonals)
    assert (samples(curvature) @ step).norm() < 0.05 * (samples(curvature) @ plain).norm()
    assert step @ gradient > 0.5 * (plain @ gradient)


def test_a_metric_of_ones_changes_nothing():
    parameters = [torch.randn(3), torch.randn(2, 4)]
    metric = Metric.of([torch.ones_like(parameter) for parameter in parameters])
    for turned in (metric.natural, metric.apply):
        for given, made in zip(parameters, turned(parameters), strict=True):
            assert torch.equal(made, given)


def test_more_samples_than_coordinates_are_solved_exactly():
    generator = torch.Generator().manual_seed(0)
    curvature = Curvature((torch.randn(400, 3, generator=generator), torch.randn(400, 5, generator=generator)))
    metric = curvature.metric(1.0)
    full = torch.diag(torch.cat(metric.diagonals)) + 10 * whole(curvature)
    gradient = torch.randn(8, generator=generator)
    natural = torch.cat(metric.natural(list(gradient.split([3, 5]))))
    torch.testing.assert_close(natural, torch.linalg.solve(full, gradient), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(value, monkeypatch):
    task = Task()
    bias = torch.zeros(task.runner.head.out_features)
    bias[3] = value
    task.runner.head.register_forward_hook(lambda _, __, logits: logits + bias)
    with pytest.raises(ModelError, match="not finite"):
        measured(task)


def test_tokens_that_are_not_laid_out_by_rows_are_refused():
    task = Task()
    layers = layers_of(task)
    with _row_gradients(task.model, layers, ADAPTER) as found:
        found.rows, found.tokens = 2, 5
        with pytest.raises(ArchitectureError, match=r"; model\.layers\.\d\.[a-z_.]+ does not, .* token by token"):
            layers[0].apply_scale(torch.ones(7, layers[0].width), [ADAPTER])


def test_a_layer_that_runs_twice_in_a_pass_adds_up():
    task = Task()
    layers, found = layers_of(task), []
    x = torch.randn(2, 5, layers[0].width, generator=torch.Generator().manual_seed(0))
    for times in (1, 2):
        with _row_gradients(task.model, layers, ADAPTER) as rows:
            rows.rows, rows.tokens = 2, 5
            sum(layers[0].apply_scale(x, [ADAPTER]).square().sum() for _ in range(times)).backward()
        found.append(rows.gradients[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], 2 * found[0])


def test_what_nothing_reached_still_gives_steps():
    [made] = Curvature((torch.zeros(3, 2),)).metric(1.0).natural([torch.ones(2)])
    assert torch.isfinite(made).all()
