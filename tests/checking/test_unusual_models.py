"""Models off the beaten track: they are checked without a crash or a false alarm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import evalmode


class Jacobian(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return torch.vmap(torch.func.jacrev(self.linear))(x)


class SparseWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.weight, x.T).T


CLEAN = {
    "jacobian": (Jacobian, lambda: torch.randn(8, 6)),
    "complex": (lambda: nn.Linear(6, 8, dtype=torch.complex64), lambda: torch.randn(8, 6, dtype=torch.complex64)),
    "sparse weight": (SparseWeight, lambda: torch.randn(8, 6)),
}


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_model_is_checked_without_alarm(name):
    build, batch = CLEAN[name]
    report = evalmode.check(build().eval(), batch())
    assert report.findings == ()
    assert report.ok


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_the_transformer_fast_path_is_blamed_for_its_masked_rows_and_not_for_a_crash():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 16)
            self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

        def forward(self, ids, mask):
            hidden = self.layers(self.embed(ids), src_key_padding_mask=mask == 0)
            return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    mask = (torch.arange(9)[None] < torch.tensor([9, 3, 5, 8, 2, 7, 1, 4])[:, None]).long()
    report = evalmode.check(Encoder().eval(), {"ids": torch.randint(1, 50, (8, 9)), "mask": mask})
    assert {finding.code for finding in report.findings} <= {"EM191"}
