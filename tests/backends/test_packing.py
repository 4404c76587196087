from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalmode.backends.interface import Interface, Wiring
from evalmode.backends.packing import DTYPES, TensorRecord, pack, tensor_bytes, tensor_from, unpack
from evalmode.errors import BackendError

parts = st.dictionaries(st.text(max_size=5), st.binary(max_size=40), max_size=4)


@given(parts)
def test_parts_come_back(held: dict[str, bytes]) -> None:
    assert unpack(pack(held), tuple(held)) == held


@given(parts, st.data())
def test_no_truncation_or_tail_is_accepted(held: dict[str, bytes], data: st.DataObject) -> None:
    payload = pack(held)
    cut = data.draw(st.integers(0, len(payload) - 1))
    tail = data.draw(st.binary(min_size=1, max_size=9))
    for broken in (payload[:cut], payload + tail):
        with pytest.raises(BackendError):
            unpack(broken, tuple(held))
    with pytest.raises(BackendError):
        unpack(payload, (*held, "one more"))


@given(parts.filter(bool), st.data())
def test_a_changed_byte_changes_a_body_or_is_refused(held: dict[str, bytes], data: st.DataObject) -> None:
    payload = bytearray(pack(held))
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(payload), tuple(held))
    except BackendError:
        return
    assert found != held and found.keys() == held.keys()


def test_a_length_beyond_the_end_allocates_nothing() -> None:
    payload = pack({"a": b""})[:-8] + struct.pack("<Q", 2**62)
    with pytest.raises(BackendError, match="truncated"):
        unpack(payload, ("a",))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_a_tensor_comes_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape) * 100).to(dtype)
    found = tensor_from(TensorRecord.of(tensor), tensor_bytes(tensor))
    assert found.dtype is dtype and found.shape == tensor.shape
    assert tensor_bytes(found) == tensor_bytes(tensor)


def test_a_transposed_tensor_is_written_row_by_row() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    assert np.frombuffer(tensor_bytes(tensor), np.float32).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    "record",
    [
        TensorRecord("float32", (3,)),
        TensorRecord("float32", (-2, -1)),
        TensorRecord("float32", (2**40, 2**40)),
        TensorRecord("Tensor", (2,)),
    ],
)
def test_a_record_that_does_not_fit_is_refused(record: TensorRecord) -> None:
    with pytest.raises(BackendError):
        tensor_from(record, b"\0" * 8)


@pytest.mark.parametrize(
    "sources",
    [
        (("computed", 1),),
        (("computed", -1),),
        (("input", 1),),
        (("constant", 0),),
        (("file", 0),),
        (("computed", 0), ("computed", 0)),
        (),
    ],
)
def test_a_wiring_to_nowhere_is_refused(sources: tuple[tuple[str, int], ...]) -> None:
    sound = Interface.of((torch.ones(2),), (torch.ones(2),), (), Wiring((("computed", 0),)), (0,))
    sound.require_sound(1)
    record = sound.computed
    with pytest.raises(BackendError):
        Interface(sound.inputs, (0,), record, (), Wiring(sources)).require_sound(1)
    with pytest.raises(BackendError):
        Interface(sound.inputs, (1,), record, (), sound.wiring).require_sound(1)
    with pytest.raises(BackendError):
        Interface.from_parts({"interface": b"{}", "constants": b""}, 1)
    with pytest.raises(BackendError):
        Interface.from_parts({**sound.parts(()), "constants": b"x"}, 1)
    assert Interface.from_parts(sound.parts(()), 1) == (sound, ())
