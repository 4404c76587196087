"""An exported graph as an ONNX file, written once for every back end and batch size that reads it."""

from __future__ import annotations

import os
import weakref
from importlib.util import find_spec

import torch
from torch.export import ExportedProgram

from evalmode.backends.folder import Folder
from evalmode.backends.refusal import EXTRA
from evalmode.errors import BackendError

__all__ = ["MODEL", "WEIGHTS", "exporter_missing", "onnx_file"]

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"

_written: weakref.WeakKeyDictionary[ExportedProgram, tuple[Folder, tuple[int, ...]]] = weakref.WeakKeyDictionary()


def exporter_missing() -> str | None:
    """None where torch can export to ONNX, else what to install."""
    return None if find_spec("onnx") and find_spec("onnxscript") else EXTRA


def onnx_file(exported: ExportedProgram) -> tuple[Folder, tuple[int, ...]]:
    """A folder with the files `MODEL` and, where there are weights, `WEIGHTS`; and the inputs that the graph takes.

    Raises:
        BackendError: the exporter gives no graph, or one of other inputs. Other errors are the exporter's own.
    """
    known = _written.get(exported)
    if known is not None:
        return known
    onnx_program = torch.onnx.export(exported, (), dynamo=True, verbose=False, optimize=False)
    if onnx_program is None:
        raise BackendError("torch.onnx gives no graph")
    given = list(onnx_program.model.graph.initializers.values())
    onnx_program.optimize()
    graph = onnx_program.model.graph
    wanted = [str(name) for name in exported.graph_signature.user_inputs]
    names = [str(value.name) for value in graph.inputs]
    unknown = [name for name in names if name not in wanted]
    if unknown:
        raise BackendError(f"torch.onnx would need the input `{unknown[0]}`, which the program does not have")
    for node in graph.all_nodes():
        node.metadata_props.clear()  # the exporter's notes: lines of the user's code and their folders
    folder = Folder()
    onnx_program.save(os.fspath(folder.path / MODEL), external_data=True)
    if (folder.path / WEIGHTS).exists():
        folder.rewrite(WEIGHTS)
    for value in (*given, *graph.initializers.values()):
        value.const_value = None  # the exporter's rewrite rules keep the last graph they saw; not its weights
    _written[exported] = folder, tuple(wanted.index(name) for name in names)
    return _written[exported]
