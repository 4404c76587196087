import dataclasses
import math
import os

import numpy as np
import pytest
import torch
from torch import nn

from evalmode.errors import BatchError, EvalmodeError, JournalError, TaskError
from evalmode.evaluation import going_on, groups, keeping
from evalmode.evaluation.evaluator import evaluate
from evalmode.evaluation.predictions import read_predictions
from evalmode.predictor.protocol import Predictor

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(200, 6, generator=GENERATOR)
TARGETS = torch.randint(4, (200,), generator=GENERATOR)


class Data(torch.utils.data.Dataset):
    """The samples one by one; reading `stop` of them raises, as a disk that goes away does."""

    def __init__(self, stop=None, samples=200):
        self.stop, self.samples = stop, samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        if index == self.stop:
            raise OSError("gone")
        return INPUTS[index], TARGETS[index]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(keeping, "_CHUNK_SAMPLES", 16)
    monkeypatch.setattr(groups, "LARGEST", 32)


def without_time(record):
    return [(name, value) for name, value in sorted(record_dict(record).items()) if name != "seconds"]


def record_dict(record):
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_what_failed_half_way_goes_on_to_the_same_result(tmp_path):
    whole = evaluate(network(), Data(), keep_predictions=True, progress=False)
    journal = tmp_path / "journal.sqlite"
    with pytest.raises(BatchError, match="sample 150"):
        evaluate(network(), Data(stop=150), keep_predictions=True, journal=journal, progress=False)
    again = evaluate(network(), Data(), keep_predictions=True, journal=journal, progress=False, batch_size=7)
    assert without_time(again.record) == without_time(whole.record)
    assert again.samples.scores.tobytes() == whole.samples.scores.tobytes()


def test_a_finished_evaluation_is_given_again_whatever_its_figures(tmp_path):
    def endless(outputs, target):
        return torch.where(target == 0, math.inf, 1.0).double()

    journal = tmp_path / "journal.sqlite"
    first = evaluate(network(), Data(), metrics=["accuracy", endless], journal=journal, progress=False)
    assert first["endless"].value == math.inf
    again = evaluate(network(), Data(), metrics=["accuracy", endless], journal=journal, progress=False)
    assert again.record == first.record


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": 1}, "model"),
        ({"limit": 100}, "limit"),
        ({"confidence": 0.9}, "confidence"),
        ({"metrics": ["accuracy"]}, "metrics"),
        ({"on_bad_sample": "skip"}, "on_bad_sample"),
        ({"data": Data(samples=199)}, "data"),
    ],
)
def test_a_journal_of_another_evaluation_is_refused_with_what_differs(tmp_path, change, named):
    given = {"model": 0, "data": Data(), "journal": tmp_path / "journal.sqlite", "progress": False}

    def run(model, data, **options):
        return evaluate(network(model), data, **options)

    run(**given)
    with pytest.raises(JournalError) as caught:
        run(**{**given, **change})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-2]] == [named]
    assert " in the journal, " in lines[1]
    run(**given)


def test_predictions_are_kept_of_an_evaluation_that_went_on(tmp_path):
    options = {"journal": tmp_path / "journal.sqlite", "progress": False}
    with pytest.raises(BatchError):
        evaluate(network(), Data(stop=150), keep_predictions=tmp_path / "p.parquet", **options)
    assert not (tmp_path / "p.parquet").exists()
    result = evaluate(network(), Data(), keep_predictions=tmp_path / "p.parquet", **options)
    parts = read_predictions(tmp_path / "p.parquet")
    fields = {field.name for field in dataclasses.fields(result)}
    assert set(parts) <= fields
    assert parts["record"] == result.record
    assert parts["samples"].scores.tobytes() == result.samples.scores.tobytes()


def test_a_bad_sample_in_the_first_group_does_not_stop_a_journal_from_going_on(tmp_path):
    torch.manual_seed(0)
    inputs, targets = torch.randn(300, 4), torch.arange(300) % 3
    inputs[3] = torch.nan
    model, journal = nn.Linear(4, 3).eval(), tmp_path / "journal.sqlite"
    options = {"on_bad_sample": "skip", "progress": False}
    first = evaluate(model, (inputs, targets), journal=journal, **options)
    again = evaluate(model, (inputs, targets), journal=journal, **options)
    bare = evaluate(model, (inputs, targets), **options)
    for result in (first, again):
        assert (result.record.samples, result.record.skipped) == (299, 1)
        assert result.record.metrics == bare.record.metrics


def test_samples_that_were_left_out_count_as_done_when_a_journal_is_gone_on_with(tmp_path):
    told = []
    journal = tmp_path / "journal.sqlite"
    inputs = INPUTS.clone()
    inputs[:40] = torch.nan
    options = {"journal": journal, "on_bad_sample": "skip"}
    evaluate(network(), (inputs, TARGETS), progress=False, **options)
    evaluate(network(), (inputs, TARGETS), progress=told.append, **options)
    assert told[-1].done == told[-1].total == 200


def test_a_journal_of_bad_samples_alone_names_the_first_when_it_is_gone_on_with(tmp_path):
    options = {"journal": tmp_path / "journal.sqlite", "on_bad_sample": "skip", "progress": False}
    torn = [(torch.full((6,), torch.nan), 1)] * 5
    with pytest.raises(EvalmodeError, match="NaN"):
        evaluate(network(), torn, metrics="accuracy", **options)
    with pytest.raises(TaskError, match=r"all 5 samples were left out; 0: .*NaN"):
        evaluate(network(), torn, metrics="accuracy", **options)


def test_metrics_are_inferred_from_the_good_samples_of_the_first_group_together():
    torch.manual_seed(0)
    inputs, targets = torch.randn(200, 4), torch.randn(200)
    targets[0] = 0.0  # alone it looks like a label
    inputs[3] = torch.nan
    result = evaluate(nn.Linear(4, 1).eval(), (inputs, targets), on_bad_sample="skip", progress=False)
    assert [metric.name for metric in result.record.metrics] == ["mean absolute error", "root mean squared error"]
    assert (result.record.samples, result.record.skipped) == (199, 1)


class Mended(Data):
    """Sample 41 is torn at first, and whole later."""

    torn = True

    def __getitem__(self, index):
        if index == 41 and self.torn:
            raise OSError("torn")
        return super().__getitem__(index)


def test_a_sample_that_was_left_out_stays_left_out(tmp_path):
    options = {"journal": tmp_path / "journal.sqlite", "on_bad_sample": "skip", "progress": False}
    data = Mended(stop=150)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping.Keeping, "lose", stopping_at(150))
        with pytest.raises(RuntimeError, match="gone"):
            evaluate(network(), data, **options)
    data.torn, data.stop = False, None
    result = evaluate(network(), data, **options)
    assert (result.record.samples, result.record.skipped, result.record.bad[0].id) == (199, 1, "41")


def stopping_at(position):
    lose = keeping.Keeping.lose

    def stopped(self, at, name, reason):
        if at == position:
            raise RuntimeError("gone")
        lose(self, at, name, reason)

    return stopped


class Own(Predictor):
    """A predictor of a user's own, of one class whatever it answers."""

    signature = certificate = None

    def __init__(self, seed):
        self.model = network(seed)

    def predict(self, batch):
        with torch.no_grad():
            return self.model(batch)

    def __call__(self, *args, **kwargs):
        return self.predict(*args, **kwargs)


def test_another_model_behind_the_same_class_is_told_by_what_it_answers(tmp_path):
    journal = tmp_path / "journal.sqlite"
    with pytest.raises(BatchError):
        evaluate(Own(0), Data(stop=150), journal=journal, progress=False)
    with pytest.raises(JournalError, match=r"sample \d+ has (prediction|log loss) .* there, and .* now"):
        evaluate(Own(1), Data(), journal=journal, progress=False)
    assert evaluate(Own(0), Data(), journal=journal, progress=False).record.samples == 200


def test_other_labels_of_the_first_samples_are_told(tmp_path):
    class Relabelled(Data):
        def __getitem__(self, index):
            inputs, target = super().__getitem__(index)
            return inputs, (target + (index == 5)) % 4

    journal = tmp_path / "journal.sqlite"
    with pytest.raises(BatchError):
        evaluate(network(), Relabelled(stop=150), journal=journal, progress=False)
    Relabelled.__getitem__ = Data.__getitem__
    with pytest.raises(JournalError, match="sample 5 has target"):
        evaluate(network(), Relabelled(), journal=journal, progress=False)


class Samples(Data):
    """`Data` with values of some samples changed, and a note of what was read."""

    def __init__(self, stop=None, changed=()):
        super().__init__(stop)
        self.changed, self.read = dict(changed), []

    def __getitem__(self, index):
        self.read.append(index)
        return self.changed.get(index) or super().__getitem__(index)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, stop=None, changed=()):
        self.data = Samples(stop, changed)

    def __len__(self):
        return 200

    def __iter__(self):
        return iter([]) if torch.utils.data.get_worker_info() else (self.data[place] for place in range(200))


OTHER_LABEL = (INPUTS[97], (TARGETS[97] + 1) % 4)
OTHER_INPUT = (INPUTS[97] + 1e-3, TARGETS[97])


@pytest.mark.parametrize("kind", [Samples, Stream])
@pytest.mark.parametrize("other", [OTHER_LABEL, OTHER_INPUT])
def test_one_other_sample_anywhere_in_what_was_recorded_is_told(tmp_path, kind, other):
    options = {"journal": tmp_path / "journal.sqlite", "progress": False}
    with pytest.raises((BatchError, TaskError), match="gone"):
        evaluate(network(), kind(stop=150), **options)
    with pytest.raises(JournalError, match="is of other data: sample 97 has another input or target now"):
        evaluate(network(), kind(changed={97: other}), **options)
    whole = evaluate(network(), kind(), **options)
    with pytest.raises(JournalError, match="sample 97"):  # a finished one as well
        evaluate(network(), kind(changed={97: other}), **options)
    assert evaluate(network(), kind(), **options).record == whole.record


def test_a_sample_that_was_not_recorded_yet_may_change(tmp_path):
    options = {"journal": tmp_path / "journal.sqlite", "progress": False}
    with pytest.raises(BatchError, match="gone"):
        evaluate(network(), Samples(stop=100), **options)
    assert evaluate(network(), Samples(changed={137: OTHER_LABEL}), **options).record.samples == 200


def test_of_much_data_as_many_samples_are_read_again_as_are_affordable_and_the_same_ones_each_time(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(going_on, "_WHOLE", 32 * 20)  # a sample has 32 bytes
    monkeypatch.setattr(going_on, "_FEWEST", 1)
    options = {"journal": tmp_path / "journal.sqlite", "progress": False}
    evaluate(network(), Samples(), **options)
    again = [Samples(), Samples()]
    for data in again:
        evaluate(network(), data, **options)
    spread = [round(199 * place / 19) for place in range(20)]
    for data in again:  # what is read ahead of a stop beside them is a matter of time
        assert sum(data.read[start : start + 20] == spread for start in range(len(data.read))) == 1


def test_a_text_or_an_object_of_a_sample_is_part_of_it():
    from evalmode.evaluation.identity import sample_digest

    class Box:
        def __init__(self, corner):
            self._corner = corner

    class Image:  # as one of PIL: its pixels are in no attribute
        def __init__(self, level):
            self.level = np.full((2, 2), level)

        __slots__ = ("level",)
        __array_interface__ = property(lambda self: self.level.__array_interface__)

    pairs = [
        ("one", "two"),
        (Box(1), Box(2)),
        (Image(3), Image(4)),
        (np.array(["a", None]), np.array(["b", None])),
        (np.float32(1), np.float32(2)),
    ]
    for one, other in pairs:
        assert sample_digest({"x": one}) == sample_digest({"x": one}) != sample_digest({"x": other}), one


def test_a_parquet_file_is_told_by_its_bytes_and_not_by_when_it_was_written(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "test.parquet"
    inputs = pa.array(INPUTS.tolist(), pa.list_(pa.float32()))

    def write(targets):
        parquet.write_table(pa.table({"inputs": inputs, "target": targets.tolist()}), path)

    options = {"journal": tmp_path / "journal.sqlite", "progress": False}
    write(TARGETS)
    first = evaluate(network(), path, **options)
    write(TARGETS)
    os.utime(path, (0, 0))
    assert evaluate(network(), path, **options).record == first.record
    other = TARGETS.clone()
    other[137] = (other[137] + 1) % 4
    write(other)
    with pytest.raises(JournalError, match=r"data: .* in the journal, .* now"):
        evaluate(network(), path, **options)
