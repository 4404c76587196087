"""Trees are opened into tensors and put together again, in this process and from plain data."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import types
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BatchEncoding, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from evalmode.errors import BatchError
from evalmode.predictor.form import MappingNode, Node, TensorNode
from evalmode.predictor.structure import Structure, input_structure, output_structure

ONE = torch.ones(1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=4)
CONSTANTS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63) + 1, 2**63 - 1), st.floats(), TEXT)
KEYS = st.one_of(TEXT, st.integers(-99, 99), st.booleans())
TREES = st.recursive(
    st.one_of(CONSTANTS, st.builds(lambda value: torch.tensor([value]), st.integers(0, 99))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


class Moments(NamedTuple):
    mean: torch.Tensor
    count: int  # a method of every tuple, too


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: Any
    values: float = 0.5  # a method of every dict, too


@dataclasses.dataclass
class OtherArguments:
    logits: Any
    doubled: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.doubled = self.logits * 2


def loaded(structure: Structure) -> Structure:
    """The structure as an artifact gives it back."""
    return Structure(msgspec.json.decode(msgspec.json.encode(structure.root), type=Node))


def alike(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first is second
    if isinstance(first, dict):
        return (
            type(first) is type(second)
            and list(first) == list(second)
            and all(map(alike, first.values(), second.values()))
        )
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(alike, first, second))
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    return type(first) is type(second) and first == second and str(first) == str(second)  # -0.0 is not 0.0


@given(TREES)
def test_any_tree_of_plain_containers_comes_back_the_same_in_process_and_from_data(tree: Any) -> None:
    structure = input_structure(tree)
    tensors = structure.flatten(tree)
    assert alike(structure.rebuild(tensors), tree)
    assert loaded(structure) == structure
    assert alike(loaded(structure).rebuild(loaded(structure).flatten(tree)), tree)


@given(TREES, TREES)
def test_only_a_tree_of_the_same_form_is_taken(first: Any, second: Any) -> None:
    structure, other = input_structure(first), input_structure(second)
    if structure == other:
        assert len(structure.flatten(second)) == len(other.paths)
        return
    # the order of a mapping's keys is the caller's affair
    if sorted(map(str, structure.paths)) == sorted(map(str, other.paths)):
        return
    with pytest.raises(BatchError):
        structure.flatten(second)


@pytest.mark.parametrize(
    "tree",
    [
        Moments(ONE, 3),
        Frozen(ONE),
        torch.max(torch.ones(2, 2), 0),
        collections.OrderedDict(a=ONE, b=None),
        BaseModelOutputWithPast(last_hidden_state=ONE, hidden_states=(ONE, ONE)),
        BatchEncoding({"ids": ONE}),
        torch.Size([1, 2]),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_outputs_keep_their_class_in_this_process_and_their_names_from_data(tree: Any) -> None:
    structure = output_structure(tree)
    assert structure.omitted == ()
    tensors = structure.flatten(tree)
    again = structure.rebuild(tensors)
    assert type(again) is type(tree)
    assert all(map(alike, structure.flatten(again), tensors))
    plain = loaded(structure).rebuild(tensors)
    assert all(map(alike, structure.flatten(plain), tensors))
    fields = [field.name for field in dataclasses.fields(tree)] if dataclasses.is_dataclass(tree) else []
    for name in [*getattr(tree, "_fields", ()), *fields]:
        if getattr(tree, name) is not None:
            assert alike(getattr(plain, name), getattr(again, name))


def test_a_dataclass_with_another_constructor_comes_back() -> None:
    tree = OtherArguments(ONE)
    again = output_structure(tree).rebuild([ONE, ONE * 3])
    assert type(again) is OtherArguments and again.doubled.item() == 3


def test_a_class_that_cannot_be_made_anew_is_a_record() -> None:
    class Odd(dict):
        def __init__(self) -> None:
            super().__init__(logits=ONE)

    again = output_structure(Odd()).rebuild([ONE])
    assert again.logits is ONE and again["logits"] is ONE and again[0] is ONE
    with pytest.raises(AttributeError, match="no 'loss', only logits"):
        _ = again.loss


def test_caches_and_objects_are_left_out_and_listed() -> None:
    outputs = BaseModelOutputWithPast(last_hidden_state=ONE, past_key_values=DynamicCache())
    structure = output_structure({"out": outputs, "odd": object(), "pair": (ONE, object())})
    assert structure.omitted == (
        "['out']['past_key_values'] (DynamicCache)",
        "['odd'] (object)",
        "['pair'][1] (object)",
    )
    again = structure.rebuild([ONE, ONE])
    assert list(again) == ["out", "pair"] and again["out"].past_key_values is None and again["pair"] == (ONE, None)


def test_a_tree_that_holds_itself_ends() -> None:
    tree: list[Any] = [ONE]
    tree.append(tree)
    assert output_structure(tree).omitted == ("[1] (list)",)


def test_what_changes_between_batches_is_no_constant() -> None:
    structure = output_structure({"n": 2, "k": 5, "y": ONE}, {"n": 3, "k": 5, "y": ONE})
    assert structure.omitted == ("['n'] (int that changes between batches)",)
    assert structure.rebuild([ONE]) == {"k": 5, "y": ONE}


def test_outputs_whose_form_depends_on_the_batch_are_refused() -> None:
    with pytest.raises(BatchError, match=r"\['a'\]"):
        output_structure({"a": [ONE]}, {"a": [ONE, ONE]})


def test_an_input_that_is_no_data_is_refused() -> None:
    with pytest.raises(BatchError, match=r"past_key_values'\] \(DynamicCache\)"):
        input_structure({"ids": ONE, "past_key_values": DynamicCache()})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"ids": ONE}, r"without 'mask'"),
        ({"ids": ONE, "mask": ONE, "labels": ONE}, "with 'labels'"),
        ({"ids": ONE, "mask": None}, r"got None at \['mask'\]"),
        ((ONE, ONE), r"expected: a mapping of ids, mask"),
        (ONE, "as the batch"),
    ],
)
def test_a_batch_of_another_form_is_told_where(tree: Any, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        input_structure({"ids": ONE, "mask": ONE}).flatten(tree)


def test_a_constant_of_the_batch_is_part_of_the_plan() -> None:
    structure = input_structure({"x": ONE, "scale": 0.5, "flag": True})
    assert structure.flatten({"flag": True, "x": ONE, "scale": 0.5})[0] is ONE
    for changed in ({"scale": 0.25}, {"flag": 1}, {"flag": False}, {"scale": ONE}):
        with pytest.raises(BatchError, match="which the plan was built with"):
            structure.flatten({"x": ONE, "scale": 0.5, "flag": True, **changed})


def test_other_mappings_are_taken_as_inputs() -> None:
    structure = input_structure({"ids": ONE})
    assert structure.flatten(BatchEncoding({"ids": ONE}))[0] is ONE
    assert structure.flatten(types.MappingProxyType({"ids": ONE}))[0] is ONE


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"constant","kind":"int","text":"x"}',
        b'{"type":"constant","kind":"bool","text":"yes"}',
        b'{"type":"constant","kind":"code","text":"x"}',
        b'{"type":"mapping","keys":["a","a"],"items":[{"type":"tensor"},{"type":"tensor"}]}',
        b'{"type":"mapping","keys":["a"],"items":[]}',
        b'{"type":"sequence","kind":"set","items":[]}',
        b'{"type":"sequence","kind":"tuple","items":[],"fields":["a"]}',
        b'{"type":"other"}',
    ],
)
def test_wrong_data_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(data, type=Node)


def test_the_fields_that_a_hugging_face_output_leaves_empty_are_none_without_its_class() -> None:
    output = BaseModelOutputWithPast(last_hidden_state=torch.ones(2, 3))
    read = msgspec.json.decode(msgspec.json.encode(output_structure(output).root), type=Node)
    again = Structure(read).rebuild([torch.zeros(2, 3)])
    assert again.past_key_values is None
    assert again.attentions is None
    assert list(again) == ["last_hidden_state"]
    with pytest.raises(AttributeError, match="no 'logits'"):
        _ = again.logits


@pytest.mark.parametrize("name", ["keys", "last_hidden_state", "no name", "__class__"])
def test_what_no_absent_field_can_be_is_refused(name: str) -> None:
    node = MappingNode(("last_hidden_state",), (TensorNode(),), "Output", absent=("loss",))
    written = msgspec.json.encode(node).replace(b'"loss"', json.dumps(name).encode())
    with pytest.raises(msgspec.ValidationError, match="an absent field"):
        msgspec.json.decode(written, type=Node)
