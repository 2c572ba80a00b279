import math

import pytest
import torch
from torch import nn

from peft_surgical.architectures import architecture_of
from peft_surgical.errors import ModelError
from peft_surgical.running.beginnings import shared_prefix
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.staging.curvature import Curvature, Metric
from peft_surgical.staging.recipe import Recipe
from peft_surgical.staging.retain import TopDistribution
from peft_surgical.staging.training import _pull, _spent, span, train
from peft_surgical.texts.prompts import EncodedAnswer

from .adapters import deltas, tiny_peft
from .conftest import fingerprint
from .tiny import tiny_ids

COMPONENTS = ("L1.mlp", "L1.head.2", "L2.mlp")


def rows(count, seed):
    """Sequences of several lengths that begin alike, with answers of several lengths."""
    start = tiny_ids(1, 4, seed=99)[0].tolist()
    lengths = [(3 + i % 3, 1 + i % 2) for i in range(count)]
    return [
        EncodedAnswer((*start, *tiny_ids(1, prompt + answer, seed=seed + i)[0].tolist()), 4 + prompt)
        for i, (prompt, answer) in enumerate(lengths)
    ]


class Task:
    """A tiny model with an adapter at the identity, answers to learn and answers to keep, some of them not run."""

    def __init__(self, family="llama", facts=5, retains=6, not_run=(), dtype=torch.float32):
        self.model = tiny_peft(family, COMPONENTS, dtype=dtype, perturbed=False)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.facts, self.retains = rows(facts, 100), rows(retains, 200)
        inner = self.model.get_base_model()
        every = [*self.facts, *self.retains]
        prefix = shared_prefix([row.ids for row in every], [span(row)[0] for row in every])
        layers = inner.get_submodule(architecture_of(inner.config.model_type).layers)
        self.runner = SuffixRunner(inner, layers, 1, every[0].ids[:prefix])
        run = [row for i, row in enumerate(self.retains) if i not in not_run]
        self.runner.add([row.ids for row in (*self.facts, *run)])
        base = [TopDistribution.of(logits) for logits in self.read(self.retains)]
        self.base = [None if i in not_run else own for i, own in enumerate(base)]

    @torch.no_grad()
    def read(self, sequences):
        """Logits that predict the answers, from plain forward passes."""
        return [self.model(torch.tensor([row.ids])).logits[0, slice(*span(row))] for row in sequences]

    def losses(self):
        """Of each answer, by hand."""
        return [
            float(nn.functional.cross_entropy(logits, torch.tensor(row.ids[row.answer_start :])))
            for logits, row in zip(self.read(self.facts), self.facts, strict=True)
        ]

    def kl(self):
        """Of all retained positions, by hand."""
        parts = [base.kl(logits) for base, logits in zip(self.base, self.read(self.retains), strict=True)]
        return float(torch.cat(parts).mean())

    def train(self, recipe, **options):
        """Every direction costs alike unless a metric is given."""
        alike = Metric.of([torch.ones_like(p) for p in self.parameters])
        options = {"metric": alike, "seed": 0, "progress": False, "description": "training", **options}
        return train(self.runner, self.parameters, self.facts, self.retains, self.base, recipe, **options)


ALL = {"fact_batch": 99, "far_batch": 99, "step_kl": 0.1, "pull": 0.0}


def test_span():
    assert span(EncodedAnswer((5, 6, 7, 8, 9), 3)) == (2, 4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
def test_training_lowers_the_loss_and_says_what_it_saw(family):
    task, seen = Task(family), []
    before = task.losses()
    record = task.train(Recipe(steps=12, **ALL), on_step=lambda *step: seen.append(step))
    assert [step for step, _, _ in seen] == list(range(12))
    counts = torch.tensor([len(row.ids) - row.answer_start for row in task.facts], dtype=torch.float)
    assert seen[0][1] == pytest.approx(float((torch.tensor(before) * counts).sum() / counts.sum()), rel=1e-4)
    assert seen[0][2] == pytest.approx(0, abs=1e-5)
    assert seen[-1][1] < 0.95 * seen[0][1]
    assert max(kl for *_, kl in seen) > 1e-3
    after = task.losses()
    assert sum(after) < 0.95 * sum(before)
    assert (record.steps, record.reached) == (12, False)
    assert record.loss < sum(before) / len(before)
    assert record.worst >= record.loss
    assert record.seconds >= 0
    assert all(parameter.grad is None for parameter in task.parameters)


def test_the_record_is_of_the_last_look():
    task, seen = Task(), []

    def look(_step, _loss, kl):
        seen.append((task.losses(), task.kl()))
        assert kl == pytest.approx(seen[-1][1], rel=1e-3, abs=1e-6)

    record = task.train(Recipe(steps=4, **ALL), on_step=look)
    losses, _ = seen[-1]
    assert record.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert record.worst == pytest.approx(max(losses), rel=1e-4)
    smooth = seen[0][1]
    for _, kl in seen[1:]:
        smooth = 0.7 * smooth + 0.3 * kl
    assert record.kl == pytest.approx(smooth, rel=1e-3, abs=1e-6)


def test_training_stops_when_both_targets_are_reached():
    start = max(Task().losses())
    recipe = {"steps": 40, "target_loss": start - 0.3, **ALL}
    task = Task()
    record = task.train(Recipe(target_kl=100.0, **recipe))
    assert record.reached
    assert 0 < record.steps < 40
    assert record.worst <= start - 0.3
    assert max(task.losses()) == pytest.approx(record.worst, rel=1e-4)
    # The divergence has a say too.
    record = Task().train(Recipe(target_kl=-1.0, **{**recipe, "steps": record.steps + 3}))
    assert not record.reached
    assert record.worst <= start - 0.3


def test_the_divergence_that_lets_training_stop_is_the_smoothed_one():
    task, seen = Task(), []
    task.train(Recipe(steps=4, **ALL), on_step=lambda *_: seen.append((max(task.losses()), task.kl())))
    worst, kls = zip(*seen, strict=True)
    smooth = kls[0]
    for kl in kls[1:]:
        smooth = 0.7 * smooth + 0.3 * kl
    assert worst[3] < min(worst[:3])
    assert smooth < 0.9 * kls[3]
    targets = {"target_loss": (worst[3] + min(worst[:3])) / 2, "target_kl": (smooth + kls[3]) / 2}
    record = Task().train(Recipe(steps=4, **targets, **ALL))
    assert (record.steps, record.reached) == (3, True)


def test_a_step_follows_its_own_gradient_and_none_before():
    found = []
    for parts in ((2,), (1, 1)):
        task = Task()
        for steps in parts:
            for parameter in task.parameters:
                parameter.grad = None
            task.train(Recipe(steps=steps, **ALL))
        found.append(torch.cat(list(deltas(task.model).values())))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_a_loss_has_more_digits_than_the_logits():
    task, seen = Task(facts=1, dtype=torch.bfloat16), []
    task.train(Recipe(steps=1), on_step=lambda _step, loss, _kl: seen.append(loss))
    assert seen != [float(torch.tensor(loss).bfloat16()) for loss in seen]


def test_what_is_reached_from_the_start_takes_no_step():
    task = Task()
    before = deltas(task.model)
    record = task.train(Recipe(target_loss=99.0, **ALL))
    assert (record.steps, record.reached) == (0, True)
    assert all(torch.equal(delta, before[name]) for name, delta in deltas(task.model).items())


def test_every_prompt_is_seen_before_targets_count():
    record = Task(facts=6).train(Recipe(steps=9, target_loss=99.0, target_kl=99.0, fact_batch=2))
    assert (record.steps, record.reached) == (2, True)
    # The worst is the worst that was seen.
    assert Task(facts=6).train(Recipe(steps=1, fact_batch=2)).worst < math.inf


@pytest.mark.parametrize("retains", [0, 6])
def test_the_seed_decides_all(retains):
    recipe = Recipe(steps=4, fact_batch=2, far_batch=2)
    results = []
    for seed in (3, 3, 4, -3):
        task = Task(retains=retains)
        state = torch.random.get_rng_state()
        task.train(recipe, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        results.append(torch.cat(list(deltas(task.model).values())))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[3])


def test_only_the_given_parameters_change():
    task = Task()
    given, other = task.parameters[0], task.parameters[1]
    kept = [(p, p.detach().clone()) for p in task.model.parameters() if p is not given]
    before = given.detach().clone()
    task.parameters = [given]
    task.train(Recipe(steps=3, **ALL))
    assert not torch.equal(given, before)
    assert any(p is other for p, _ in kept)
    assert all(torch.equal(p, copy) for p, copy in kept)


def test_nothing_to_retain_and_no_step_to_take():
    task = Task(retains=0)
    before = task.losses()
    record = task.train(Recipe(steps=6))
    assert record.kl is None
    assert sum(task.losses()) < sum(before)
    task = Task()
    before = fingerprint(task.model)
    record = task.train(Recipe(steps=0))
    assert (record.steps, record.reached, record.loss, record.worst) == (0, False, math.inf, math.inf)
    assert fingerprint(task.model) == before


@pytest.mark.parametrize(("near", "batches"), [(2, {"far_batch": 0}), (0, {"near_batch": 0})])
def test_the_divergence_is_of_near_and_of_far_rows(near, batches):
    assert Task().train(Recipe(steps=2, **batches), near=near).kl > 0


@pytest.mark.parametrize(("near", "batches"), [(0, {"near_batch": 5}), (2, {"near_batch": 0})])
def test_no_divergence_is_told_of_what_no_step_looked_at(near, batches):
    record = Task().train(Recipe(steps=2, far_batch=0, **batches), near=near)
    assert (record.steps, record.kl) == (2, None)


def test_what_is_retained_holds_the_model_back():
    kl = {}
    for weight in (0.0, 50.0):
        task = Task()
        task.train(Recipe(steps=10, retain_weight=weight, **ALL))
        kl[weight] = task.kl()
    assert kl[50.0] < 0.5 * kl[0.0]


def test_an_answer_that_is_likely_enough_pulls_no_more():
    task = Task(retains=0)
    before = deltas(task.model)
    task.train(Recipe(steps=2, margin=99.0))
    assert all(torch.equal(delta, before[name]) for name, delta in deltas(task.model).items())


@pytest.mark.parametrize("share", [None, 1e6])
def test_a_step_is_as_long_as_its_predicted_divergence_says(share):
    # In the identity metric the predicted divergence is half the squared length.
    task = Task()
    task.train(Recipe(steps=1, **{**ALL, "step_kl": 0.02}), share_of_loss=share)
    moved = torch.cat(list(deltas(task.model).values()))
    torch.testing.assert_close(moved.square().sum() / 2, torch.tensor(0.02), rtol=1e-4, atol=0)


def test_a_step_takes_away_no_more_than_its_share_of_the_loss():
    task, losses = Task(retains=0), []
    recipe = Recipe(steps=2, **{**ALL, "step_kl": 1e3, "margin": 0.0, "pull": 0.0})
    task.train(recipe, share_of_loss=0.01, on_step=lambda _step, loss, _kl: losses.append(loss))
    # Of so small a step the prediction holds.
    assert losses[1] / losses[0] == pytest.approx(0.99, abs=1e-3)


def test_the_spent_shrinks_after_it_was_held():
    spent = [_spent(step, Recipe(step_kl=8.0, hold=2, settle=0.5)) for step in range(5)]
    assert spent == [8, 8, 4, 2, 1]


def test_steps_follow_the_metric():
    task = Task(retains=0)
    diagonals = [torch.full_like(p, 100.0 if i else 0.01).detach() for i, p in enumerate(task.parameters)]
    metric = Metric.of(diagonals, [p.detach().new_zeros(0, len(p)) for p in task.parameters])
    task.train(Recipe(steps=1, **ALL), metric=metric)
    first, *others = [p.detach().norm() for p in task.parameters]
    assert all(first > 100 * other for other in others)


def test_the_pull_leads_back():
    task = Task(retains=0)
    with torch.no_grad():
        for p in task.parameters:
            p.fill_(0.2)
    task.train(Recipe(steps=1, **{**ALL, "step_kl": 1e-4, "margin": 99.0, "pull": 1.0}))
    for p in task.parameters:
        assert (p < 0.2).all()
        torch.testing.assert_close(p.detach(), p.detach().mean().expand_as(p))


def test_nothing_pulls_where_nothing_is_changed():
    task = Task(retains=0)
    with torch.no_grad():
        for p in task.parameters:
            p.fill_(0.2)
    origin = [p.detach().clone() for p in task.parameters]
    task.train(Recipe(steps=2, margin=99.0), origin=origin)
    assert all(torch.equal(p, own) for p, own in zip(task.parameters, origin, strict=True))


def test_training_sets_out_from_the_share_of_the_frozen_change_that_is_left():
    for scale, undo, expected in (
        (1.5, 0.0, 1.5),
        (1.5, 0.5, 1.25),
        (1.5, 1.0, 1.0),
        (0.1, 1.0, 1.0),
        (-0.5, 0.5, 0.25),
        # So near zero, it stays as it is.
        (0.04, 1.0, 0.04),
        (-0.04, 1.0, -0.04),
    ):
        task = Task()
        frozen = [torch.full_like(p, scale) for p in task.parameters]
        with torch.no_grad():
            for p in task.parameters:
                p.fill_(0.2)
        task.train(Recipe(steps=0, undo=undo), frozen=frozen)
        for p in task.parameters:
            torch.testing.assert_close((1 + p.detach()) * scale, torch.full_like(p, 1.2 * expected))


def test_the_pull_is_the_slope_of_the_divergence_from_where_nothing_is_changed():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shapes):
        return [torch.randn(shape, generator=generator) for shape in shapes]

    parameters, origin = [nn.Parameter(p) for p in drawn(3, 2)], drawn(3, 2)
    frozen = [1.5 + 0.2 * scale for scale in drawn(3, 2)]
    metric = Curvature(tuple(drawn((4, 3), (4, 2)))).metric(0.5)
    for p in parameters:
        p.grad = torch.ones_like(p)
    _pull(parameters, frozen, origin, metric, 0.7)
    changes = [s * (1 + p - o) - 1 for p, s, o in zip(parameters, frozen, origin, strict=True)]
    # Of a quadratic form the slope is what the metric makes of the change.
    slopes = metric.apply([change.detach() for change in changes])
    divergence = sum((change * slope).sum() for change, slope in zip(changes, slopes, strict=True))
    for p, expected in zip(parameters, torch.autograd.grad(0.7 * divergence, parameters), strict=True):
        torch.testing.assert_close(p.grad, 1 + expected)


def test_a_scale_of_zero_is_not_divided_by():
    task = Task()
    task.train(Recipe(steps=0), frozen=[torch.zeros_like(p) for p in task.parameters])
    assert all((p == 0).all() for p in task.parameters)


@pytest.mark.parametrize("retains", [0, 6])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_logits_that_are_not_finite_are_refused_before_a_step(value, retains):
    task = Task(retains=retains)
    task.model.get_base_model().lm_head.weight.data[7] = value
    before = deltas(task.model)
    with pytest.raises(ModelError, match=r"the model gives logits that are not finite in torch\.float32"):
        task.train(Recipe(steps=3, **ALL))
    assert all(torch.equal(delta, before[name]) for name, delta in deltas(task.model).items())


def test_a_divergence_that_is_not_finite_is_refused_before_a_step():
    task = Task()
    task.base[2].log_probs[0] = math.nan
    before = deltas(task.model)
    with pytest.raises(ModelError, match=r"the model gives logits that are not finite in torch\.float32"):
        task.train(Recipe(steps=3, **ALL))
    assert all(torch.equal(delta, before[name]) for name, delta in deltas(task.model).items())


def test_a_last_step_into_the_infinite_is_noticed():
    task = Task()
    parameter = task.parameters[0]

    def overflow(*_):
        parameter.grad = torch.full_like(parameter, math.inf)

    with pytest.raises(ModelError, match="not finite"):
        task.train(Recipe(steps=1, **ALL), on_step=overflow)
