from __future__ import annotations

from tests.zoo.batch_gradients import batch_gradients
from tests.zoo.clean import build
from tests.zoo.defects import Planted, plant


def test_mixed_samples_are_seen_where_gradients_flow_and_not_where_they_do_not() -> None:
    case = build("cnn")
    assert batch_gradients(case, case.model) is False
    mixed, counted = plant(case, "mean-over-the-batch"), plant(case, "position-in-the-batch")
    assert isinstance(mixed, Planted)
    assert isinstance(counted, Planted)
    assert batch_gradients(case, mixed.model) is True
    assert batch_gradients(case, counted.model) is False  # a dependence all the same: the peer's blind spot


def test_batch_norm_in_training_is_its_false_alarm_unless_exempt() -> None:
    case = build("cnn")
    assert batch_gradients(case, case.model, training=True) is False
    assert batch_gradients(case, case.model, training=True, exempt=False) is True


def test_integer_inputs_and_lists_are_beyond_it() -> None:
    for name in ("gru", "detector"):
        case = build(name)
        assert batch_gradients(case, case.model) is None
