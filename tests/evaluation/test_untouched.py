"""What the caller hands over keeps its values, whatever the model, metrics and functions write into."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evalmode
from evalmode.errors import TaskError
from evalmode.evaluation.untouched import Untouched
from evalmode.measure.metric import Aggregate, Metric

INPUTS = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(3000) % 3


def evaluate(model, data, **options):
    return evalmode.evaluate(model, data, **{"progress": False, **options})


class Scaling(nn.Module):
    """Normalises its input in place."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(1))

    def forward(self, inputs):
        inputs.sub_(0.5).div_(0.25)
        return self.head(inputs)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("rows", [400, 3000])
def test_a_model_that_writes_into_its_input_is_given_copies(exact, rows):
    model, inputs, labels = Scaling(), INPUTS[:rows].clone(), LABELS[:rows]
    with torch.no_grad():
        expected = F.cross_entropy(model(inputs.clone()), labels).item()
    for data in ((inputs, labels), TensorDataset(inputs, labels), DataLoader(TensorDataset(inputs, labels), 64)):
        result = evaluate(model, data, exact=exact)
        assert result["log loss"].value == pytest.approx(expected, rel=1e-6)
        assert torch.equal(inputs, INPUTS[:rows])
        assert "the model writes into what it is given: it was given copies" in result.record.notes
        assert not any("beside it" in note for note in result.record.notes)


def test_a_write_that_changes_nothing_at_first_is_found():
    class Mending(nn.Module):
        def forward(self, inputs):
            inputs[inputs.isnan()] = 0.0
            return inputs[:, :3]

    inputs = torch.randn(4096, 4, generator=torch.Generator().manual_seed(0))
    inputs[2500, 1] = torch.nan
    before = inputs.clone()
    result = evaluate(Mending(), (inputs, torch.arange(4096) % 3))
    assert torch.equal(inputs.isnan(), before.isnan())
    assert "the model writes into what it is given: it was given copies" in result.record.notes


def test_a_write_that_comes_later_is_told_and_copies_are_given_from_there_on():
    class Mending(nn.Module):
        def forward(self, inputs):
            if inputs.isnan().any():
                inputs.nan_to_num_()
            return inputs[:, :3]

    inputs = torch.randn(4096, 4, generator=torch.Generator().manual_seed(0))
    inputs[2500, 1] = inputs[3500, 1] = torch.nan
    result = evaluate(Mending(), (inputs, torch.arange(4096) % 3))
    assert any(
        "the model wrote into what it was given, though not in its first" in note for note in result.record.notes
    )
    assert inputs[3500, 1].isnan()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_later_write_of_a_metric_is_an_error_since_others_read_the_same(wrapped):
    def clipping(outputs, target):
        if bool((target == 9).any()):
            outputs.clamp_(max=0)
        return outputs[:, 0]

    labels = torch.arange(4096) % 3
    labels[2500] = 9
    data = (torch.randn(4096, 4), labels)
    metric = Metric("c", clipping, Aggregate.MEAN, True) if wrapped else clipping
    with pytest.raises(TaskError, match=r"the metric '.*' wrote into what it was given"):
        evaluate(nn.Linear(4, 3), data, metrics=[metric])


def test_metrics_loss_prediction_and_split_leave_each_other_and_the_data_alone():
    model, inputs, labels = nn.Linear(4, 3), INPUTS.clone(), LABELS.clone()
    expected = evaluate(model, (inputs, labels), loss=F.cross_entropy)

    def split(batch):
        return batch[0].mul_(1.0), batch[1].add_(0)

    result = evaluate(
        model,
        (inputs, labels),
        split=split,
        metrics={
            "zero": lambda outputs, target: outputs.mul_(0)[:, 0] + target.fill_(0),
            "accuracy": "accuracy",
        },
        loss=lambda outputs, target: F.cross_entropy(outputs, target.clamp_(max=2)) + 0 * outputs.mul_(1).sum(),
    )
    assert result["accuracy"].value == expected["accuracy"].value
    assert result["loss"].value == pytest.approx(expected["loss"].value)
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(labels, LABELS)
    said = " ".join((*result.record.notes, *result.inferred))
    assert all(name in said for name in ("split writes", "the metric 'zero' writes", "loss writes"))


def test_what_does_not_write_is_given_the_things_themselves_after_the_first_call():
    seen = []
    held = [torch.ones(4, 3)[:, :2], torch.zeros(1)]
    call = Untouched(lambda given: seen.append(given[0]), "it", pytest.fail)
    call(held)
    call(held)
    assert seen[0] is not held[0]
    assert seen[0].stride() == held[0].stride()
    assert seen[1] is held[0]
