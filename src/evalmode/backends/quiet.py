"""Chatty libraries kept still while they build: no warnings, log lines or printing, and no settings left changed."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

__all__ = ["one_at_a_time", "quiet"]

_CHATTY = (
    "torch.onnx",
    "torch.export",
    "torch._dynamo",
    "torch._inductor",
    "torch.fx",
    "onnxscript",
    "onnx_ir",
    "openvino",
)


one_at_a_time = threading.RLock()
"""Held while streams, warnings and loggers of the process are changed."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed, warned or logged by the libraries inside; errors are raised as ever.

    One thread at a time: what two put back in turn would stay changed in the process.

    Example:
        >>> with quiet():
        ...     print("Converting...")
    """
    with one_at_a_time, _still():
        yield


@contextlib.contextmanager
def _still() -> Iterator[None]:
    wanted = [name for name in logging.root.manager.loggerDict if name.startswith(_CHATTY)]
    loggers = [logging.getLogger(name) for name in {*wanted, *_CHATTY}]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
