"""What a journal must agree with: its words change with all that changes a figure, and with nothing else."""

import functools
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import evalmode
from evalmode.errors import JournalError
from evalmode.evaluation.identity import described, model_identity


def within(most):
    return lambda outputs, target: (outputs.argmax(1) - target).abs() <= most


def with_default(outputs, target, most=1):
    return (outputs.argmax(1) - target).abs() <= most


def other_default(outputs, target, most=2):
    return (outputs.argmax(1) - target).abs() <= most


def test_a_function_is_told_by_what_it_closes_over():
    assert described(within(1)) == described(within(1))
    assert described(within(0)) != described(within(1))


def test_a_function_is_told_by_its_defaults():
    renamed = described(other_default).replace("other_default", "with_default")
    assert renamed != described(with_default)


LIMIT = 0.5


def test_a_function_is_told_by_the_plain_globals_that_it_reads(monkeypatch):
    def above(row):
        return any(value > LIMIT for value in row)

    before = described(above)
    assert described(above) == before
    monkeypatch.setitem(globals(), "LIMIT", 0.7)
    assert described(above) != before


WEIGHTS = [1.0, 2.0]


def helper(row):
    return sum(row) > LIMIT


def calls_a_helper(row):
    return helper(row)


def reads_a_list(row):
    return row[0] * WEIGHTS[0]


class Callable:
    def __call__(self, row):
        return helper(row) and WEIGHTS


def test_helpers_and_lists_that_a_function_reads_tell_it_too(monkeypatch):
    told = calls_a_helper, reads_a_list, Callable()
    before = [described(each) for each in told]
    assert [described(each) for each in told] == before
    monkeypatch.setitem(globals(), "LIMIT", 0.7)
    after = [described(each) for each in told]
    assert (after[0] != before[0], after[1] == before[1], after[2] != before[2]) == (True, True, True)
    monkeypatch.setitem(globals(), "WEIGHTS", [1.0, 3.0])
    assert all(described(each) != known for each, known in zip(told[1:], after[1:], strict=True))


def test_a_partial_is_told_by_its_arguments():
    one, two = (functools.partial(with_default, most=most) for most in (1, 2))
    assert described(one) != described(two)
    assert described(one) == described(functools.partial(with_default, most=1))


def test_functions_that_hold_themselves_and_each_other_are_described():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert described(even).startswith("test_functions_that_hold")


def test_a_set_in_a_function_is_described_alike_in_every_process():
    code = (
        "from evalmode.evaluation.identity import described\n"
        "def far(columns): return [site in {'north', 'arctic', 'south', 'east'} for site in columns]\n"
        "print(described(far))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(seen) == 1


def test_a_journal_of_another_number_of_threads_is_refused(tmp_path):
    model, data = nn.Linear(4, 3).eval(), (torch.randn(20, 4), torch.arange(20) % 3)
    before = torch.get_num_threads()
    evalmode.evaluate(model, data, journal=tmp_path / "j.sqlite", progress=False)
    try:
        torch.set_num_threads(before + 1)
        with pytest.raises(JournalError, match="threads"):
            evalmode.evaluate(model, data, journal=tmp_path / "j.sqlite", progress=False)
    finally:
        torch.set_num_threads(before)
    evalmode.evaluate(model, data, journal=tmp_path / "j.sqlite", progress=False)


def test_bfloat16_images_are_no_column():
    from evalmode.evaluation.labels import _values

    assert _values(torch.zeros(3, 2, 2, dtype=torch.bfloat16), 3) is None
    assert _values(torch.ones(3, dtype=torch.bfloat16), 3).tolist() == [1.0, 1.0, 1.0]


class Within:
    """A metric that holds its setting."""

    def __init__(self, most):
        self.most = most

    def __call__(self, outputs, target):
        return (outputs.argmax(1) - target).abs() <= self.most

    def method(self, outputs, target):
        return self(outputs, target)


def test_an_object_is_told_by_its_attributes():
    assert described(Within(1)) == described(Within(1))
    assert described(Within(1)) != described(Within(2))
    assert described(Within(1).method) != described(Within(2).method)


def test_slots_of_every_class_and_keys_that_are_functions_are_told():
    class Base:
        __slots__ = ("most",)

        def __init__(self, most):
            self.most = most

    class Derived(Base):
        __slots__ = ("least",)

    class Lone:
        __slots__ = "most"  # noqa: PLC0205 - a single name may be text

        def __init__(self, most):
            self.most = most

    for kind in (Base, Derived, Lone):
        assert described(kind(1)) == described(kind(1)) != described(kind(2))
    assert described({within(1): "x"}) == described({within(1): "x"}) != described({within(2): "x"})


def test_a_module_in_a_function_is_told_by_its_weights():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)

    def calling(model):
        return lambda inputs: model(2 * inputs)

    assert described(calling(one)) == described(calling(one)) != described(calling(other))


class Hidden:
    """A metric that holds its setting in what begins with `_`, and logs what it does."""

    __slots__ = ("__least", "_most", "log")

    def __init__(self, most, least):
        self._most, self.__least, self.log = most, least, logging.getLogger("evalmode.tests")


class HiddenInModule(nn.Module):
    def __init__(self, most):
        super().__init__()
        self._most = most


def test_an_object_is_told_by_attributes_that_begin_with_an_underscore():
    settings = {described(Hidden(most, least)) for most in (1, 2) for least in (3, 4)}
    assert len(settings) == 4
    assert described(HiddenInModule(1)) == described(HiddenInModule(1)) != described(HiddenInModule(2))


def test_what_a_library_counts_and_caches_does_not_tell_an_object_from_itself():
    hidden = Hidden(1, 2)
    before = described(hidden)
    hidden.log.isEnabledFor(logging.DEBUG)  # the logger keeps the answer in `_cache`
    assert described(hidden) == before
    classification = pytest.importorskip("torchmetrics.classification")
    metric = classification.MulticlassAccuracy(4)
    before = described(metric)
    metric.forward(torch.eye(4), torch.arange(4))
    metric.reset()
    assert described(metric) == before


def test_a_metric_is_told_by_all_that_it_does():
    from evalmode.measure.metric import Metric

    def of(most, better):
        return Metric("within", within(most), higher_is_better=better)

    assert described(of(1, True)) == described(of(1, True))
    assert len({described(of(1, True)), described(of(2, True)), described(of(1, False))}) == 3


def test_metrics_of_torchmetrics_are_told_by_their_options():
    classification = pytest.importorskip("torchmetrics.classification")
    one, again, other = (classification.MulticlassAccuracy(4, top_k=k) for k in (1, 1, 2))
    assert described(one) == described(again) != described(other)


def test_a_collate_of_ones_own_and_the_rule_of_a_predictor_are_part_of_it(tmp_path):
    from torch.utils.data import DataLoader, TensorDataset, default_collate

    from evalmode.predictor.module_backed import ModulePredictor

    model = nn.Linear(3, 2).eval()
    data = TensorDataset(torch.randn(40, 3), torch.arange(40) % 2)

    def scaled(by):
        def collate(samples):
            inputs, targets = default_collate(samples)
            return inputs * by, targets

        return DataLoader(data, batch_size=8, collate_fn=collate)

    journal = tmp_path / "collate.sqlite"
    evalmode.evaluate(model, scaled(1), journal=journal, progress=False)
    with pytest.raises(JournalError, match="collate_fn: "):
        evalmode.evaluate(model, scaled(2), journal=journal, progress=False)

    def calling(by):
        return ModulePredictor(model, forward=lambda module, inputs: module(inputs * by))

    journal = tmp_path / "rule.sqlite"
    evalmode.evaluate(calling(1), data, journal=journal, progress=False)
    with pytest.raises(JournalError, match="plan: "):
        evalmode.evaluate(calling(2), data, journal=journal, progress=False)


def test_values_without_attributes_are_told_apart():
    import enum
    import re
    from pathlib import Path

    import numpy as np

    class Mode(enum.Enum):
        ONE = enum.auto()
        OTHER = enum.auto()

    pairs = [
        (np.int64(1), np.int64(2)),
        (torch.float32, torch.float64),
        (torch.device("cpu"), torch.device("meta")),
        (b"a", b"b"),
        (range(2), range(3)),
        (re.compile("a"), re.compile("b")),
        (Path("a"), Path("b")),
        (Mode.ONE, Mode.OTHER),
    ]
    for one, other in pairs:
        assert described(functools.partial(within, one)) != described(functools.partial(within, other)), one


class Tempered(nn.Module):
    scale = 1.0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.temperature, self.calls, self.warm = nn.Linear(4, 3), 1.0, 0, False

    def forward(self, inputs):
        self.calls += 1
        self.warm = True
        return self.head(inputs) / self.temperature


class Doubled(Tempered):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def test_a_models_code_and_numbers_belong_to_it_and_its_counters_do_not():
    def of(model):
        return model_identity(model, model)["model"]

    model = Tempered().eval()
    before = of(model)
    model(torch.zeros(1, 4))
    assert of(model) == before == of(Tempered())
    model.temperature = 2.0
    assert of(model) != before

    assert of(Doubled()) != before
    assert "code" not in of(nn.Linear(4, 3))
    assert of(nn.Sequential(Tempered())) != of(nn.Sequential(Doubled()))
