import copy

import pytest
import torch
from torch import nn

from peft_surgical.running.replicas import Replica
from peft_surgical.running.workers import Worker, gather, tokens_of, workers_of

from .test_training import Task, span
from .threads import threads


def with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros(2)) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    return Worker(None, parameters, Replica(None))


def test_gradients_add_up_in_the_first():
    first, second = with_gradients([1.0, 2.0], None, None), with_gradients([10.0, 0.5], [3.0, 4.0], None)
    gather([first, second])
    assert [own.grad if own.grad is None else own.grad.tolist() for own in first.parameters] == [
        [11.0, 2.5],
        [3.0, 4.0],
        None,
    ]
    assert all(own.grad is None for own in second.parameters)
    gather([first])
    assert first.parameters[0].grad.tolist() == [11.0, 2.5]


def test_what_no_replica_has_of_its_own_keeps_its_gradient():
    own = nn.Parameter(torch.zeros(2))
    own.grad = torch.tensor([1.0, 2.0])
    gather([Worker(None, [own], Replica(None)) for _ in range(2)])
    assert own.grad.tolist() == [1.0, 2.0]


def test_each_runs_the_same_rows_through_modules_of_its_own():
    task = Task()
    with threads(2):
        first, second = workers_of(task.runner, task.parameters, None)
    assert first.runner.model is task.runner.model
    assert second.runner.model is second.replica.model is not task.runner.model
    assert all(a is b for a, b in zip(first.parameters, task.parameters, strict=True))
    spans = [span(row) for row in task.facts]
    rows = range(len(task.facts))
    for worker in (first, second):
        worker.runner.logits(rows, spans).logsumexp(-1).sum().backward()
    for a, b in zip(first.parameters, second.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
        assert a.grad.abs().max() > 0


@pytest.mark.parametrize(("tokens", "count"), [(None, 3), (800, 3), (767, 2), (512, 2), (511, 1), (1, 1)])
def test_few_tokens_are_not_shared_out(tokens, count):
    task = Task()
    with threads(3):
        assert len(workers_of(task.runner, task.parameters, tokens)) == count


def test_a_pass_is_not_shared_where_most_of_it_is_what_all_rows_begin_with():
    task = Task()
    task.runner.prefix = (1,) * 200
    with threads(3):
        assert [len(workers_of(task.runner, task.parameters, tokens)) for tokens in (799, 800)] == [1, 2]


def test_each_gets_as_many_tokens_as_a_processor_gains_by():
    task = Task()
    worker = Worker(task.runner, task.parameters, Replica(task.model))
    assert [tokens_of(None, [worker] * count) for count in (1, 2, 4)] == [448, 448, 896]
    task.model.to(torch.bfloat16)
    assert [tokens_of(None, [worker] * count) for count in (1, 2, 4)] == [640, 640, 1280]
    assert tokens_of(7, [worker] * 2) == 7
    elsewhere = copy.copy(task.runner)
    elsewhere.device = torch.device("meta")
    assert tokens_of(None, [Worker(elsewhere, [], worker.replica)]) is None
