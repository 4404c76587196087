"""Go through the probes of `batch-independent` until one shows a dependence."""

from __future__ import annotations

from evalmode.checking.batch_probes import Comparison, Nature, Probes
from evalmode.checking.batch_sizes import covered, sizes_to_try
from evalmode.checking.dependence import explain_dependence, failure_place
from evalmode.checking.subject import Subject
from evalmode.errors import ModelRunError
from evalmode.finding import Finding
from evalmode.observe.wide import WideUnsupportedError

__all__ = ["SUMMARIES", "Search"]

SUMMARIES = {
    "EM171": "a sample's answer depends on the others in its batch",
    "EM172": "a sample's answer depends on its position in the batch",
    "EM173": "a sample's answer is another one when it is alone",
    "EM174": "a sample's answer depends on padding",
}
_CLAUSE = "batch-independent"
_ROUNDING = 1e-5


def _at_size(subject: Subject, probes: Probes, size: int) -> Comparison | Finding | None:
    """The comparison of a batch of `size` with the reference; a finding if only a batch of one fails."""
    probe = probes.of_size(size)
    try:
        comparison = probes.at_size(size) if size in probes.sizes else probes.compare(probe)
    except ModelRunError as error:
        probes.failed[size] = error
        if size != 1 or not probes.runs_at(2):
            return None
        return Finding(
            "EM173",
            _CLAUSE,
            SUMMARIES["EM173"],
            failure_place(subject.model, error),
            seen=f"a batch of 1 fails, a batch of 2 does not: {type(error.__cause__).__name__}: {error.__cause__}",
            fix="keep the batch axis: squeeze(dim) and reshape(len(x), -1) instead of squeeze() and fixed sizes",
        )
    if comparison is not None and comparison.found.lost and size == 1 and probes.has_layout_at(2):
        found = comparison.found
        return Finding(
            "EM173",
            _CLAUSE,
            SUMMARIES["EM173"],
            explain_dependence(subject, probes, comparison).place,
            seen=f"{found.leaf} has the shape {found.shape} for a batch of 1: the batch axis is gone",
            fix="keep the batch axis: squeeze(dim) instead of squeeze()",
        )
    return comparison


class Search:
    """Goes through the probes until one shows a dependence."""

    def __init__(self, subject: Subject, probes: Probes) -> None:
        self.subject = subject
        self.probes = probes
        self.stable = True
        self.undecided = ""
        self.restless = False
        self.assumed = False
        self.refusal: Finding | None = None
        self.chosen: Comparison | None = None
        self._repeated = False
        axis = subject.axis
        self.sizes = sizes_to_try(subject.probes, 0 if isinstance(axis, str) else axis.size)

    def at_fixed_shape(self) -> Comparison | None:
        """A dependence on companions or on position."""
        for probe in self.probes.fixed_shape():
            comparison = self.probes.compare(probe)
            if comparison is None or comparison.found.same:
                continue
            self.stable = False
            if self._depends(comparison, "bits differ"):
                return comparison
            if self.restless:
                return None
        return None

    def at_sizes(self) -> Comparison | None:
        """A dependence on how many samples there are; a model that fails on one alone is refused."""
        if self.restless:
            return None
        differing = {}
        for size in self.sizes:
            comparison = _at_size(self.subject, self.probes, size)
            if isinstance(comparison, Finding):
                self.refusal = comparison
                return None
            if comparison is not None and not comparison.found.same:
                differing[size] = comparison
        decided: list[int] = []
        for size in sorted(differing, key=lambda size: (size != 1, -size)):
            if covered(self.probes, size, decided):
                continue
            found = differing[size].found
            if self.subject.probes == "fast" and found.gap <= _ROUNDING * found.scale:
                self.assumed = True
                continue
            if self._depends(differing[size], "bits differ between batch sizes"):
                return differing[size]
            decided.append(size)
        return None

    def choices(self) -> Comparison | None:
        """A dependence behind a choice that fell otherwise in fp64, found among other probes in fp64."""
        if self.chosen is None or self.restless or self.refusal is not None:
            return None
        try:
            return self.probes.wide_dependence()
        except WideUnsupportedError as error:
            self.undecided = self.undecided or f"bits differ, and {error}"
        return None

    def _depends(self, comparison: Comparison, what: str) -> bool:
        if not self._repeated:
            self._repeated = True
            self.restless = not self.probes.repeats()
        if self.restless:
            return False
        try:
            nature = self.probes.nature(comparison)
        except WideUnsupportedError as error:
            self.undecided = self.undecided or f"{what}, and {error}"
            return False
        if nature is Nature.CHOICE:
            self.chosen = self.chosen or comparison
        return nature is Nature.DEPENDENCE
