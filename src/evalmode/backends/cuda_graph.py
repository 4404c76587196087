"""The kernels of one execution, recorded once and replayed: on a GPU, launching small kernels takes the most time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evalmode.backends.backend import Chunk

__all__ = ["recorded"]

_WARM_UP = 3


_capturing = threading.Lock()  # of one graph at a time in a process


def recorded(function: Callable[[Chunk], Sequence[Tensor]], example: Chunk) -> Callable[[Chunk], Sequence[Tensor]]:
    """`function` as a CUDA graph for inputs like `example`; `function` itself where it cannot be recorded.

    A graph reads and writes memory of its own: inputs are copied in and outputs copied out, by one caller at a time.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    device = next((tensor.device for tensor in example if tensor.is_cuda), None)
    if device is None or not all(tensor.is_cuda for tensor in example):
        return function
    own = tuple(tensor.clone() for tensor in example)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device), torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    function(own)
            torch.cuda.current_stream().wait_stream(side)
            with _capturing, torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads go on serving
                outputs = tuple(function(own))
    except RuntimeError:  # an operator waits for the GPU, or works on the processor: launched one by one then
        torch.cuda.synchronize(device)
        return function
    lock = threading.Lock()
    kept = (own, outputs, function)  # the graph reads and writes their memory, the function's constants too
    done = torch.cuda.Event()

    def replay(inputs: Chunk) -> Sequence[Tensor]:
        with lock, torch.cuda.device(device):
            torch.cuda.current_stream().wait_event(done)  # another thread's replay, perhaps on another stream
            for held, given in zip(kept[0], inputs, strict=True):
                held.copy_(given)
            graph.replay()
            copies = [output.clone() for output in kept[1]]
            done.record()
        return copies

    return replay
