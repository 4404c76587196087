"""The clauses that `check` tests, one line each; a clause is a file under `clauses/` and is loaded when it is used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from evalmode.page import Page, read_page

__all__ = ["CLAUSE_FILES", "COMPARED", "TESTED_ELSEWHERE", "WATCHED", "WHITE_BOX", "examiner", "page_for", "pages"]

CLAUSE_FILES = {
    "mode-complete": "mode_complete",
    "no-randomness": "no_randomness",
    "running-statistics": "running_statistics",
    "no-state-change": "no_state_change",
    "no-gradients": "no_gradients",
    "deterministic": "deterministic",
    "batch-independent": "batch_independent",
    "finite": "finite",
    "restores": "restores",
}
"""Clause name to file name, in the order in which they are tested and shown."""

TESTED_ELSEWHERE = {"faithful": "faithful"}
"""The clauses that have a page here but compare two models: `optimize` tests them."""

WHITE_BOX = frozenset(("mode-complete", "running-statistics", "no-state-change", "restores"))
"""The clauses that look inside a model: of a predictor or another callable they say nothing."""

WATCHED = frozenset(("no-randomness", "no-gradients"))
"""The clauses that watch torch operators as they run: of a callable that runs none they say nothing."""

COMPARED = frozenset(("deterministic", "batch-independent", "finite"))
"""The clauses that compare the tensors of the outputs: where there are none they say nothing."""


def examiner(clause: str) -> Any:
    """The function that examines `clause`: `examine(subject) -> Examination`."""
    return importlib.import_module(f"evalmode.checking.clauses.{CLAUSE_FILES[clause]}").examine


def pages() -> dict[str, Page]:
    """Every clause's page by clause name, read without importing torch.

    Example:
        >>> pages()["no-randomness"].codes["EM122"]
        'functional dropout is on in evaluation mode'
    """
    folder = Path(__file__).parent / "clauses"
    return {clause: read_page(folder / f"{name}.py") for clause, name in (CLAUSE_FILES | TESTED_ELSEWHERE).items()}


def page_for(code_or_clause: str) -> Page | None:
    """The page of a clause, or of the clause that a code belongs to.

    Example:
        >>> page_for("em171").title.split(":")[0]
        'batch-independent'
    """
    wanted = code_or_clause.strip()
    for clause, page in pages().items():
        if wanted.lower() == clause or wanted.upper() in page.codes:
            return page
    return None
