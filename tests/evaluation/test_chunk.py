import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.made_chunks import bits, chunk_bits, chunks, plain_chunk

from evalmode.certificate import BadSampleRecord
from evalmode.errors import UsageError
from evalmode.evaluation.chunk import Chunk
from evalmode.evaluation.chunk_bytes import packed, unpacked
from evalmode.evaluation.kept import Kept, Part, joined
from evalmode.evaluation.runs import Runs

BAD = (BadSampleRecord(id="3", reason="no image"),)


def partition(total, data):
    """The positions below `total`, shuffled and cut anywhere."""
    order = data.draw(st.permutations(range(total)))
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=6)))
    return [order[start:end] for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


@given(chunks())
def test_bytes_give_back_the_same_chunk_bit_for_bit(chunk):
    again = unpacked(packed(chunk))
    assert chunk_bits(again) == chunk_bits(chunk)
    assert packed(again) == packed(chunk)


@given(st.data(), st.integers(1, 40))
def test_a_whole_is_the_same_however_it_was_cut_and_ordered(data, total):
    whole = joined([plain_chunk(range(total))])
    cut = joined(plain_chunk(part) for part in partition(total, data))
    assert chunk_bits(cut) == chunk_bits(whole)
    assert whole.ids.tolist() == [f"sample {position}" for position in range(total)]
    assert np.array_equal(whole.rows["accuracy"], np.arange(total) % 3 == 0)


@given(st.data(), st.lists(st.text("ab", max_size=12), min_size=1, max_size=12))
def test_text_is_as_wide_as_its_longest_wherever_it_is_cut(data, texts):
    parts = [
        Chunk(np.array(part, np.int64), np.array([texts[k] for k in part], "<U20"))
        for part in partition(len(texts), data)
    ]
    ids = joined(parts).ids
    assert bits(ids) == bits(np.array(texts, dtype=np.str_))


def test_numbers_take_the_wider_kind_and_ids_become_text_where_some_are():
    first = Chunk(np.array([0]), np.array([7]), target=np.array([1], np.float32))
    second = Chunk(np.array([1]), np.array(["b"]), target=np.array([2.5]))
    samples = joined([second, first])
    assert samples.ids.tolist() == ["7", "b"]
    assert samples.target.tolist() == [1.0, 2.5]
    assert samples.target.dtype == np.float64


def test_what_is_optional_is_left_out_where_it_does_not_fit_together():
    first = Chunk(
        np.array([0]), np.array([0]), target=np.zeros((1, 2)), prediction=np.array([1]), scores=np.ones((1, 2))
    )
    second = Chunk(np.array([1]), np.array([1]), target=np.zeros((1, 3)), prediction=np.array(["x"]))
    samples = joined([first, second])
    assert samples.target is None and samples.prediction is None and samples.scores is None


def test_of_nothing_there_are_no_samples():
    assert len(joined([])) == 0
    left_out = Chunk(np.zeros(0, np.int64), np.zeros(0, np.int64), bad=BAD, bad_positions=(3,))
    assert len(joined([left_out])) == 0
    assert (left_out.samples, left_out.done_positions.tolist()) == (0, [3])


def test_a_chunk_of_left_out_samples_takes_nothing_from_the_others():
    left_out = Chunk(np.zeros(0, np.int64), np.zeros(0, np.int64), bad=BAD, bad_positions=(3,))
    assert chunk_bits(joined([plain_chunk(range(4)), left_out])) == chunk_bits(joined([plain_chunk(range(4))]))


def test_a_sample_that_is_there_twice_is_refused():
    with pytest.raises(UsageError, match="position 3 is in two chunks"):
        joined([plain_chunk([1, 3]), plain_chunk([2, 3])])


@pytest.mark.parametrize("what", ["rows", "columns"])
def test_chunks_with_other_names_or_shapes_are_refused(what):
    first = plain_chunk([0])
    renamed = dataclasses.replace(plain_chunk([1]), **{what: {"other": np.ones(1)}})
    if what == "rows":
        with pytest.raises(UsageError, match="other"):
            joined([first, renamed])
    else:
        assert not joined([first, renamed]).columns
    name = next(iter(getattr(first, what)))
    shaped = dataclasses.replace(plain_chunk([1]), **{what: {**getattr(first, what), name: np.ones((1, 5))}})
    with pytest.raises(UsageError, match=f"{what} of '{name}' differ between chunks"):
        joined([first, shaped])


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        (np.array([0, 0]), "there twice"),
        (np.array([0, -1]), "negative"),
        (np.array([0.0, 1.0]), "float64"),
        (np.array([[0, 1]]), r"\(1, 2\)"),
    ],
)
def test_positions_that_are_none_are_refused(positions, said):
    with pytest.raises(UsageError, match=said):
        Chunk(positions, np.arange(2))


def test_an_array_of_another_length_is_refused():
    with pytest.raises(UsageError, match="rows/loss is float64 of shape"):
        Chunk(np.arange(2), np.arange(2), {"loss": np.zeros(3)})
    with pytest.raises(UsageError, match="ids"):
        Chunk(np.arange(2), np.arange(1))


def test_python_objects_are_refused_with_the_fix():
    chunk = Chunk(np.arange(1), np.arange(1), columns={"made": np.array([object()])})
    with pytest.raises(UsageError, match=r"columns/made has dtype object[\s\S]*dtype=str"):
        packed(chunk)
    structured = Chunk(np.arange(1), np.arange(1), columns={"made": np.zeros(1, "i4,f8")})
    with pytest.raises(UsageError, match="columns/made"):
        packed(structured)


@given(st.data())
def test_bytes_that_are_cut_are_refused(data):
    whole = packed(plain_chunk(range(3)))
    with pytest.raises(ValueError):
        unpacked(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError):
        unpacked(whole + b"\0")


@given(st.data())
def test_bytes_that_are_changed_give_a_chunk_or_a_value_error(data):
    """Their digest tells them apart; here nothing else than a ValueError may come out, whatever they say."""
    changed = bytearray(packed(plain_chunk(range(2))))
    for place in data.draw(st.lists(st.integers(0, min(len(changed) - 1, 400)), min_size=1, max_size=4)):
        changed[place] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(unpacked(bytes(changed)), Chunk)
    except ValueError:
        assert changed != packed(plain_chunk(range(2)))


@given(st.binary(max_size=200))
def test_any_bytes_are_no_chunk(data):
    with pytest.raises(ValueError):
        unpacked(data)


@given(st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=8))
def test_runs_are_the_set_they_stand_for(parts):
    runs, oracle = Runs(), set()
    for part in parts:
        runs.add(np.array(part, np.int64))
        oracle |= set(part)
        asked = np.arange(-2, 34)
        assert runs.has(asked).tolist() == [int(position) in oracle for position in asked]
    gaps = sum(position - 1 not in oracle for position in oracle)
    assert len(runs._starts) == len(runs._ends) == gaps


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8), st.data())
def test_whole_numbers_come_back_in_the_type_that_they_had(values, data):
    kept = Kept()
    wide = np.array(values, np.int64)
    for part in np.split(np.arange(len(values)), sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=2)))):
        kept.add(Part.of(Chunk(part.astype(np.int64), part.astype(np.int64), target=wide[part])))
    samples = kept.samples()
    assert (bits(samples.target), bits(samples.ids)) == (bits(wide), bits(np.arange(len(values))))
    assert len(kept) == 0


def test_the_same_part_again_changes_nothing():
    kept = Kept()
    part = Part.of(plain_chunk(range(3)))
    kept.add(part)
    kept.add(part)
    assert (len(kept), chunk_bits(kept.samples())) == (3, chunk_bits(joined([plain_chunk(range(3))])))


def test_scores_are_probabilities_only_if_those_of_every_sample_are():
    sure = Chunk(np.array([0]), np.array([0]), confidence=np.array([[0.9, 0.6]]))
    unsure = Chunk(np.array([1]), np.array([1]), confidence=np.array([[np.nan, 0.7]]))
    assert joined([sure]).confidence.tolist() == [0.9]
    assert joined([sure, unsure]).confidence.tolist() == joined([unsure, sure]).confidence.tolist() == [0.6, 0.7]


def test_positions_of_bad_samples_are_one_for_each_and_nobody_elses():
    with pytest.raises(UsageError, match="0 positions of 1 bad samples"):
        Chunk(np.arange(2), np.arange(2), bad=BAD)
    with pytest.raises(UsageError, match="there twice"):
        Chunk(np.arange(2), np.arange(2), bad=BAD, bad_positions=(1,))
