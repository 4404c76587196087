"""Kinds of defects register themselves on import, once: collecting their files for doctests would do it again."""

from __future__ import annotations

collect_ignore = ["faults"]
