"""Go through the probes of `batch-independent` until one shows a dependence."""

from __future__ import annotations

from evalmode.checking.batch_probes import Comparison, Nature, Probes
from evalmode.checking.batch_sizes import covered, sizes_to_try
from evalmode.checking.dependence import explain_dependence, failure_place
from evalmode.checking.subject import Subject
from evalmode.errors import ModelRunError
from evalmode.finding import Finding
from evalmode.observe.wide import WideUnsupportedError
from evalmode.predictor.calling import reason_of

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
        said = reason_of(error.__cause__ or error)
        return Finding(
            "EM173",
            _CLAUSE,
            SUMMARIES["EM173"],
            failure_place(subject.model, error),
            seen=f"a batch of 1 fails, a batch of 2 does not: {type(error.__cause__).__name__}: {said}",
            fix="make it run on one sample; keep the batch axis: squeeze(dim), reshape(len(x), -1), not squeeze()",
        )
    if comparison is not None and comparison.found.lost and size == 1 and probes.has_layout_at(2):
        place = explain_dependence(subject, probes, comparison).place
        seen, fix = _another_shape(probes, comparison.found.leaf)
        return Finding("EM173", _CLAUSE, SUMMARIES["EM173"], place, seen=seen, fix=fix)
    return comparison


def _another_shape(probes: Probes, path: str) -> tuple[str, str]:
    """How an output of a batch of 1 differs in shape from that of the reference batch, and the fix."""
    usual, alone = probes.reference[path].shape, probes.sizes[1].outputs.get(path)
    if alone is None:
        return f"{path} is missing for a batch of 1", "give the same outputs for every batch size"
    seen = f"{path} has the shape {tuple(alone.shape)} for a batch of 1"
    if alone.dim() < len(usual):
        return f"{seen}: the batch axis is gone", "keep the batch axis: squeeze(dim) instead of squeeze()"
    fix = "give every sample the same shape, or cut its output to its own length"
    return f"{seen}, {tuple(usual)} for a batch of {probes.size}: more than the batch axis changes", fix


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
        given = 0 if isinstance(subject.axis, str) else subject.axis.size
        self.sizes = sizes_to_try(subject.probes, given)
        largest = {
            "fast": 0,
            "default": max(given, probes.size),
        }  # in fp64 a larger batch would not fit where this does
        self._decidable = largest.get(subject.probes, max(self.sizes))

    def at_fixed_shape(self) -> Comparison | None:
        """A dependence on companions or on position."""
        for probe in self.probes.fixed_shape():
            comparison = self.probes.compare(probe)
            if comparison is None or comparison.found.same:
                continue
            self.stable = False
            dependence = self._dependence(comparison, "bits differ")
            if dependence is not None:
                return dependence
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
            if size > self._decidable and found.gap <= _ROUNDING * found.scale:
                self.assumed = True
                continue
            dependence = self._dependence(differing[size], "bits differ between batch sizes")
            if dependence is not None:
                return dependence
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

    def _dependence(self, comparison: Comparison, what: str) -> Comparison | None:
        """The comparison, with how that was decided, if it shows a dependence."""
        if not self._repeated:
            self._repeated = True
            self.restless = not self.probes.repeats()
        if self.restless:
            return None
        try:
            nature = self.probes.nature(comparison)
        except WideUnsupportedError as error:
            self.undecided = self.undecided or f"{what}, and {error}"
            return self.probes.without_fp64(comparison)
        if nature is Nature.CHOICE:
            self.chosen = self.chosen or comparison
        if nature is not Nature.DEPENDENCE:
            return None
        self.restless = not self.probes.repeats()  # once more: what varies from pass to pass may have agreed before
        return None if self.restless else comparison
