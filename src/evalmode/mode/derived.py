"""Predictors that were built from a model, and whether the model's weights are still those they were built from.

A predictor runs a copy of the weights. Once the model was trained further, or other weights were loaded, its answers
are those of yesterday's model. So a predictor that lives is registered here with its model, and an evaluation of that
model looks whether they still agree. Nothing is held alive, and nothing is looked at while no such predictor lives.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from evalmode.errors import StalePredictorError
from evalmode.mode.discover import discover
from evalmode.mode.weights import registered_weights, unregistered_weights

__all__ = ["fresh", "live_predictors", "register", "require_fresh", "staleness_unchecked", "unregister"]

# A prime: what is moved by a power of two, as rows and channels are, does not come to lie in its old column.
_COLUMNS = 1021
_HASHED_WHOLE = 1 << 16


@dataclass(frozen=True, slots=True)
class _Link:
    predictor: weakref.ref[object]
    model: weakref.ref[nn.Module]
    contents: bytes
    modes: tuple[bool, ...]
    """Of the modules whose switch moves tensors; empty where none does."""


class _Unchecked(threading.local):
    depth = 0


_links: dict[int, _Link] = {}
_unchecked = _Unchecked()


def register(model: nn.Module, predictor: object) -> None:
    """Remember that `predictor` was built from `model` as it is now. Neither is held alive.

    Example:
        >>> class Built:
        ...     pass
        >>> model, built = nn.Linear(1, 1), Built()
        >>> register(model, built)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1.0)
        >>> fresh(built)
        False
    """
    key, contents = id(predictor), _contents(model)
    modes = _modes(model) if _switch_moves_tensors(model, contents) else ()
    _links[key] = _Link(weakref.ref(predictor, lambda _: _links.pop(key, None)), weakref.ref(model), contents, modes)


def unregister(predictor: object) -> None:
    """Forget `predictor`: it is closed."""
    _links.pop(id(predictor), None)


def live_predictors(model: nn.Module) -> list[object]:
    """The predictors built from `model` that are still in use."""
    links = [link for link in list(_links.values()) if link.model() is model]
    return [predictor for link in links if (predictor := link.predictor()) is not None]


def fresh(predictor: object) -> bool:
    """Whether the weights of the model that `predictor` was built from are still the same.

    True too where nothing can be compared: the model is gone, or it was merged by an `eval()` of its own, as an adapter
    is, so that its tensors hold other numbers in this mode.
    """
    link = _links.get(id(predictor))
    return link is None or _agrees(link)


def require_fresh(modules: Iterable[nn.Module]) -> None:
    """Refuse to go on while a predictor lives that was built from one of `modules` and no longer agrees with it.

    Raises:
        StalePredictorError: such a predictor lives.
    """
    if not _links or _unchecked.depth:
        return
    wanted = {id(module) for module in modules}
    for link in list(_links.values()):
        model, predictor = link.model(), link.predictor()
        if model is None or predictor is None or id(model) not in wanted or _agrees(link):
            continue
        raise StalePredictorError(
            f"the weights of {type(model).__name__} have changed since {predictor!r} was built from it",
            expected="a predictor that gives the answers of the model as it is now",
            fix="fast = evalmode.refresh(fast, model); or, if it is no longer needed, del fast or fast.close()",
        )


@contextlib.contextmanager
def staleness_unchecked() -> Iterator[None]:
    """A block in which evaluations of a model look at no predictor: while a new one is made, or the model itself runs.

    Example:
        >>> with staleness_unchecked():
        ...     require_fresh([nn.Linear(1, 1)])
    """
    _unchecked.depth += 1
    try:
        yield
    finally:
        _unchecked.depth -= 1


def _agrees(link: _Link) -> bool:
    model = link.model()
    if model is None or (link.modes and _modes(model) != link.modes):
        return True
    return _contents(model) == link.contents


def _switch_moves_tensors(model: nn.Module, contents: bytes) -> bool:
    """Whether its own `train()` and `eval()` change its tensors, as an adapter's do that merges: tried on a copy.

    True too where it cannot be tried.
    """
    if not _modes(model):
        return False
    try:
        other = copy.deepcopy(model)
        return any(_contents(other.train(mode)) != contents for mode in (True, False))
    except Exception:  # noqa: BLE001 - whatever a module raises that cannot be copied or switched
        return True


def _modes(model: nn.Module) -> tuple[bool, ...]:
    """The flags of the modules whose own `train()` or `eval()` may change tensors."""
    return tuple(
        module.training
        for module in discover(model).modules
        if type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval
    )


def _contents(model: nn.Module) -> bytes:
    """A quick digest of every weight, registered or not, by content: a write through `.data` moves no counter."""
    digest = hashlib.sha256()
    for name, tensor in (*registered_weights(model), *unregistered_weights(model)):
        digest.update(f"{name} {tensor.dtype} {tensor.layout}".encode())
        try:
            digest.update(f"{tuple(tensor.shape)}".encode())
            _update(digest, tensor.detach())
        except (RuntimeError, NotImplementedError, TypeError, ValueError):  # lazy, meta, nested: told apart by identity
            digest.update(f"{id(tensor)} {getattr(tensor, '_version', 0)}".encode())
    return digest.digest()


def _update(digest: hashlib._Hash, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    plain = tensor.int_repr() if tensor.is_quantized else tensor.resolve_conj().resolve_neg()
    with torch.no_grad():
        values = plain.contiguous().reshape(-1).view(torch.uint8)
        if values.numel() > _HASHED_WHOLE:
            if values.storage_offset() % 8:
                values = values.clone()
            rows = values.numel() // (8 * _COLUMNS)
            whole = rows * 8 * _COLUMNS
            sums = values[:whole].view(torch.int64).view(rows, _COLUMNS).sum(0)
            digest.update(sums.cpu().numpy().tobytes())
            values = values[whole:]
        digest.update(values.cpu().numpy().tobytes())
