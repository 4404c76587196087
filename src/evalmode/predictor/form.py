"""The nodes that a form is made of: plain data, read from and written as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

import msgspec

__all__ = [
    "OMITTED",
    "ConstantNode",
    "Key",
    "MappingNode",
    "NamedValues",
    "Node",
    "OmittedNode",
    "Record",
    "SequenceNode",
    "TensorNode",
    "children",
    "is_deeper",
    "is_key",
    "plainly_made",
]

Key = str | int | float | bool | None
OMITTED: Any = object()
"""What stands, while a tree is put together, where something was left out."""

_LARGEST_KEY = 2**63 - 1


class TensorNode(msgspec.Struct, frozen=True, tag="tensor"):
    """A tensor."""

    def __str__(self) -> str:
        return "a tensor"


class ConstantNode(msgspec.Struct, frozen=True, tag="constant"):
    """None, a truth value, a number or text, kept as text: JSON knows no NaN, and not all of a float's bits.

    Example:
        >>> ConstantNode.of(-0.0)
        ConstantNode(kind='float', text='-0x0.0p+0')
        >>> ConstantNode.of(-0.0).value
        -0.0
    """

    kind: Literal["none", "bool", "int", "float", "str"]
    text: str = ""

    def __post_init__(self) -> None:
        try:  # data from a file is refused here
            canonical = ConstantNode.holds(self.value) and _text_of(self.value) == self.text
        except OverflowError as error:
            raise ValueError(f"{self.text[:40]!r} is a number beyond a float") from error
        if not canonical:
            raise ValueError(f"{self.text[:40]!r} is not how the constant {self.value!r} is written")

    @staticmethod
    def holds(value: Any) -> bool:
        """Whether `value` is a constant: of exactly these types, since a subclass may be more than its number."""
        if type(value) is str:
            return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
        if type(value) is int:
            return abs(value) <= _LARGEST_KEY
        return value is None or type(value) in (bool, float)

    @classmethod
    def of(cls, value: Any) -> ConstantNode:
        """The node of a constant."""
        kind: Any = "none" if value is None else type(value).__name__
        return cls(kind, _text_of(value))

    @property
    def value(self) -> Key:
        """The constant itself."""
        if self.kind == "none":
            return None
        if self.kind == "bool":
            if self.text not in {"True", "False"}:
                raise ValueError(f"{self.text!r} is no truth value")
            return self.text == "True"
        if self.kind == "int":
            return int(self.text)
        return float.fromhex(self.text) if self.kind == "float" else self.text

    def __str__(self) -> str:
        return repr(self.value)


def _text_of(value: Key) -> str:
    if value is None:
        return ""
    return value.hex() if type(value) is float else str(value)


class OmittedNode(msgspec.Struct, frozen=True, tag="omitted"):
    """Something that is left out; `kind` says what it was."""

    kind: str

    def __str__(self) -> str:
        return self.kind


class SequenceNode(msgspec.Struct, frozen=True, tag="sequence"):
    """A list or tuple; a named tuple has the `name` of its class and its `fields`."""

    kind: Literal["list", "tuple"]
    items: tuple[Node, ...]
    name: str = ""
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.fields and len(self.fields) != len(self.items):
            raise ValueError("a named tuple has as many fields as items")

    def with_items(self, items: tuple[Node, ...]) -> SequenceNode:
        """The same around other nodes."""
        return msgspec.structs.replace(self, items=items)

    def __str__(self) -> str:
        return f"a {self.name or self.kind} of {len(self.items)}"


class MappingNode(msgspec.Struct, frozen=True, tag="mapping"):
    """A mapping in the order of its keys; one that is no plain dict has the `name` of its class.

    With `attributes` it is no mapping but an object with fields (a dataclass). `absent` are fields that are None and
    no keys, as those that a Hugging Face output leaves empty.
    """

    keys: tuple[Key, ...]
    items: tuple[Node, ...]
    name: str = ""
    attributes: bool = False
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.items) or len(set(self.keys)) != len(self.keys):
            raise ValueError("a mapping has one item for each of its keys")
        if self.attributes and not all(isinstance(key, str) for key in self.keys):
            raise ValueError("a field is named by text")
        if any(not name.isidentifier() or name in self.keys or hasattr(Record, name) for name in self.absent):
            raise ValueError("an absent field is no key, and no method of a mapping")

    def with_items(self, items: tuple[Node, ...]) -> MappingNode:
        """The same around other nodes."""
        return msgspec.structs.replace(self, items=items)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.keys[:8])) + (", ..." if len(self.keys) > 8 else "")
        return f"a {self.name or 'mapping'} of {shown}" if self.keys else f"an empty {self.name or 'mapping'}"


Node = TensorNode | ConstantNode | OmittedNode | SequenceNode | MappingNode


def children(node: Node) -> list[tuple[str, Node]]:
    """The nodes inside, each with the step that leads to it: `[0]`, `['logits']` or `.logits`.

    Example:
        >>> children(MappingNode(("a",), (TensorNode(),)))
        [("['a']", TensorNode())]
    """
    if isinstance(node, SequenceNode):
        return [(f"[{position}]", item) for position, item in enumerate(node.items)]
    if isinstance(node, MappingNode):
        steps = (f".{key}" if node.attributes else f"[{key!r}]" for key in node.keys)
        return list(zip(steps, node.items, strict=True))
    return []


def is_deeper(node: Node, limit: int) -> bool:
    """Whether more than `limit` containers lie within each other: what opens them calls itself for each.

    Example:
        >>> is_deeper(SequenceNode("list", (SequenceNode("list", ()),)), 1)
        True
    """
    level = [node]
    for _ in range(limit):
        level = [inner for outer in level for _, inner in children(outer)]
    return any(isinstance(inner, SequenceNode | MappingNode) for inner in level)


def is_key(value: Any) -> bool:
    """Whether a mapping's key can be kept: text, a truth value, None, or a number that JSON holds exactly."""
    return ConstantNode.holds(value) and not (isinstance(value, float) and not math.isfinite(value))


def plainly_made(node: SequenceNode | MappingNode, values: Sequence[Any]) -> Any:
    """A container of `values` where the class of the original is not at hand; in a mapping, `OMITTED` leaves no key.

    Example:
        >>> plainly_made(SequenceNode("tuple", (TensorNode(),) * 2, "Moments", ("mean", "variance")), (1, 2)).variance
        2
    """
    if isinstance(node, MappingNode):
        pairs = dict(zip(node.keys, values, strict=True))
        if any(value is OMITTED for value in values):  # `in` would compare tensors
            pairs = {key: value for key, value in pairs.items() if value is not OMITTED}
        if not node.name:
            return pairs
        record = Record(pairs)
        vars(record).update(dict.fromkeys(node.absent))
        if node.attributes:  # a field named `values` is meant, not the method of a dict
            vars(record).update({str(key): value for key, value in pairs.items()})
        return record
    items = [None if value is OMITTED else value for value in values]
    if node.fields:
        return NamedValues(node.fields, items)
    return items if node.kind == "list" else tuple(items)


class Record(dict[Any, Any]):
    """What stands in for outputs of a class that is not at hand: a dict whose keys are attributes too.

    As Hugging Face outputs do, it gives its values by position and as a tuple.

    Example:
        >>> outputs = Record(logits=1, hidden=2)
        >>> outputs.logits, outputs["hidden"], outputs[0], outputs.to_tuple()
        (1, 2, 1, (1, 2))
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"these outputs have no {name!r}, only {', '.join(map(str, self))}") from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | slice) and not dict.__contains__(self, key):
            return self.to_tuple()[key]
        return super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values, in order."""
        return tuple(dict.values(self))


class NamedValues(tuple[Any, ...]):  # noqa: SLOT001 - a tuple of varying length cannot have slots
    """What stands in for a named tuple whose class is not at hand.

    Example:
        >>> mean, variance = NamedValues(("mean", "variance"), [1, 2])
        >>> NamedValues(("mean", "variance"), [1, 2]).mean
        1
    """

    _fields: tuple[str, ...]

    def __new__(cls, fields: tuple[str, ...], values: Sequence[Any]) -> Self:
        made = super().__new__(cls, values)
        vars(made).update(zip(fields, values, strict=True))  # before the class: a field may be called `count`
        made._fields = fields
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return NamedValues, (self._fields, tuple(self))

    def __repr__(self) -> str:
        return f"({', '.join(f'{name}={value!r}' for name, value in self.named())})"

    def named(self) -> Iterator[tuple[str, Any]]:
        """Each field with its value."""
        return zip(self._fields, self, strict=True)
