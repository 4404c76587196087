"""No gradients inside: no graph, and `backward()` in any spelling moves no `.grad`."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.autograd import backward as imported_early

from evalmode import evaluating
from evalmode.errors import BackwardInEvaluationError, EvalmodeError, UsageError


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))


def built(model):
    return model(torch.randn(6, 3)).sum()


class Loss(torch.Tensor):
    """A subclass of tensor."""


SPELLINGS = {
    "tensor.backward": lambda loss: loss.backward(),
    "Tensor.backward": torch.Tensor.backward,
    "autograd.backward": torch.autograd.backward,
    "autograd.backward of several": lambda loss: torch.autograd.backward([loss, loss * 1], retain_graph=True),
    "imported early": imported_early,
    "with inputs": lambda loss: loss.backward(inputs=[loss.leaf]),
    "create_graph": lambda loss: loss.backward(create_graph=False, retain_graph=True),
    "scaled": lambda loss: torch.amp.GradScaler("cpu", enabled=False).scale(loss).backward(),
    "subclass": lambda loss: loss.as_subclass(Loss).backward(),
    "with a gradient": lambda loss: loss.backward(gradient=torch.ones(())),
    "enabled again": lambda loss: torch.enable_grad()(loss.backward)(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("on_backward", ["error", "ignore"])
@pytest.mark.parametrize("inference_mode", [False, True])
def test_backward_inside_on_a_graph_built_before_has_no_effect(model, spelling, on_backward, inference_mode):
    loss = built(model)
    loss.leaf = model[0].weight
    with evaluating(model, on_backward=on_backward, inference_mode=inference_mode):
        if on_backward == "error":
            with pytest.raises(BackwardInEvaluationError, match="inside evaluation") as caught:
                SPELLINGS[spelling](loss)
            assert "gradients=True" in str(caught.value) and "fix:" in str(caught.value)
        else:
            assert SPELLINGS[spelling](loss) is None
        assert all(p.grad is None for p in model.parameters())
    loss.backward()  # the graph is whole
    assert all(p.grad is not None for p in model.parameters())


def test_gradients_that_were_there_do_not_move(model):
    built(model).backward()
    loss = built(model)
    grads = [p.grad for p in model.parameters()]
    values = [g.clone() for g in grads]
    with evaluating(model, on_backward="ignore"):
        loss.backward()
    assert all(p.grad is g and torch.equal(g, v) for p, g, v in zip(model.parameters(), grads, values, strict=True))


def test_another_model_s_backward_in_the_same_thread_is_evaluation_too(model):
    other = nn.Linear(2, 2)
    with evaluating(model), torch.enable_grad(), pytest.raises(BackwardInEvaluationError):
        other(torch.ones(1, 2)).sum().backward()
    assert other.weight.grad is None


def test_outputs_have_no_graph(model):
    with evaluating(model):
        assert not model(torch.randn(2, 3)).requires_grad
    with evaluating(model, inference_mode=True):
        assert model(torch.randn(2, 3)).is_inference()
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_after_the_block_nothing_of_the_guard_is_left(model):
    engine = torch.autograd._engine_run_backward
    with evaluating(model):
        with evaluating(model):
            pass
        assert torch.autograd._engine_run_backward is not engine
    assert torch.autograd._engine_run_backward is engine


def test_a_guard_of_someone_else_put_in_inside_stays(model):
    engine = torch.autograd._engine_run_backward
    calls = []
    try:
        with evaluating(model):
            inner = torch.autograd._engine_run_backward

            def logging(*args, **kwargs):
                calls.append(1)
                return inner(*args, **kwargs)

            torch.autograd._engine_run_backward = logging
            with pytest.raises(BackwardInEvaluationError):
                torch.autograd.backward(torch.ones((), requires_grad=True) * 1)
        loss = built(model)
        loss.backward()
        assert len(calls) == 2 and model[0].weight.grad is not None
        with evaluating(model), pytest.raises(BackwardInEvaluationError):
            loss.backward()
    finally:
        torch.autograd._engine_run_backward = engine
    with evaluating(model), pytest.raises(BackwardInEvaluationError):
        loss.backward()
    torch.autograd._engine_run_backward = engine


def test_autograd_grad_is_not_disturbed(model):
    loss = built(model)
    expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    with evaluating(model):
        got = torch.autograd.grad(loss, list(model.parameters()))
        with torch.enable_grad():
            x = torch.ones(2, requires_grad=True)
            assert torch.equal(torch.autograd.grad((x * x).sum(), x)[0], torch.full((2,), 2.0))
            assert torch.equal(torch.func.grad(lambda v: (v * v).sum())(x), torch.full((2,), 2.0))
            assert torch.autograd.functional.jacobian(lambda v: v * 2, x).shape == (2, 2)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_training_in_another_thread_is_not_disturbed(model):
    other = nn.Linear(2, 1)
    weight = other.weight.detach().clone()
    failures = []

    def train():
        try:
            optimiser = torch.optim.SGD(other.parameters(), lr=0.1)
            loss = other(torch.ones(1, 2)).sum()
            assert loss.requires_grad
            loss.backward()
            optimiser.step()
        except BaseException as error:
            failures.append(error)

    with evaluating(model):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        with pytest.raises(BackwardInEvaluationError):
            imported_early(torch.ones((), requires_grad=True) * 1)
    assert not failures
    torch.testing.assert_close(other.weight.detach(), weight - 0.1)


def test_training_here_is_not_disturbed_by_an_evaluation_in_another_thread(model):
    entered, finish = threading.Event(), threading.Event()

    def evaluate():
        with evaluating(nn.Linear(1, 1)):
            entered.set()
            finish.wait(30)

    thread = threading.Thread(target=evaluate)
    thread.start()
    try:
        assert entered.wait(30)
        assert torch.is_grad_enabled()
        built(model).backward()
    finally:
        finish.set()
        thread.join()
    assert model[0].weight.grad is not None


def test_grad_mode_that_was_off_stays_off(model):
    with torch.no_grad():
        with evaluating(model):
            pass
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        with evaluating(model, inference_mode=True):
            pass
        with evaluating(model):
            assert torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()


# ---------------------------------------------------------------------------------------------- gradients=True


def test_gradients_true_is_evaluation_behaviour_with_gradients(model):
    built(model).backward()
    grads = [p.grad for p in model.parameters()]
    values = [g.clone() for g in grads]
    x = torch.randn(5, 3)
    inputs = x.clone().requires_grad_()
    with evaluating(model, gradients=True):
        assert not any(m.training for m in model.modules())
        first = model(inputs)
        first.sum().backward()
        assert torch.equal(model(x), first.detach())  # no dropout
        assert model[0].weight.grad is not None and model[0].weight.grad is not grads[0]
    reference = model.eval()(again := x.clone().requires_grad_()).sum()
    torch.testing.assert_close(inputs.grad, torch.autograd.grad(reference, again)[0])
    assert all(p.grad is g and torch.equal(g, v) for p, g, v in zip(model.parameters(), grads, values, strict=True))


def test_gradients_that_were_none_are_none_again_also_after_an_error(model):
    with pytest.raises(ValueError, match="x"), evaluating(model, gradients=True):
        built(model).backward()
        assert model[0].weight.grad is not None
        raise ValueError("x")
    assert all(p.grad is None for p in model.parameters())


def test_gradients_true_works_where_grad_mode_was_off(model):
    with torch.no_grad(), evaluating(model, gradients=True):
        x = torch.randn(2, 3, requires_grad=True)
        model(x).sum().backward()
        assert x.grad is not None
    assert torch.is_grad_enabled()


def test_gradients_true_nested_in_plain_and_plain_in_gradients_true(model):
    with evaluating(model):
        with evaluating(model, gradients=True):
            built(model).backward()
        with pytest.raises(BackwardInEvaluationError):
            torch.ones((), requires_grad=True).backward()
        assert not torch.is_grad_enabled()
        assert all(p.grad is None for p in model.parameters())
    with evaluating(model, gradients=True):
        with evaluating(model), pytest.raises(BackwardInEvaluationError):
            torch.ones((), requires_grad=True).backward()
        assert torch.is_grad_enabled()
        built(model).backward()
    assert all(p.grad is None for p in model.parameters())


def test_overlapping_gradient_evaluations_give_back_with_the_last(model):
    built(model).backward()
    grads = [p.grad for p in model.parameters()]
    first, second = evaluating(model, gradients=True), evaluating(model[0], gradients=True)
    first.__enter__()
    second.__enter__()
    built(model).backward()
    first.__exit__(None, None, None)
    assert model[3].weight.grad is grads[4]
    second.__exit__(None, None, None)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


def test_gradients_and_inference_mode_together_are_an_error(model):
    with pytest.raises(UsageError, match="inference"):
        evaluating(model, gradients=True, inference_mode=True)
    with torch.inference_mode(), pytest.raises(EvalmodeError, match="inference"), evaluating(model, gradients=True):
        raise AssertionError("entered")
    assert all(m.training for m in model.modules())


def test_hidden_modules_gradients_are_given_back_too(model):
    model.held = [nn.Linear(1, 1)]
    with evaluating(model, gradients=True):
        model.held[0](model(torch.randn(2, 3))).sum().backward()
        assert model.held[0].weight.grad is not None
    assert model.held[0].weight.grad is None


def test_a_forward_pass_inside_runs_no_code_of_ours(model):
    import sys

    seen = []
    model.eval()
    x = torch.randn(2, 3)
    with evaluating(model):
        sys.setprofile(lambda frame, event, arg: seen.append(frame.f_code.co_filename))
        try:
            model(x)
        finally:
            sys.setprofile(None)
    assert seen and not any("evalmode" in name for name in seen if "tests" not in name)
