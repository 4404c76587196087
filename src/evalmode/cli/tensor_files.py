"""Batches and outputs as files: NumPy, safetensors and JSON. Nothing here unpickles."""

from __future__ import annotations

import io
import json
import math
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalmode.atomic_file import atomic_file
from evalmode.cli.printing import writable_file
from evalmode.errors import BatchError, UsageError
from evalmode.observe.tree import tensor_leaves
from evalmode.predictor.signature import Signature, TensorSpec

__all__ = ["json_text", "read_batch", "require_writable", "write_outputs"]

READABLE = (".npy", ".npz", ".safetensors", ".json")


def read_batch(source: str, signature: Signature | None) -> Any:
    """The batch in a file, or as JSON on standard input for `-`, in the dtypes of the signature.

    Numbers of a file become the dtype that the signature wants only where no value changes.

    Raises:
        UsageError: the file is missing, of an unknown kind, or not what its name says.
        BatchError: names, dtypes or shapes do not fit the signature.
    """
    tensors = _read(source)
    source = "standard input" if source == "-" else source
    if signature is None:
        return tensors
    wanted = {spec.name: spec for spec in signature.inputs}
    if not isinstance(tensors, Mapping):
        if len(wanted) != 1:
            raise BatchError(
                f"{source} holds one tensor", expected=f"tensors by name: {', '.join(wanted)}", fix="an .npz file"
            )
        tensors = {next(iter(wanted)): tensors}
    if tensors.keys() != wanted.keys():
        raise BatchError(f"{source} holds {', '.join(tensors) or 'nothing'}", expected=", ".join(wanted))
    typed = {name: _typed(tensors[name], spec, source) for name, spec in wanted.items()}
    for name, spec in wanted.items():
        if not spec.accepts(typed[name]) and spec.accepts(typed[name].unsqueeze(0)):
            fix = "add a batch axis: [[...]] instead of [...] in JSON, array[None] in NumPy"
            raise BatchError(f"{name} of {source} is one sample without a batch axis", expected=str(spec), fix=fix)
    values = tuple(typed.values())
    return typed if signature.call == "mapping" else values if signature.call == "tuple" else values[0]


def json_text(outputs: Any) -> str:
    """The outputs as one line of JSON: lists of numbers, by name where there are several; NaN and Inf become text."""
    named = {path or "output": _listed(tensor.tolist()) for path, tensor in _outputs(outputs).items()}
    return json.dumps(next(iter(named.values())) if list(named) == ["output"] else named, allow_nan=False)


def write_outputs(outputs: Any, path: Path) -> None:
    """Write the outputs in the format that the name of the file asks for.

    Raises:
        UsageError: one tensor is wanted and there are several, or the file cannot be written.
    """
    named = {name: tensor.contiguous() for name, tensor in _outputs(outputs).items()}
    try:
        if path.suffix == ".json":
            data = (json_text(outputs) + "\n").encode()
        elif path.suffix == ".safetensors":
            from safetensors.torch import save

            data = save({name: tensor.clone() for name, tensor in named.items()})
        elif path.suffix == ".npz":
            data = _archive(named)
        elif len(named) == 1:
            data = _written(next(iter(named.values())))
        else:
            raise UsageError(f"{path} can hold one tensor; there are {', '.join(named)}", fix="--out outputs.npz")
        with atomic_file(path) as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", fix="--out FILE") from error


def require_writable(path: Path) -> None:
    """Refuse a file name before any work is done for it.

    Raises:
        UsageError: its ending names no format, or its folder does not exist.
    """
    if path.suffix not in READABLE:
        raise UsageError(f"cannot tell the format of {path}", expected=" or ".join(f"*{end}" for end in READABLE))
    if not path.resolve().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", fix=f"mkdir -p {path.parent}")
    writable_file(path, "--out")


def _read(source: str) -> Any:
    if source == "-":
        try:
            return _from_json(sys.stdin.read(), "standard input")
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is no text: {error}", expected="JSON in UTF-8") from error
    path = Path(source)
    if path.suffix not in READABLE:
        pickled = path.suffix in {".pt", ".pth", ".pkl", ".bin"}
        raise UsageError(
            f"cannot read {source}" + (": pickled files can run code" if pickled else ""),
            expected=" or ".join(f"*{end}" for end in READABLE),
            fix='numpy.savez("inputs.npz", name=tensor.numpy())',
        )
    try:
        if path.suffix == ".json":
            return _from_json(path.read_text(encoding="utf-8"), source)
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(path.read_bytes())
        loaded = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return torch.from_numpy(np.ascontiguousarray(loaded))
        with loaded:
            return {name: torch.from_numpy(np.ascontiguousarray(loaded[name])) for name in loaded.files}
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror or error}", expected="a file of inputs") from error
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{source} is no {path.suffix} file: {type(error).__name__}: {error}") from error


def _from_json(text: str, source: str) -> Any:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{source} is no JSON: {error}", expected="[[1.0, 2.0], ...] or {name: [...]}") from error
    try:
        return {str(k): torch.tensor(v) for k, v in value.items()} if isinstance(value, dict) else torch.tensor(value)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: null, and numbers beyond 64 bits
        raise UsageError(f"{source} holds no tensor: {error}", expected="lists of numbers of equal lengths") from error


def _typed(tensor: Tensor, spec: TensorSpec, source: str) -> Tensor:
    if tensor.dtype == spec.dtype:
        return tensor
    cast = tensor.to(spec.dtype)
    rounded_text = source == "standard input" or source.endswith(".json")  # JSON has one kind of number
    unchanged = bool(((cast.to(tensor.dtype) == tensor) | tensor.isnan()).all())
    if unchanged or (rounded_text and tensor.is_floating_point() and cast.is_floating_point()):
        return cast
    raise BatchError(
        f"{spec.name} of {source} is {str(tensor.dtype).removeprefix('torch.')}, and values would change",
        expected=str(spec),
        fix=f"convert it first: array.astype({str(spec.dtype).removeprefix('torch.')!r})",
    )


def _outputs(outputs: Any) -> dict[str, Tensor]:
    named = {}
    for path, tensor in tensor_leaves(outputs):
        inner = path.removeprefix("['").removesuffix("']")
        named[(inner if inner.isidentifier() else path) or "output"] = tensor
    return named


def _written(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, _array(tensor), allow_pickle=False)
    return buffer.getvalue()


def _archive(named: dict[str, Tensor]) -> bytes:
    """What `numpy.load` reads as several arrays; `numpy.savez` cannot have some names, as `file`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, tensor in named.items():
            archive.writestr(f"{name}.npy", _written(tensor))
    return buffer.getvalue()


def _array(tensor: Tensor) -> Any:
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _listed(value: Any) -> Any:
    if isinstance(value, list):
        return [_listed(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, complex):
        return [_listed(value.real), _listed(value.imag)]
    return value
