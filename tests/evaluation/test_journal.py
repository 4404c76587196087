import numpy as np

from evalmode.evaluation.chunk import Chunk
from evalmode.evaluation.journal import Journal


def test_what_is_recorded_is_there_when_opened_again(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal.open(path, {"model": "a"}) as journal:
        journal.append(Chunk(np.array([0, 1]), np.array([7, 9])))
        assert journal.done == 2
    with Journal.open(path, {"model": "a"}) as journal:
        assert journal.done == 2
        assert [chunk.ids.tolist() for chunk in journal.chunks()] == [[7, 9]]
