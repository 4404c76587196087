"""The form of a batch or of outputs as plain data: opened into tensors, and put together again around other tensors.

A predictor runs flat tensors. What lies around them (mappings, tuples, named tuples, dataclasses, Hugging Face outputs,
and constants such as None, numbers and text) is kept as plain data, so that it can be written into an artifact. In the
process that saw the outputs, they get their own classes back; where only the data is known, a `Record` or a
`NamedValues` with the same keys and attributes stands in for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evalmode.errors import BatchError
from evalmode.observe.tree import describe, leaves
from evalmode.predictor.form import (
    OMITTED,
    ConstantNode,
    MappingNode,
    Node,
    OmittedNode,
    SequenceNode,
    TensorNode,
    children,
    plainly_made,
)
from evalmode.predictor.opening import Maker, opened

__all__ = ["Structure", "input_structure", "output_structure"]

_ANY = TensorNode()
_OF_ARRAYS = (
    "torch.from_numpy(array); with negative strides or the other byte order, "
    "torch.from_numpy(numpy.ascontiguousarray(array, array.dtype.newbyteorder('=')))"
)


@dataclass(frozen=True)
class Structure:
    """The form of a tree. `makers` hold, by path, how a container of this process is built; a loaded form has none.

    Example:
        >>> form = output_structure({"logits": torch.zeros(2, 3), "scale": 0.5})
        >>> form.paths
        ("['logits']",)
        >>> form.rebuild([torch.ones(1)])
        {'logits': tensor([1.]), 'scale': 0.5}
    """

    root: Node
    makers: Mapping[str, Maker] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        paths, omitted = [], []
        for path, node in _walk(self.root, ""):
            if isinstance(node, TensorNode):
                paths.append(path)
            elif isinstance(node, OmittedNode):
                omitted.append(f"{path or 'the whole'} ({node.kind})")
        object.__setattr__(self, "paths", tuple(paths))
        object.__setattr__(self, "omitted", tuple(omitted))
        object.__setattr__(self, "_build", _builder(self.root, "", self.makers))

    paths: tuple[str, ...] = field(init=False, compare=False)
    """The path of each tensor, in the order of `flatten`."""
    omitted: tuple[str, ...] = field(init=False, compare=False)
    """What is left out, each with its type: caches and other objects, numbers that changed between batches."""
    _build: Callable[[Iterator[Any]], Any] = field(init=False, compare=False, repr=False)

    def flatten(self, tree: Any) -> list[torch.Tensor]:
        """The tensors of `tree`, in the order of `paths`.

        Raises:
            BatchError: `tree` has another form; the message says where.
        """
        root = self.root
        if isinstance(root, TensorNode) and isinstance(tree, torch.Tensor):
            return [tree]
        found: list[torch.Tensor] = []
        _collect(root, tree, "", found)
        return found

    def rebuild(self, tensors: Sequence[Any]) -> Any:
        """The tree around `tensors`, one for each of `paths`."""
        if isinstance(self.root, TensorNode):
            return tensors[0]
        tree = self._build(iter(tensors))
        return None if tree is OMITTED else tree


def input_structure(batch: Any) -> Structure:
    """The form of a batch.

    Raises:
        BatchError: the batch holds something else than tensors and constants: a plan cannot depend on it.

    Example:
        >>> input_structure((torch.zeros(2, 3), None)).paths
        ('[0]',)
    """
    structure = _structure_of(batch)
    if structure.omitted:
        raise BatchError(
            f"the batch holds {', '.join(structure.omitted)}",
            expected="tensors, constants (None, numbers, text), and lists, tuples, mappings and dataclasses of them",
            fix=_OF_ARRAYS
            if any(isinstance(leaf, np.ndarray) for _, leaf in leaves(batch))
            else "leave it out of the batch, or build it inside forward=lambda model, batch: ...",
        )
    return structure


def output_structure(outputs: Any, *others: Any) -> Structure:
    """The form of outputs. Objects that are neither tensors nor constants are left out and listed in `omitted`.

    `others` are outputs of the same model on other batches: a number or text that is not the same in all of them is no
    constant, and is left out too.

    Raises:
        BatchError: the outputs of the batches have different forms.

    Example:
        >>> output_structure((torch.zeros(2), 2), (torch.zeros(3), 3)).omitted
        ('[1] (int that changes between batches)',)
    """
    first = _structure_of(outputs)
    root = first.root
    for other in others:
        root = _merged(root, _structure_of(other).root, "")
    return Structure(root, first.makers)


def _structure_of(tree: Any) -> Structure:
    makers: dict[str, Maker] = {}
    return Structure(_node_of(tree, "", makers, frozenset()), makers)


def _node_of(tree: Any, path: str, makers: dict[str, Maker], above: frozenset[int]) -> Node:
    if isinstance(tree, torch.Tensor):
        return TensorNode()
    if ConstantNode.holds(tree):
        return ConstantNode.of(tree)
    container = opened(tree) if id(tree) not in above else None
    if container is None:
        return OmittedNode(kind=type(tree).__name__)
    inside = above | {id(tree)}
    steps = [step for step, _ in children(container.node((_ANY,) * len(container.values)))]
    items = (_node_of(value, path + step, makers, inside) for value, step in zip(container.values, steps, strict=True))
    node = container.node(tuple(items))
    if container.maker is not None:
        makers[path] = container.maker
    return node


def _merged(first: Node, second: Node, path: str) -> Node:
    if first == second:
        return first
    if isinstance(first, ConstantNode) and isinstance(second, ConstantNode):
        return OmittedNode(kind=f"{first.kind} that changes between batches")
    if isinstance(first, OmittedNode) and isinstance(second, ConstantNode | OmittedNode):
        return first
    here, there = children(first), children(second)
    alike = type(first) is type(second) and [step for step, _ in here] == [step for step, _ in there]
    if isinstance(first, SequenceNode | MappingNode) and alike:
        merged = (_merged(one, other, path + step) for (step, one), (_, other) in zip(here, there, strict=True))
        return first.with_items(tuple(merged))
    raise BatchError(
        f"the outputs have another form for another batch, at {path or 'the top'}: {first} and {second}",
        expected="outputs of one form, whatever the batch",
    )


def _walk(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    yield path, node
    for step, child in children(node):
        yield from _walk(child, path + step)


def _collect(node: Node, tree: Any, path: str, found: list[torch.Tensor]) -> None:
    if isinstance(node, TensorNode):
        if not isinstance(tree, torch.Tensor):
            raise _misfit(path, tree, "a tensor")
        found.append(tree)
    elif isinstance(node, ConstantNode):
        if not (ConstantNode.holds(tree) and ConstantNode.of(tree) == node):
            raise _misfit(path, tree, f"{node.value!r}, which the plan was built with")
    elif isinstance(node, MappingNode):
        _collect_mapping(node, tree, path, found)
    elif isinstance(node, SequenceNode):
        container = list if node.kind == "list" else tuple
        if not isinstance(tree, container) or len(tree) != len(node.items):
            raise _misfit(path, tree, str(node))
        for position, (item, value) in enumerate(zip(node.items, tree, strict=True)):
            _collect(item, value, f"{path}[{position}]", found)


def _collect_mapping(node: MappingNode, tree: Any, path: str, found: list[torch.Tensor]) -> None:
    if node.attributes:
        if any(not hasattr(tree, str(key)) for key in node.keys):
            raise _misfit(path, tree, str(node))
        for key, item in zip(node.keys, node.items, strict=True):
            _collect(item, getattr(tree, str(key)), f"{path}.{key}", found)
        return
    if not isinstance(tree, Mapping):
        raise _misfit(path, tree, str(node))
    keys = node.keys
    if len(tree) != len(keys) or any(key not in tree for key in keys):
        missing = [repr(key) for key in keys if key not in tree]
        unknown = [repr(key) for key in tree if key not in keys]
        words = [f"without {', '.join(missing)}"] if missing else []
        words += [f"with {', '.join(unknown)}, which the plan does not know"] if unknown else []
        raise BatchError(
            f"got a batch {' and '.join(words)}{f' at {path}' if path else ''}",
            expected=f"exactly {', '.join(map(repr, keys))}",
            fix="pass the inputs that the plan was built with, or optimise with such a batch",
        )
    for key, item in zip(keys, node.items, strict=True):
        if isinstance(item, TensorNode) and isinstance(tree[key], torch.Tensor):
            found.append(tree[key])
        else:
            _collect(item, tree[key], f"{path}[{key!r}]", found)


def _misfit(path: str, got: Any, expected: str) -> BatchError:
    return BatchError(
        f"got {describe(got)} {f'at {path}' if path else 'as the batch'}",
        expected=expected,
        fix=_OF_ARRAYS
        if isinstance(got, np.ndarray)
        else "pass a batch of the form that the plan was built with, or optimise with such a batch",
    )


def _builder(node: Node, path: str, makers: Mapping[str, Maker]) -> Callable[[Iterator[Any]], Any]:
    """What puts a tree together, worked out once: it runs in every call of a predictor."""
    if isinstance(node, TensorNode):
        return next
    if isinstance(node, ConstantNode | OmittedNode):
        constant = node.value if isinstance(node, ConstantNode) else OMITTED
        return lambda _: constant
    builders = [_builder(child, path + step, makers) for step, child in children(node)]
    maker = makers.get(path)
    if maker is not None:
        return lambda tensors: maker([build(tensors) for build in builders])
    return lambda tensors: plainly_made(node, [build(tensors) for build in builders])
