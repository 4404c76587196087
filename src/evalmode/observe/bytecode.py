"""Code as bytes that are the same in every process: what tells two functions of one name apart."""

from __future__ import annotations

import types

__all__ = ["code_bytes"]


def code_bytes(code: types.CodeType) -> bytes:
    """What `code` does, with the functions inside it; names of files and lines take no part.

    Example:
        >>> one, other = (lambda x: x + 1).__code__, (lambda x: x + 2).__code__
        >>> code_bytes(one) == code_bytes((lambda x: x + 1).__code__) != code_bytes(other)
        True
    """
    parts = [code.co_code, repr(code.co_names).encode()]
    parts += [
        code_bytes(part) if isinstance(part, types.CodeType) else _constant(part).encode() for part in code.co_consts
    ]
    return b"\0".join(parts)


def _constant(value: object) -> str:
    """A constant in words that do not depend on the order of a set, which another process has otherwise."""
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)
