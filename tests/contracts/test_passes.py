"""What every pass promises, whichever it is."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from evalmode.observe.tree import same_bits
from evalmode.optimization.catalog import PASS_FILES, pages, passes_named
from evalmode.optimization.exporting import program_of
from evalmode.optimization.functional import functional_module
from evalmode.optimization.graph import lean_module
from evalmode.optimization.rewriting import apply_passes

BITS_KEPT = {"remove-dropout", "remove-identities", "bake-parametrizations", "fold-constants"}


def built(code: str) -> tuple[nn.Module, torch.Tensor]:
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(code, "<page>", "exec"), scope)
    return scope["model"], scope["batch"]


@pytest.mark.parametrize("name", PASS_FILES)
def test_the_example_is_rewritten_and_the_model_keeps_every_bit(name: str) -> None:
    model, batch = built(pages()[name].code_block("Example"))
    model.train()
    before = copy.deepcopy(model.state_dict())
    program = program_of(model, batch).program
    rewritten, report = apply_passes(program, [name])
    assert report.changed[name] >= 1
    assert report.problem == ""
    assert rewritten.dynamic
    if name != "channels-last":
        assert report.operators_after < report.operators_before
    assert model.training
    assert all(same_bits(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        for size in (1, 2, 9):
            inputs = program.inputs_at(size)
            for one, other in zip(rewritten.module(*inputs), model.eval()(*inputs)[None], strict=True):
                assert one.shape == other.shape
                assert one.stride() == other.stride()
                assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
                assert name not in BITS_KEPT or same_bits(one, other)


@pytest.mark.parametrize("name", PASS_FILES)
def test_what_the_page_recommends_instead_leaves_nothing_to_do(name: str) -> None:
    model, batch = built(pages()[name].code_block("Use instead"))
    _, report = apply_passes(program_of(model, batch).program, [name])
    assert report.changed == {name: 0}
    assert report.refused.get(name, ()) == ()


@pytest.mark.parametrize("name", PASS_FILES)
def test_a_page_names_its_pass(name: str) -> None:
    (one,) = passes_named([name])
    assert pages()[name].title.startswith(f"{one.name}: ")
    assert one.name == name


@pytest.mark.parametrize("name", PASS_FILES)
def test_a_second_time_finds_nothing_more(name: str) -> None:
    program = program_of(*built(pages()[name].code_block("Example"))).program
    (one,) = passes_named([name])
    graph, _ = functional_module(program.exported)
    assert one.apply(graph, program.inputs).changed >= 1
    assert one.apply(graph, program.inputs).changed == 0


@pytest.mark.parametrize("name", PASS_FILES)
def test_a_graph_that_writes_into_a_value_is_left_alone(name: str) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x * 1 + self.count

    exported = torch.export.export(Writes(), (torch.ones(2, 3),), strict=False)
    graph = lean_module(exported)
    before = str(graph.graph)
    (one,) = passes_named([name])
    result = one.apply(graph, (torch.ones(2, 3),))
    assert result.changed == 0
    assert "writes into a value" in str(result.refused[0])
    assert str(graph.graph) == before


def test_by_default_the_passes_of_every_back_end_run() -> None:
    assert [one.name for one in passes_named()] == [name for name in PASS_FILES if name != "channels-last"]


def test_an_unknown_pass_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no pass 'fuse'\n.*remove-dropout"):
        passes_named(["fuse"])


def test_reading_pages_imports_no_torch() -> None:
    code = "import sys; from evalmode.optimization.catalog import pages; pages(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
