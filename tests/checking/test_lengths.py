"""Padding that a vector of lengths tells of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import evalmode

LENGTHS = torch.tensor([9, 5, 7, 3, 9, 6])
IDS = torch.randint(1, 30, (6, 9), generator=torch.Generator().manual_seed(0))
PADDED = IDS * (torch.arange(9) < LENGTHS[:, None])
BATCHES = {
    "tuple": (PADDED, LENGTHS),
    "named": {"ids": PADDED, "lengths": LENGTHS},
    "without padding": (IDS, torch.full((6,), 9)),
}


class Tagger(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.embedding = nn.Embedding(30, 8, padding_idx=0)
        self.states = nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.read = read

    def forward(self, ids, lengths):
        return self.read(self, self.embedding(ids), lengths)


def ignoring(model, x, lengths):
    return model.states(x)[1].mean(0)


def packing(model, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return model.states(packed)[1].mean(0)


def averaging(model, x, lengths):
    real = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
    return (x * real).sum(1) / lengths[:, None]


@pytest.mark.parametrize("name", BATCHES)
def test_lengths_that_are_ignored_leak_padding(name):
    report = evalmode.check(Tagger(ignoring).eval(), BATCHES[name])
    assert [found.code for found in report.findings] == ["EM174"]


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("read", [packing, averaging])
def test_lengths_that_are_heeded_are_no_finding(name, read):
    assert evalmode.check(Tagger(read).eval(), BATCHES[name]).findings == ()
