"""The precision of fp32 is read and set for each library and operation, whichever way the user set it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from evalmode.observe.fp32_precision import fp32_precisions, set_fp32_precisions

PLACES = [(library, operation) for library in ("mkldnn", "cuda") for operation in ("matmul", "conv", "rnn")]


def raw() -> list[str]:
    return [torch._C._get_fp32_precision_getter(*place) for place in (*PLACES, ("mkldnn", "all"), ("cuda", "all"))]


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    before = dict(zip(PLACES, raw(), strict=False))
    yield
    for library in ("mkldnn", "cuda"):
        torch._C._set_fp32_precision_setter(library, "all", "none")
    for place, value in before.items():
        torch._C._set_fp32_precision_setter(*place, value)


def test_the_older_question_still_has_an_answer_after_a_setting_is_put_back() -> None:
    torch.set_float32_matmul_precision("medium")
    before = fp32_precisions()
    set_fp32_precisions(("ieee", *before[1:]))
    assert fp32_precisions()[0] == "ieee"
    set_fp32_precisions(before)
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("wanted", ["ieee", "tf32"])
def test_each_is_set_by_itself(place: tuple[str, str], wanted: str) -> None:
    before = fp32_precisions()
    values = tuple(wanted if each == place else value for each, value in zip(PLACES, before, strict=True))
    set_fp32_precisions(values)
    assert fp32_precisions() == values
    set_fp32_precisions(before)
    assert fp32_precisions() == before


def test_what_follows_a_wider_setting_follows_it_again_afterwards() -> None:
    for operation in ("matmul", "conv", "rnn"):
        torch._C._set_fp32_precision_setter("mkldnn", operation, "none")
    torch.backends.mkldnn.fp32_precision = "bf16"
    before = fp32_precisions()
    assert before[:3] == ("bf16", "bf16", "bf16")
    set_fp32_precisions(("ieee",) * 6)
    assert fp32_precisions()[:3] == ("ieee", "ieee", "ieee")
    set_fp32_precisions(before)
    torch.backends.mkldnn.fp32_precision = "ieee"
    assert fp32_precisions()[:3] == ("ieee", "ieee", "ieee")


@pytest.mark.parametrize("older", ["highest", "high", "medium"])
@pytest.mark.parametrize("held", ["highest", "high", "medium"])
@pytest.mark.parametrize("cudnn", [True, False])
def test_the_older_settings_are_kept_in_step(older: str, held: str, cudnn: bool) -> None:
    torch.set_float32_matmul_precision(held)
    torch.backends.cudnn.allow_tf32 = cudnn
    wanted = fp32_precisions()
    torch.set_float32_matmul_precision(older)
    torch.backends.cudnn.allow_tf32 = True
    before = fp32_precisions()
    set_fp32_precisions(wanted)
    assert fp32_precisions() == wanted
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (held, cudnn)
    set_fp32_precisions(before)
    assert fp32_precisions() == before
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (older, True)
    torch.set_float32_matmul_precision("highest")
