"""`check` leaves the model, the batch and the process as they were: the whole zoo, in whatever state it is found.

The oracle is a picture of every object that the modules hold, by identity and by contents, taken without `evalmode`.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import random
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.zoo.case import Case, map_tensors
from tests.zoo.clean import CLEAN, build
from tests.zoo.defects import KINDS, Planted, plant
from torch import nn
from torch.nn.modules import module as torch_module

import evalmode
from evalmode.errors import EvalmodeError

HOSTS = ("mlp", "gru", "cnn", "padded_sequences")
WRITING = [kind for kind, fault in KINDS.items() if fault.clause in {"no-state-change", "no-gradients", "restores"}]
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def picture(value: Any, seen: dict[int, Any]) -> Any:
    """What `value` is and holds; `seen` keeps every object alive, so that no `id` is used twice."""
    if isinstance(value, PLAIN):
        return (type(value).__name__, repr(value))
    if isinstance(value, torch.Generator):
        return (id(value), bytes(value.get_state().tolist()))
    if id(value) in seen:
        return id(value)
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        contents = value.detach().clone().resolve_conj().contiguous().reshape(-1)
        bits = contents.view(torch.uint8).numpy().tobytes()
        kept = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.requires_grad)
        return (id(value), kept, bits, picture(value.grad, seen) if value.is_leaf else None)
    if isinstance(value, nn.Module | types.SimpleNamespace):
        return (id(value), picture(vars(value), seen))
    if isinstance(value, Mapping):
        return (id(value), [(repr(key), picture(item, seen)) for key, item in value.items()])
    if isinstance(value, list | tuple | collections.deque):
        return (id(value), [picture(item, seen) for item in value])
    if isinstance(value, set | frozenset):
        return (id(value), sorted(map(repr, value)))
    return id(value)


def process() -> dict[str, Any]:
    registered = {name: value for name, value in vars(torch_module).items() if name.startswith("_global_")}
    hooks = {name: len(value) for name, value in registered.items() if isinstance(value, dict)}
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "settings": (torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        "hooks": hooks,
    }


def checked(case: Case, model: nn.Module, probes: str) -> None:
    """Check, and compare all that can be seen before and after."""
    alive: dict[int, Any] = {}
    batch = map_tensors(case.batch, torch.clone)
    given_batch = picture(batch, alive)
    before, outside = picture(model, alive), process()
    with contextlib.suppress(EvalmodeError):  # a defect may leave the model unable to run on other batches
        evalmode.check(model, batch, probes=probes, **case.options)
    assert process() == outside
    assert picture(batch, {}) == given_batch
    assert picture(model, {}) == before


def arranged(model: nn.Module, seed: int, *, gradients: bool) -> None:
    """Some flags set, some frozen, some with a gradient, as in the middle of a training run."""
    chooser = random.Random(seed)
    for module in model.modules():
        if chooser.random() < 0.3:
            module.training = not module.training
    for parameter in model.parameters():
        parameter.requires_grad_(chooser.random() < 0.7)
        if gradients and chooser.random() < 0.5:
            parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_model_in_the_middle_of_training_is_left_as_it_was(name: str) -> None:
    case = build(name)
    case.model(**case.batch) if isinstance(case.batch, dict) else None  # transformers sets hooks on the first pass
    arranged(case.model, 1, gradients=True)
    checked(case, case.model, "fast")


@pytest.mark.parametrize("kind", WRITING)
def test_a_model_that_writes_to_itself_is_left_as_it_was(kind: str) -> None:
    for name in HOSTS:
        case = build(name)
        planted = plant(case, kind)
        if isinstance(planted, Planted):
            checked(case, planted.model, "fast")
            return
    raise AssertionError(f"{kind} finds no place")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    name=st.sampled_from(HOSTS),
    seed=st.integers(0, 100),
    gradients=st.booleans(),
    grad_mode=st.booleans(),
    probes=st.sampled_from(["fast", "default"]),
)
def test_any_defect_at_any_place_in_any_state(
    kind: str, name: str, seed: int, gradients: bool, grad_mode: bool, probes: str
) -> None:
    case = build(name)
    planted = plant(case, kind, seed)
    model = planted.model if isinstance(planted, Planted) else case.model
    arranged(model, seed, gradients=gradients)
    with torch.set_grad_enabled(grad_mode):
        checked(case, model, probes)


@pytest.mark.parametrize("name", ["cnn", "gru"])
def test_checking_again_and_again_keeps_no_tensor(name: str) -> None:
    case = build(name)
    counts = []
    for _ in range(4):
        evalmode.check(case.model, case.batch, probes="fast")
        gc.collect()
        counts.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))
    assert counts[1] == counts[2] == counts[3]
