"""Chunks for the tests of what keeps them: drawn by hypothesis, or made by a plain rule."""

import string
import zlib

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evalmode.certificate import BadSampleRecord
from evalmode.evaluation.chunk import Chunk

NAMES = st.text(string.ascii_letters + " _é/°", min_size=1, max_size=8)
NUMBERS = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?"),
    arrays.complex_number_dtypes(endianness="?"),
)
KINDS = st.one_of(
    NUMBERS,
    arrays.unicode_string_dtypes(max_len=5),
    arrays.byte_string_dtypes(max_len=5),
    arrays.datetime64_dtypes(),
    arrays.timedelta64_dtypes(),
)


@st.composite
def chunks(draw):
    """Any chunk that can be kept, of 0 to 6 samples."""
    size = draw(st.integers(0, 6))
    positions = draw(st.lists(st.integers(0, 2**62), min_size=size, max_size=size, unique=True))

    def values(kinds=KINDS, axes=2):
        more = st.lists(st.integers(0, 3), max_size=axes)
        return more.flatmap(lambda shape: arrays.arrays(kinds, (size, *shape)))

    ids = arrays.arrays(st.one_of(arrays.integer_dtypes(), arrays.unicode_string_dtypes()), size)
    rows = st.dictionaries(NAMES, values(st.sampled_from([np.dtype(bool), np.dtype(float)]), 1), max_size=3)
    reasons = draw(st.lists(st.builds(BadSampleRecord, id=st.text(max_size=5), reason=st.text(max_size=9)), max_size=2))
    return Chunk(
        np.array(positions, np.int64),
        draw(ids),
        draw(rows),
        draw(st.none() | values()),
        draw(st.none() | values()),
        draw(st.none() | values(arrays.floating_dtypes(), 1)),
        draw(st.dictionaries(NAMES, values(axes=0), max_size=2)),
        tuple(reasons),
        tuple(2**62 + 1 + place for place in range(len(reasons))),
        draw(st.none() | arrays.arrays(np.float64, (size, 2))),
    )


def plain_chunk(positions, seed=0, bad=()):
    """A chunk whose values follow from its positions alone, as an evaluation's do; `bad` are names of left out ones."""
    positions = np.asarray(positions, np.int64)
    loss = np.sin(positions + 0.1 * seed)
    return Chunk(
        positions,
        np.array([f"sample {position}" for position in positions], dtype=np.str_),
        {"accuracy": positions % 3 == 0, "loss": loss, "pairs": np.stack([loss, -loss], 1)},
        positions % 5,
        positions % 4,
        np.stack([np.cos(positions * k) for k in range(3)], 1).astype(np.float32),
        {"group": np.array([f"g{position % 2}" for position in positions], dtype=np.str_)},
        tuple(BadSampleRecord(id=str(name), reason="cannot be decoded") for name in bad),
        tuple(2**40 + zlib.crc32(str(name).encode()) for name in bad),
        np.stack([np.full(len(positions), np.nan), 1 / (1 + positions)], 1),
    )


def bits(values):
    """What two arrays of the same bits have in common."""
    return None if values is None else (values.dtype.str, values.shape, values.tobytes())


def chunk_bits(chunk):
    """What two chunks, or samples, of the same bits have in common."""
    return (
        bits(getattr(chunk, "positions", None)),
        bits(chunk.ids),
        {name: bits(values) for name, values in chunk.rows.items()},
        bits(chunk.target),
        bits(chunk.prediction),
        bits(chunk.scores),
        {name: bits(values) for name, values in chunk.columns.items()},
        bits(chunk.confidence),
        getattr(chunk, "bad", ()),
        getattr(chunk, "bad_positions", ()),
    )
