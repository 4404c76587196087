"""The back ends, one line each; a back end is a file of this room and is loaded when it is used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from evalmode.errors import UsageError
from evalmode.page import Page, read_page

if TYPE_CHECKING:
    from evalmode.backends.backend import Backend

__all__ = ["BACKEND_NAMES", "backend_named", "backends", "page_for", "pages"]

BACKEND_NAMES = ("eager", "inductor", "aot_inductor", "onnxruntime", "openvino")
"""Every back end, also the name of its file, in the order in which they are shown."""


def backend_named(name: str) -> Backend:
    """The back end called `name`; the packages that it needs are not imported.

    Raises:
        UsageError: there is none.

    Example:
        >>> backend_named("eager").needs_export
        False
    """
    if name not in BACKEND_NAMES:
        raise UsageError(
            f"there is no back end {name!r}", expected=f"one of {', '.join(BACKEND_NAMES)}", fix=_closest(name)
        )
    module = importlib.import_module(f"evalmode.backends.{name}")
    backend: Backend = getattr(module, name.upper())
    return backend


def backends() -> tuple[Backend, ...]:
    """Every back end, installed or not, in the order in which they are shown.

    Example:
        >>> [backend.name for backend in backends()] == list(BACKEND_NAMES)
        True
    """
    return tuple(backend_named(name) for name in BACKEND_NAMES)


def pages() -> dict[str, Page]:
    """Every back end's page by name, read without importing torch.

    Example:
        >>> pages()["eager"].title
        'eager: PyTorch as it is, one operator after another'
    """
    folder = Path(__file__).parent
    return {name: read_page(folder / f"{name}.py") for name in BACKEND_NAMES}


def page_for(name: str) -> Page | None:
    """The page of a back end.

    Example:
        >>> page_for("nothing") is None
        True
    """
    wanted = name.strip().lower().replace("-", "_")
    return pages()[wanted] if wanted in BACKEND_NAMES else None


def _closest(name: str) -> str | None:
    import difflib

    found = difflib.get_close_matches(name.lower().replace("-", "_"), BACKEND_NAMES, n=1)
    return f"write {found[0]!r}" if found else None
