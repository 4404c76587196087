"""Batches: every sample once, in order, and no draw from training's streams."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset

from evalmode.errors import TaskError, UsageError
from evalmode.evaluation.batches import batch_length, batches_from

INPUTS, TARGETS = torch.arange(22.0).view(11, 2), torch.arange(11)


class Squares(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return {"x": INPUTS[index], "labels": index}


class Noisy(Squares):
    def __getitem__(self, index):
        return INPUTS[index] + torch.randn(2) + np.random.randn() + random.random(), index


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(INPUTS, TARGETS, strict=True))


def streams():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize(
    "data",
    [
        (INPUTS, TARGETS),
        [INPUTS, TARGETS],
        (INPUTS.numpy(), TARGETS.numpy()),
        TensorDataset(INPUTS, TARGETS),
        DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4),
        Stream(),
    ],
    ids=["pair", "list", "arrays", "tensor dataset", "loader", "stream"],
)
def test_every_sample_comes_once_and_in_order(data):
    batches = batches_from(data, 4)
    for _ in range(2):
        parts = list(batches)
        assert [len(target) for _, target in parts] == [4, 4, 3]
        assert torch.equal(torch.cat([inputs for inputs, _ in parts]), INPUTS)
        assert torch.equal(torch.cat([target for _, target in parts]), TARGETS)
    assert batches.samples == (None if isinstance(data, Stream) else 11)


def test_samples_that_are_mappings_are_collated():
    first = next(iter(batches_from(Squares(), 4)))
    assert first["x"].shape == (4, 2)
    assert first["labels"].tolist() == [0, 1, 2, 3]


def test_inputs_may_be_a_mapping_of_tensors():
    parts = list(batches_from(({"a": INPUTS, "b": INPUTS + 1}, TARGETS), 8))
    assert parts[1][0]["b"].tolist() == (INPUTS[8:] + 1).tolist()
    assert [len(target) for _, target in parts] == [8, 3]


@pytest.mark.parametrize("data", [(INPUTS, TARGETS), TensorDataset(INPUTS, TARGETS), Squares()])
@pytest.mark.parametrize(("limit", "sizes"), [(1, [1]), (4, [4]), (6, [4, 2]), (99, [4, 4, 3])])
def test_limit_cuts_the_last_batch(data, limit, sizes):
    batches = batches_from(data, 4, limit)
    assert [batch_length(batch) for batch in batches] == sizes
    assert batches.samples == sum(sizes)


def test_limit_ends_a_loader_after_the_batch_that_reaches_it():
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4)
    assert [batch_length(batch) for batch in batches_from(loader, limit=5)] == [4, 4]
    assert batches_from(loader, limit=5).samples == 5


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("shuffle", [False, True])
def test_loading_draws_nothing_from_trainings_streams(workers, shuffle):
    generator = torch.Generator().manual_seed(7)
    for given in (None, generator):
        loader = DataLoader(Noisy(), batch_size=4, shuffle=shuffle, num_workers=workers, generator=given)
        before = streams(), generator.get_state().tolist()
        for _ in batches_from(loader):
            assert (streams(), generator.get_state().tolist()) == before
        assert (streams(), generator.get_state().tolist()) == before


def test_a_plain_loader_does_draw_so_that_the_test_above_can_fail():
    before = streams()
    list(DataLoader(Noisy(), batch_size=4))
    assert streams() != before


def test_a_dataset_that_draws_is_kept_apart_too():
    before = streams()
    list(batches_from(Noisy(), 4))
    assert streams() == before


def test_a_failing_dataset_leaves_the_streams_as_they_were():
    class Failing(Noisy):
        def __getitem__(self, index):
            super().__getitem__(index)
            raise OSError("disk")

    before = streams()
    for data in (Failing(), DataLoader(Failing())):
        with pytest.raises(OSError, match="disk"):
            list(batches_from(data))
        assert streams() == before


def test_a_shuffling_loader_gives_every_sample_and_says_so():
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4, shuffle=True)
    batches = batches_from(loader)
    assert sorted(torch.cat([target for _, target in batches]).tolist()) == list(range(11))
    assert any("shuffles" in note for note in batches.notes)


def test_dropped_samples_are_said():
    batches = batches_from(DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4, drop_last=True))
    assert batches.samples == 8
    assert batches.notes == ("the DataLoader has drop_last=True: the last 3 samples are left out",)


def test_a_batch_sampler_of_the_users_own_is_used_as_it_is():
    class Backwards(BatchSampler):
        def __iter__(self):
            return iter([[10, 9], [8]])

    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_sampler=Backwards(SequentialSampler(INPUTS), 2, False))
    batches = batches_from(loader)
    assert [target.tolist() for _, target in batches] == [[10, 9], [8]]
    assert batches.samples is None


def test_batches_go_through_unchanged():
    batches = batches_from((INPUTS, TARGETS), 4)
    assert batches_from(batches) is batches


@pytest.mark.parametrize(
    "data",
    [None, "digits", INPUTS, iter([(INPUTS, TARGETS)]), [(INPUTS, TARGETS)], {"x": INPUTS}, torch.nn.Linear(1, 1), 3],
)
def test_other_data_is_an_error_with_a_fix(data):
    with pytest.raises(TaskError) as caught:
        batches_from(data)
    assert "DataLoader" in caught.value.fix


@pytest.mark.parametrize(
    "data",
    [
        (INPUTS[:0], TARGETS[:0]),
        TensorDataset(INPUTS[:0], TARGETS[:0]),
        DataLoader(TensorDataset(INPUTS[:0], TARGETS[:0])),
        (INPUTS, TARGETS[:5]),
    ],
)
def test_empty_or_unequal_data_is_an_error(data):
    with pytest.raises(TaskError):
        batches_from(data)


def test_samples_of_unequal_shape_are_an_error_that_names_them():
    class Ragged(Squares):
        def __getitem__(self, index):
            return torch.zeros(index + 1), index

    with pytest.raises(TaskError, match="samples 0 to 3 of the Ragged"):
        list(batches_from(Ragged(), 4))


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("limit", -1), ("batch_size", True), ("limit", 2.5)])
def test_sizes_are_whole_numbers_above_0(name, value):
    with pytest.raises(UsageError, match=name):
        batches_from((INPUTS, TARGETS), **{name: value})
