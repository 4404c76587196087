"""Outputs of an execution are nobody else's: not another output's, not the caller's, not inference mode's."""

import torch

from evalmode.backends.interface import Interface, Wiring
from evalmode.backends.packing import TensorRecord
from evalmode.backends.torch_executor import fresh


def test_an_output_that_is_there_twice_is_two() -> None:
    y = torch.ones(3)
    one, other = fresh((y, y))
    one.zero_()
    assert other.tolist() == [1.0, 1.0, 1.0]


def test_outputs_are_no_inference_tensors() -> None:
    with torch.inference_mode():
        y = torch.ones(3)
    (found,) = fresh((y,))
    assert not found.is_inference()
    found.add_(1)


def test_a_repeated_output_of_a_graph_is_copied() -> None:
    record = TensorRecord.of(torch.ones(3))
    wiring = Wiring((("computed", 0), ("computed", 0), ("input", 0)))
    interface = Interface((record,), (0,), (record,), (), wiring)
    given, computed = torch.zeros(3), torch.ones(3)
    outputs = interface.assembled((given,), (computed,), ())
    assert len({output.data_ptr() for output in (*outputs, given)}) == 4
