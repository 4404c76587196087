"""`check` on inputs and outputs that are not plain dense tensors, and on padding at either end."""

import warnings

import pytest
import torch
from torch import nn

from evalmode import check
from evalmode.errors import UsageError

DENSE = torch.linspace(-1, 1, 24).reshape(6, 4)
pytestmark = pytest.mark.filterwarnings("ignore:.*(beta|prototype|deprecated)")


class Calling(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.function = function

    def forward(self, *inputs):
        return self.function(self.linear, *inputs)


def ragged(layout):
    return torch.nested.nested_tensor([torch.full((n % 3 + 2, 4), n / 6) for n in range(6)], layout=layout)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch calls these layouts a beta
    INPUTS = {
        "coo": DENSE.to_sparse(),
        "csr": DENSE.to_sparse_csr(),
        "bsr": DENSE.to_sparse_bsr((2, 2)),
        "mkldnn": DENSE.to_mkldnn(),
        "quantised": torch.quantize_per_tensor(DENSE, 0.1, 10, torch.quint8),
        "float8": DENSE.to(torch.float8_e4m3fn),
        "uint16": torch.arange(24).reshape(6, 4).to(torch.uint16),
        "empty": DENSE[:0],
    }


def dense(linear, x):
    x = x.dequantize() if x.is_quantized else x
    return linear((x if x.layout is torch.strided else x.to_dense()).float())


@pytest.mark.parametrize("probes", ["fast", "default"])
@pytest.mark.parametrize("name", INPUTS)
def test_an_unusual_input_breaks_nothing(name, probes):
    assert check(Calling(dense).eval(), INPUTS[name], probes=probes).ok


@pytest.mark.parametrize("name", ["coo", "csr", "mkldnn", "quantised", "float8"])
def test_a_dependence_shows_on_an_unusual_input(name):
    model = Calling(lambda linear, x: dense(linear, x) - dense(linear, x).mean(0))
    found = check(model.eval(), INPUTS[name], clauses=["batch-independent"]).findings
    assert [finding.code for finding in found] == ["EM171"]


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_batch_is_tested_sample_by_sample(layout):
    report = check(Calling(lambda linear, x: linear(x)).eval(), ragged(layout), probes="fast")
    assert report.ok
    assert {result.verdict for result in report.certificate.clauses} == {"kept"}


@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn, torch.Tensor.to_sparse_csr])
def test_an_unusual_output_is_compared(convert):
    assert check(Calling(lambda linear, x: convert(linear(x))).eval(), DENSE).ok
    mixed = Calling(lambda linear, x: convert(linear(x) - linear(x).mean(0))).eval()
    (result,) = check(mixed, DENSE, clauses=["batch-independent"]).certificate.clauses
    assert result.verdict == "broken"


class Lazy(nn.Module):
    def __init__(self, used):
        super().__init__()
        self.inner, self.used = nn.LazyLinear(3), used

    def forward(self, x):
        return self.inner(x) if self.used else x * 2


def test_a_lazy_module_is_refused_only_if_the_pass_needs_it():
    assert check(Lazy(used=False).eval(), DENSE).ok
    model = Lazy(used=True).eval()
    with pytest.raises(UsageError, match=r"inner\.weight.*not initialised"):
        check(model, DENSE)
    assert model.inner.has_uninitialized_params()


class Pooled(nn.Module):
    def __init__(self, masked):
        super().__init__()
        self.embedding, self.masked = nn.Embedding(20, 8, padding_idx=0), masked

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids) + 0.1
        weights = attention_mask[..., None].float() if self.masked else torch.ones_like(x[..., :1])
        return (x * weights).sum(1) / weights.sum(1)


@pytest.mark.parametrize("padded", [slice(0, 0), slice(4, None), slice(None, 2)], ids=["nowhere", "end", "start"])
@pytest.mark.parametrize("named", [True, False])
def test_padding_at_either_end_is_probed_and_made_where_there_is_none(padded, named):
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[0, padded] = 0
    ids = torch.arange(1, 25).reshape(4, 6) % 19 * mask
    batch = {"input_ids": ids, "attention_mask": mask} if named else (ids, mask)
    sound, leaking = (check(Pooled(kind).eval(), batch, clauses=["batch-independent"]) for kind in (True, False))
    assert sound.ok
    assert [finding.code for finding in leaking.findings] == ["EM174"]
    assert "attention_mask" in leaking.findings[0].fix


def test_only_the_fully_masked_edge_is_named_with_the_fast_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0, 4:] = True
    batch = {"src": torch.randn(4, 6, 16), "src_key_padding_mask": mask}
    (finding,) = check(model, batch, clauses=["finite"]).findings
    assert "only this edge" in finding.seen
    assert "fast path" in finding.seen
    assert "allow=" in finding.fix
    assert torch.backends.mha.get_fastpath_enabled()


class SwitchedOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.1))

    def forward(self, x):
        self.drop.train()
        return self.drop(x)


def test_a_module_switched_on_in_forward_is_placed_at_the_call():
    (finding,) = check(SwitchedOn().eval(), DENSE, clauses=["no-randomness"]).findings
    assert (finding.code, finding.place.module, finding.place.source) == ("EM127", "drop", "self.drop.train()")


def test_a_container_too_long_to_search_is_undecided_unless_the_rest_is_plain_data():
    model = nn.Linear(4, 3).eval()
    model.vocabulary = {str(n): n for n in range(12_000)}
    assert check(model, DENSE, clauses=["mode-complete"]).certificate.clauses[0].verdict == "kept"
    model.vocabulary = [object()] * 12_000
    (result,) = check(model, DENSE, clauses=["mode-complete"]).certificate.clauses
    assert result.verdict == "undecided"
    assert result.notes == ("vocabulary: 10,000 of 12,000 items searched",)
