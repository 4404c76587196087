"""What earlier searches found: one JSON file for each model, inputs, settings and machine.

Only measurements are kept, so that a second search can begin where the first ended. Verification is never taken from
here: a cached plan is built and passes the gate anew.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from evalmode.atomic_file import atomic_file
from evalmode.backends.configuration import Configuration
from evalmode.certificate import OptimizationRecord, decoded

__all__ = ["CachedPlan", "cache_folder", "cache_key", "read_plan", "write_plan"]

FORMAT_VERSION = 1


class CachedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen configurations, one for each execution size, and the record of the search that chose them.

    No configuration means that plain `eval()` won.
    """

    format_version: int = FORMAT_VERSION
    configurations: tuple[Configuration, ...]
    form: str = ""
    record: OptimizationRecord


def cache_folder() -> Path | None:
    """Where plans are kept: `$EVALMODE_CACHE`, else `evalmode` in the user's cache folder; None if that is `off`."""
    chosen = os.environ.get("EVALMODE_CACHE")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "evalmode"


def cache_key(*parts: object) -> str:
    """SHA-256 over everything that decides which plan wins.

    Example:
        >>> cache_key("weights", (1, 8)) == cache_key("weights", (1, 8)) != cache_key("weights", (18,))
        True
    """
    return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()


def read_plan(key: str) -> CachedPlan | None:
    """The plan kept under `key`; None if there is none, or if another version of evalmode wrote it."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        plan = decoded((folder / "plans" / f"{key}.json").read_bytes(), CachedPlan)
    except (OSError, msgspec.MsgspecError):  # missing, or not ours: a search finds it again
        return None
    return plan if plan.format_version == FORMAT_VERSION else None


def write_plan(key: str, plan: CachedPlan) -> bool:
    """Keep `plan` under `key`, whole or not at all. False where the folder cannot be written."""
    folder = cache_folder()
    if folder is None:
        return False
    try:
        with atomic_file(folder / "plans" / f"{key}.json") as file:
            file.write(msgspec.json.encode(plan))
    except OSError:
        return False
    return True
