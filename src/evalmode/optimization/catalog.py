"""The passes in the order in which they run; a pass is a file under `passes/` and is loaded when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from evalmode.errors import UsageError
from evalmode.page import Page, read_page

if TYPE_CHECKING:
    from evalmode.optimization.graph_pass import Pass

__all__ = ["PASS_FILES", "pages", "passes_named"]

PASS_FILES = {
    "remove-dropout": "remove_dropout",
    "remove-identities": "remove_identities",
    "bake-parametrizations": "bake_parametrizations",
    "fold-constants": "fold_constants",
    "merge-adapters": "merge_adapters",
    "fold-batch-norm": "fold_batch_norm",
    "fold-scale-shift": "fold_scale_shift",
    "channels-last": "channels_last",
}
"""Pass name to file name, in the order in which they run: what clears the way comes first, the memory order last."""


def passes_named(names: Iterable[str] | None = None) -> tuple[Pass, ...]:
    """The passes of these names, in the catalog's order; by default all that serve every back end.

    Raises:
        UsageError: there is no pass of that name.

    Example:
        >>> [one.name for one in passes_named(["fold-batch-norm", "remove-dropout"])]
        ['remove-dropout', 'fold-batch-norm']
    """
    wanted = None if names is None else set(names)
    unknown = sorted((wanted or set()) - set(PASS_FILES))
    if unknown:
        raise UsageError(f"there is no pass {unknown[0]!r}", expected=", ".join(PASS_FILES))
    loaded: list[Pass] = [
        importlib.import_module(f"evalmode.optimization.passes.{file}").PASS
        for name, file in PASS_FILES.items()
        if wanted is None or name in wanted
    ]
    return tuple(one for one in loaded if wanted is not None or not one.layout)


def pages() -> dict[str, Page]:
    """Every pass's page by its name, read without importing torch.

    Example:
        >>> pages()["remove-dropout"].title
        'remove-dropout: dropout that is off is taken out'
    """
    folder = Path(__file__).parent / "passes"
    return {name: read_page(folder / f"{file}.py") for name, file in PASS_FILES.items()}
