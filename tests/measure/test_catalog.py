"""Metrics by name."""

import pytest

from evalmode.errors import TaskError
from evalmode.measure.catalog import METRICS, metric_named


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Log_Loss", "log loss"),
        ("mean-absolute-error", "mean absolute error"),
        ("auroc", "AUROC"),
        ("Macro f1", "macro F1"),
        ("r2", "R\u00b2"),
        ("R\u00b2", "R\u00b2"),
        ("MEAN IOU", "mean IoU"),
        ("top_3_accuracy", "top 3 accuracy"),
        ("top-5-accuracy", "top 5 accuracy"),
        ("mean iou of 21 classes", "mean IoU of 21 classes"),
        ("dice of 4 classes", "Dice of 4 classes"),
    ],
)
def test_spelling_does_not_matter(typed, name):
    assert metric_named(typed).name == name


def test_a_name_means_one_metric():
    assert all(METRICS[name] is metric_named(name) and METRICS[name].name == name for name in METRICS)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("acuracy", "'accuracy'"),
        ("rmse", "'root mean squared error'"),
        ("f1", "F1'"),
        ("iou", "'mean IoU'"),
        ("zzz", "or a function"),
        ("", "or a function"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(typed, near):
    with pytest.raises(TaskError) as caught:
        metric_named(typed)
    assert near in caught.value.fix
    assert "log loss" in caught.value.expected


@pytest.mark.parametrize("typed", ["top 0 accuracy", "mean iou of 1 classes", "dice of 0 classes"])
def test_a_number_that_makes_no_metric_is_refused(typed):
    with pytest.raises(TaskError, match=r"accuracy|classes"):
        metric_named(typed)
