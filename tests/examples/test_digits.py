"""The digits task: real data, trained once, reproducible, and without a trace in the process that asks for it."""

import concurrent.futures
import importlib.util
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import evalmode

TASK = Path(__file__).parents[2] / "examples" / "digits" / "task.py"


def load(path):
    spec = importlib.util.spec_from_file_location(f"task_{abs(hash(path))}", path)
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)
    return task


@pytest.fixture(scope="module")
def task():
    return load(TASK)


@pytest.fixture
def quick(tmp_path):
    """A copy of the task with one epoch of training and weights of its own."""
    path = tmp_path / "task.py"
    path.write_text(TASK.read_text().replace("epochs: int = 30", "epochs: int = 1"))
    assert path.read_text() != TASK.read_text()
    return path


def test_the_data_is_scikit_learns_split_without_overlap(task):
    (train_images, train_labels), (test_images, test_labels) = task.train_data(), task.test_data()
    assert (len(train_images), len(test_images)) == (1257, 540)
    assert test_images.shape[1:] == (1, 8, 8)
    every = torch.cat([train_images, test_images]).flatten(1).double().numpy() * 16
    pixels, labels = load_digits(return_X_y=True)
    assert sorted(map(tuple, every)) == sorted(map(tuple, pixels))
    shares = np.bincount(test_labels) / np.bincount(labels)
    assert np.allclose(shares, 540 / 1797, atol=0.01)
    assert len(np.bincount(train_labels)) == 10
    again = task.test_data()
    assert torch.equal(again[0], test_images)
    assert torch.equal(again[1], test_labels)


def test_it_is_right_on_99_of_100_test_images(task):
    model, (images, labels) = task.model(), task.test_data()
    with evalmode.evaluating(model):
        right = task.prediction(model(images)) == labels
    assert right.double().mean() >= 0.99
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    assert any(isinstance(part, torch.nn.Dropout) for part in model.modules())


def test_its_parameters_can_be_trained_on(task):
    model = task.model()
    assert model.training
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_training_leaves_the_process_as_it_was(quick):
    task = load(quick)
    before = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    with torch.no_grad():
        model = task.model()
    assert (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()) == before
    assert torch.is_grad_enabled()
    assert next(model.parameters()).requires_grad


def test_training_gives_the_same_bits_again_and_an_edited_recipe_other_ones(quick):
    first = load(quick)
    first.model()
    kept = load_file(first.WEIGHTS)
    stamp = first.WEIGHTS.stat().st_mtime_ns
    load(quick).model()
    assert first.WEIGHTS.stat().st_mtime_ns == stamp  # the same recipe is not trained again
    first.WEIGHTS.unlink()
    first.model()
    again = load_file(first.WEIGHTS)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    quick.write_text(quick.read_text().replace("seed: int = 0", "seed: int = 1"))
    load(quick).model()
    other = load_file(first.WEIGHTS)
    assert not torch.equal(kept["head.0.weight"], other["head.0.weight"])


def test_first_use_from_several_processes_at_once(quick):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: subprocess.run([sys.executable, quick], check=False), range(2)))
    assert [run.returncode for run in runs] == [0, 0]
    assert [path.name for path in (quick.parent / "build").iterdir()] == ["weights.safetensors"]
    task = load(quick)
    assert task.recipe_of(task.WEIGHTS) == task.RECIPE


def test_weights_of_ones_own(task, tmp_path):
    weights = {name: torch.zeros_like(tensor) for name, tensor in task.model().state_dict().items()}
    save_file(weights, tmp_path / "zeros.safetensors")
    model = task.model(tmp_path / "zeros.safetensors")
    assert not any(parameter.any() for parameter in model.parameters())


def test_the_file_stands_alone(task, tmp_path):
    task.model()
    copy = tmp_path / "elsewhere" / "task.py"
    copy.parent.mkdir()
    shutil.copy(TASK, copy)
    (copy.parent / "build").mkdir()
    shutil.copy(task.WEIGHTS, copy.parent / "build")
    assert torch.equal(load(copy).model().head[0].weight, task.model().head[0].weight)
