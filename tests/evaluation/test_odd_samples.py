"""Samples that are not like the others, and data that is not the same twice: told by the sample's id."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from evalmode.errors import BatchError, TaskError
from evalmode.evaluation.evaluator import evaluate

COUNT = 60
INPUTS = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % 3
MODEL = torch.nn.Linear(4, 3)


class Samples(Dataset):
    """Pairs, but for what `odd` gives at some places."""

    def __init__(self, odd=None):
        self.odd = odd or {}

    def __len__(self):
        return COUNT

    def __getitem__(self, place):
        found = self.odd.get(place, (INPUTS[place], int(LABELS[place])))
        if isinstance(found, Exception):
            raise found
        return found


class Noisy(Samples):
    def __getitem__(self, place):
        inputs, target = super().__getitem__(place)
        return inputs + torch.randn(4), target


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_of_other_values_at_each_read_are_refused(workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(TaskError, match="other values at each read: sample 0") as caught:
        evaluate(MODEL, Noisy(), workers=workers)
    assert "exact=False" in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)
    assert not evaluate(MODEL, Noisy(), exact=False).record.exact


def test_noise_in_some_samples_is_named_by_its_id_and_seeded_noise_is_no_noise():
    class Late(Samples):
        def __getitem__(self, place):
            inputs, target = super().__getitem__(place)
            return (inputs + torch.tensor(np.random.rand(4))) if place == COUNT - 1 else inputs, target

    class Seeded(Samples):
        def __getitem__(self, place):
            inputs, target = super().__getitem__(place)
            return inputs + torch.randn(4, generator=torch.Generator().manual_seed(place)), target

    with pytest.raises(TaskError, match="at each read: sample img59"):
        evaluate(MODEL, Late(), ids=[f"img{place}" for place in range(COUNT)])
    assert evaluate(MODEL, Late(), limit=COUNT - 1).record.samples == COUNT - 1
    assert evaluate(MODEL, Seeded()).record.exact


def test_a_sample_that_cannot_be_read_is_told_once_though_it_is_read_twice():
    data = Samples({0: OSError("torn")})
    with pytest.raises(BatchError, match="sample 0: it cannot be read: OSError: torn"):
        evaluate(MODEL, data)
    record = evaluate(MODEL, data, on_bad_sample="skip").record
    assert (record.samples, record.skipped, [bad.id for bad in record.bad]) == (COUNT - 1, 1, ["0"])


@pytest.mark.parametrize(("said", "given"), [(150, 100), (40, 50)])
def test_a_stream_that_gives_another_number_of_samples_than_it_says_is_told(said, given):
    class Stream(IterableDataset):
        def __len__(self):
            return said

        def __iter__(self):
            return iter([(INPUTS[place % COUNT], int(LABELS[place % COUNT])) for place in range(given)])

    record = evaluate(MODEL, Stream()).record
    assert record.samples == given
    assert f"the Stream says that it has {said} samples, and gave {given}" in record.notes
    assert not any("gave" in note for note in evaluate(MODEL, Stream(), limit=30).record.notes)


@pytest.mark.parametrize("place", [0, 37])
@pytest.mark.parametrize("odd", [(INPUTS[0],), (INPUTS[0], 1, "more")])
def test_a_sample_of_another_structure_is_named_or_left_out(place, odd):
    data = Samples({place: odd})
    with pytest.raises(TaskError, match=f"^sample {place}: a batch that is"):
        evaluate(MODEL, data)
    record = evaluate(MODEL, data, on_bad_sample="skip").record
    assert (record.samples, [bad.id for bad in record.bad]) == (COUNT - 1, [str(place)])
    rest = [index for index in range(COUNT) if index != place]
    assert record.metrics == evaluate(MODEL, (INPUTS[rest], LABELS[rest])).record.metrics


@pytest.mark.parametrize("place", [0, 3])
def test_a_sample_that_the_users_split_does_not_take_is_named_or_left_out(place, tmp_path):
    class Named(Samples):
        def __getitem__(self, index):
            named = {"x": INPUTS[index], "labels": int(LABELS[index])}
            return {"x": INPUTS[index]} if index == place else named

    def split(batch):
        return batch["x"], batch["labels"]

    with pytest.raises(TaskError, match=f"^sample {place}: split"):
        evaluate(MODEL, Named(), split=split)
    options = {"split": split, "on_bad_sample": "skip", "journal": tmp_path / "run.journal"}
    record = evaluate(MODEL, Named(), **options).record
    assert (record.samples, [bad.id for bad in record.bad]) == (COUNT - 1, [str(place)])
    assert evaluate(MODEL, Named(), **options).record == record


def test_of_samples_of_one_structure_those_are_left_out_that_split_refuses():
    def split(batch):
        if bool((batch[0][:, 0] == 77).any()):
            raise ValueError("no such category")
        return batch

    inputs = INPUTS.clone()
    inputs[41, 0] = 77
    with pytest.raises(TaskError, match=r"^sample 41: split"):
        evaluate(MODEL, (inputs, LABELS), split=split)
    record = evaluate(MODEL, (inputs, LABELS), split=split, on_bad_sample="skip").record
    assert (record.samples, [bad.id for bad in record.bad]) == (COUNT - 1, ["41"])


@pytest.mark.parametrize(
    ("count", "bad"), [(2048, {0, 1023}), (2048, {100, 500}), (60, {0, 59}), (2048, {0, 1023, 1024, 2047}), (1, {0})]
)
def test_only_bad_samples_are_left_out_wherever_they_lie_in_their_group(count, bad):
    target = torch.arange(count) % 3
    target[[*bad]] = -1

    def split(batch):
        if (batch[1] < 0).any():
            raise ValueError("no label")
        return batch

    inputs = torch.randn(count, INPUTS.shape[1], generator=torch.Generator().manual_seed(0))
    if count == len(bad):
        with pytest.raises(TaskError, match="no label"):
            evaluate(MODEL, (inputs, target), split=split, on_bad_sample="skip")
        return
    record = evaluate(MODEL, (inputs, target), split=split, on_bad_sample="skip").record
    assert (record.samples, record.skipped) == (count - len(bad), len(bad))
    assert {each.id for each in record.bad} == {str(place) for place in bad}
    with pytest.raises(TaskError, match=r"^sample \d+: split(.|\n)*no label"):
        evaluate(MODEL, (inputs, target), split=split)


def test_a_split_that_fits_no_sample_is_no_fault_of_the_samples():
    with pytest.raises(TaskError, match=r"^a batch that is"):
        evaluate(MODEL, (INPUTS, INPUTS, LABELS), on_bad_sample="skip")


def test_what_fills_a_group_up_is_not_counted_and_the_first_bad_sample_is_named():
    with pytest.raises(BatchError, match=rf"in {COUNT} of {COUNT} samples \(first: img0\)"):
        evaluate(MODEL, (INPUTS, LABELS + 0.5), metrics=["accuracy"], ids=[f"img{place}" for place in range(COUNT)])
    with pytest.raises(BatchError, match=r"^sample 7: .*no whole number"):
        evaluate(MODEL, Samples({place: (INPUTS[place], math.nan) for place in (7, 50)}))


def test_where_every_sample_is_bad_it_is_said_that_all_are():
    with pytest.raises(BatchError, match=f"^all {COUNT} samples were left out; sample 0: the model's outputs are NaN"):
        evaluate(MODEL, (INPUTS * math.nan, LABELS), on_bad_sample="skip")


def test_one_text_among_tensors_is_told_in_short():
    data = Samples({37: ("hello", 1)})
    with pytest.raises(BatchError, match=r"^sample 37: .* more") as caught:
        evaluate(MODEL, data)
    assert len(str(caught.value)) < 600
    (bad,) = evaluate(MODEL, data, on_bad_sample="skip").record.bad
    assert bad.id == "37"
    assert len(bad.reason) < 300


def test_a_long_reason_is_listed_in_short():
    (bad,) = evaluate(MODEL, Samples({37: OSError("torn " * 5000)}), on_bad_sample="skip").record.bad
    assert len(bad.reason) < 600


def test_ctrl_c_while_the_data_is_looked_through_says_how_to_go_on(tmp_path):
    class Stopping(Samples):
        def __getitem__(self, place):
            if place == 4:  # one of those that tell the data from other data
                raise KeyboardInterrupt
            return super().__getitem__(place)

    with pytest.raises(KeyboardInterrupt, match=r"before a sample was run: the same call with journal=.*goes on"):
        evaluate(MODEL, Stopping(), journal=tmp_path / "run.journal")


class Named(Samples):
    def __getitem__(self, place):
        return {"x": INPUTS[place], "labels": int(LABELS[place])}


@pytest.mark.parametrize("dataset", [Samples(), Named()])
@pytest.mark.parametrize("limit", [None, math.inf])
def test_samples_of_a_loader_without_batch_size_are_samples(dataset, limit):
    record = evaluate(MODEL, DataLoader(dataset, batch_size=None), limit=limit).record
    assert record.metrics == evaluate(MODEL, (INPUTS, LABELS)).record.metrics
    assert record.samples == COUNT


def test_a_stream_of_samples_without_batch_size_is_not_cut_along_features():
    class Stream(IterableDataset):
        def __iter__(self):
            return (Samples()[place] for place in range(COUNT))

    record = evaluate(MODEL, DataLoader(Stream(), batch_size=None), limit=math.inf).record
    assert record.metrics == evaluate(MODEL, (INPUTS, LABELS)).record.metrics


def test_ready_batches_of_a_dataset_with_a_length_need_no_limit_and_are_converted():
    class Batches(Dataset):
        def __len__(self):
            return COUNT // 20

        def __getitem__(self, place):
            rows = slice(20 * place, 20 * place + 20)
            return {"x": INPUTS[rows], "labels": LABELS[rows], "epoch": 3}

    def convert(batch):
        return batch["x"] + 1, batch["labels"]

    def split(batch):
        return batch["x"], batch["labels"]

    record = evaluate(MODEL, DataLoader(Batches(), batch_size=None), split=split).record
    assert record.metrics == evaluate(MODEL, (INPUTS, LABELS)).record.metrics
    record = evaluate(MODEL, DataLoader(Batches(), batch_size=None, collate_fn=convert)).record
    assert record.metrics == evaluate(MODEL, (INPUTS + 1, LABELS)).record.metrics


def test_a_batch_with_its_number_is_not_taken_for_a_sample():
    class Numbered(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, place):
            if place > 2:
                raise IndexError
            return INPUTS[20 * place : 20 * place + 20], LABELS[20 * place : 20 * place + 20], place

    with pytest.raises(BatchError, match=r"one sample, or a batch and its number\?"):
        evaluate(MODEL, DataLoader(Numbered(), batch_size=None), split=lambda batch: batch[:2])
