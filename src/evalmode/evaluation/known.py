"""What a runner has found out by the end of a chunk, so that an evaluation that goes on ends as it would have."""

from __future__ import annotations

import msgspec

from evalmode.errors import TaskError

__all__ = ["Known"]


class Known(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The rows of the largest group, the execution sizes that ran, what was said, and what the runner adds.

    `most` are the rows that memory holds, 0 for no such limit; `companions` is what their probes found.
    """

    largest: int
    sizes: tuple[int, ...]
    notes: tuple[str, ...]
    most: int = 0
    companions: bytes = b""

    def packed(self) -> bytes:
        """As bytes.

        Example:
            >>> known = Known(largest=4, sizes=(1, 4), notes=())
            >>> Known.of(known.packed()) == known
            True
        """
        return msgspec.msgpack.encode(self)

    @classmethod
    def of(cls, record: bytes) -> Known:
        """From the bytes.

        Raises:
            TaskError: another version of evalmode wrote them.
        """
        try:
            return msgspec.msgpack.decode(record, type=cls)
        except msgspec.MsgspecError as error:
            raise TaskError(
                f"the journal tells of its model in another form: {error}",
                expected="a journal of this version of evalmode",
                fix="begin with a new journal",
            ) from error
