"""The model under test with its batch: the one way in which clauses run it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from evalmode.checking.first_pass import FirstPass, look_at
from evalmode.errors import EvalmodeError, UsageError
from evalmode.finding import Finding, Place
from evalmode.observe.batching import BatchAxis, find_batch_axis, select_samples
from evalmode.observe.other_threads import following_threads
from evalmode.observe.state import ModelState, read_state
from evalmode.observe.still import still
from evalmode.observe.streams import seed_streams
from evalmode.observe.tree import describe, map_tensors, same_bits, tensor_leaves
from evalmode.observe.values import value_leaves
from evalmode.observe.watch import Draw, Observation, watch
from evalmode.observe.wide import WideUnsupportedError, wide, widened
from evalmode.predictor.calling import call, reason_of

__all__ = ["Outputs", "Selection", "Subject", "copied"]

Outputs = dict[str, torch.Tensor]
"""Every tensor of an output by its path, and every array and number as one."""
Selection = str | int | Callable[[Any], Any] | None
"""Which part of the outputs counts: a key or attribute, a position, a function, or all of it."""


_SEED_BASE = 0x5EED_0000  # a model that seeds 0 or 42 inside forward must not meet the seed it sets


class Subject:
    """A model, its batch, and how to run them.

    Every pass starts from the same state and the same random streams, runs without gradients, and leaves what it
    changed to be put back by the next one or at the end.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        *,
        forward: Callable[[Any, Any], Any] | None = None,
        outputs: Selection = None,
        batch_axis: int | str = "auto",
        probes: str = "default",
        seed: int = 0,
        found_training: bool = False,
        opaque: str = "",
        state: ModelState | None = None,
    ) -> None:
        self.model = model
        self.batch = batch
        self.forward = forward
        self.selection = outputs
        self.probes = probes
        self.seed = _SEED_BASE + seed
        self.found_training = found_training
        self.axis: BatchAxis | str = find_batch_axis(batch, batch_axis)
        self.opaque = opaque  # why nothing can be seen inside; empty for a module
        self.state: ModelState = read_state(model) if state is None else state
        self._given = list(zip(tensor_leaves(batch), tensor_leaves(copied(batch)), strict=True))
        self.passes = 0
        self.claimed: dict[str, str] = {}  # module path -> code of the mode-complete finding that names it
        self.findings: list[Finding] = []
        self.stilled = False
        self.mending: Callable[[], AbstractContextManager[Any]] = nullcontext  # what passes are run inside
        self.given_outputs: Outputs | None = None  # of the given batch, kept by the first clause that ran it
        self._observation: Observation | None = None
        self._first_pass: FirstPass | None = None
        self._draws: list[Draw] | None = None

    def prepare(self) -> None:
        """Bring the model back to the state in which every pass starts, and start the random streams anew."""
        self._put_back()
        seed_streams(self.seed)

    def mend(self, path: str, name: str, value: Any) -> None:
        """Start every pass from now on with another value of a module's attribute; the caller's state keeps its own."""
        attributes = [
            (owner, module, own | {name: value} if owner == path else own)
            for owner, module, own in self.state.attributes
        ]
        self.state = replace(self.state, attributes=attributes)
        self._observation = self._first_pass = self._draws = self.given_outputs = None
        self.prepare()

    def put_back_batch(self) -> None:
        """Undo what the model wrote into the given batch."""
        for (_, tensor), (_, contents) in self._given:
            if not same_bits(tensor, contents):
                with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                    tensor.copy_(contents)

    def _put_back(self) -> None:
        self.state.put_back(streams=False, quick=True)
        self.put_back_batch()

    def run(self, batch: Any = None, *, restore: bool = True) -> Outputs:
        """The output tensors of one forward pass on `batch` (the given one if None)."""
        return self._run(self.batch if batch is None else batch, nullcontext(), restore=restore)

    def run_wide(self, batch: Any = None) -> Outputs:
        """The same in fp64.

        Raises:
            WideUnsupportedError: an operator has no fp64 form.
        """
        narrow = self.batch if batch is None else batch
        try:
            return self._run(narrow, wide(), taken=widened)
        except EvalmodeError as error:  # it ran as it is, so fp64 is the reason; a predictor refuses other dtypes
            if isinstance(error.__cause__, WideUnsupportedError):
                raise error.__cause__ from error
        try:
            return self._run(narrow, wide(self.model), taken=widened)
        except EvalmodeError as error:
            cause = error.__cause__
            if isinstance(cause, WideUnsupportedError):
                raise cause from error
            raise WideUnsupportedError(f"the model ({reason_of(cause or error)})") from error

    def samples(self, positions: Sequence[int]) -> Any:
        """The batch made of the given samples; only with a batch axis."""
        if isinstance(self.axis, str):
            raise UsageError(f"the batch cannot be divided into samples: {self.axis}")
        return select_samples(self.batch, self.axis, positions)

    def observation(self) -> Observation:
        """What a watched pass on the given batch did; watched once and kept, without its outputs."""
        if self._observation is None:
            self._observation = self.observe()
            self._observation.outputs = None
            self._put_back()
            self._observation.note_kept()
        return self._observation

    def first_pass(self) -> FirstPass:
        """What a plain pass on the given batch gave and moved; run once and kept."""
        if self._first_pass is None:
            self._put_back()
            self.passes += 1
            one_pass = functools.partial(call, self.model, self.batch, self.forward)
            self._first_pass = look_at(one_pass, self.tensors, self.state, self.seed)
            self.given_outputs = self._first_pass.outputs
            self._put_back()
        return self._first_pass

    def draws(self) -> list[Draw]:
        """The random draws of a pass on the given batch whose numbers vary; found once and kept.

        Numbers stay the same where a stream starts from the same state in a later pass from another seed: a generator
        of the pass's own that is seeded anew, or the process's stream, seeded and given back as it was.
        """
        if self._draws is None:
            found = self._draws = self.observation().draws
            moved = bool(found) and any(name.startswith(("torch", "cuda")) for name in self.first_pass().streams)
            if any(draw.own_stream or not moved for draw in found):
                run = self.bare_pass()
                run()
                again = watch(functools.partial(run, self.seed + 1), self.model).draws
                fixed = {
                    id(draw)
                    for draw, other in zip(found, again, strict=False)
                    if draw.start == other.start and draw.place == other.place and (draw.own_stream or not moved)
                }
                self._draws = [draw for draw in found if id(draw) not in fixed]
        return self._draws

    def observe(self) -> Observation:
        """Watch one more pass on the given batch."""
        return watch(self.bare_pass(), self.model, self.state)

    def bare_pass(self, batch: Any = None) -> Callable[..., Any]:
        """One forward pass, from the kept state and streams, as a function to be watched; it takes another seed."""
        chosen = self.batch if batch is None else batch
        self._put_back()

        def one_pass(seed: int = self.seed) -> Any:
            self.passes += 1
            seed_streams(seed)
            with torch.no_grad(), self._stillness():
                return call(self.model, chosen, self.forward)

        return one_pass

    def wide_pass(self, batch: Any) -> Callable[[], Any]:
        """The same in fp64; `batch` has to be wide already, so that the caller can follow its tensors."""

        def one_pass() -> Any:
            self.state.put_back(streams=False, quick=True)
            with wide():
                return self.bare_pass(batch)()

        return one_pass

    def claimed_path(self, finding: Finding) -> str | None:
        """The path that `mode-complete` has named and in which `finding` lies: one cause, told once."""
        path = finding.place.module
        for claimed in self.claimed:
            if not claimed or path == claimed or path.startswith((f"{claimed}.", f"{claimed}[")):
                return claimed
        return None

    def claims(self, finding: Finding) -> bool:
        """Whether `mode-complete` has named the cause of `finding` already."""
        return self.claimed_path(finding) is not None

    def is_reported(self, place: Place) -> bool:
        """Whether an earlier clause has found something on the same line of the same module."""
        return bool(place.file) and any(finding.place == place for finding in self.findings)

    def tensors(self, outputs: Any) -> Outputs:
        """What counts of what the model gave, as tensors: numpy arrays and plain numbers too."""
        return {path or "output": leaf.detach() for path, leaf in value_leaves(_selected(outputs, self.selection))}

    def _run(
        self,
        batch: Any,
        context: AbstractContextManager[Any],
        *,
        restore: bool = True,
        taken: Callable[[Any], Any] = lambda batch: batch,
    ) -> Outputs:
        if restore:
            self._put_back()
        self.passes += 1
        seed_streams(self.seed)
        with torch.no_grad(), self._stillness(), context:
            raw = call(self.model, copied(taken(batch)), self.forward)
        return {path: leaf.clone() for path, leaf in self.tensors(raw).items()}

    @contextmanager
    def _stillness(self) -> Iterator[None]:
        quiet = still() if self.stilled else nullcontext()  # type: ignore[no-untyped-call]
        with following_threads(), quiet, self.mending():
            yield


def copied(batch: Any) -> Any:
    """A copy of `batch`; a tensor that it holds twice is one tensor in the copy too (attention asks `query is key`).

    Example:
        >>> first, second = copied((torch.ones(1),) * 2)
        >>> first is second
        True
    """
    copies: dict[int, torch.Tensor] = {}

    def copy_of(leaf: torch.Tensor) -> torch.Tensor:
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.detach().clone().requires_grad_(leaf.requires_grad)
        return copies[id(leaf)]

    return map_tensors(copy_of, batch)


def _selected(outputs: Any, selection: Selection) -> Any:
    if selection is None:
        return outputs
    if callable(selection):
        return _picked(outputs, selection)
    try:
        if isinstance(selection, int) or isinstance(outputs, Mapping):
            return outputs[selection]
        return getattr(outputs, selection)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        if isinstance(outputs, Mapping):
            names = ", ".join(map(repr, outputs))
        else:
            names = f"a {type(outputs).__name__}"
        raise UsageError(
            f"outputs={selection!r} is not among the model's outputs", expected=f"one of {names}"
        ) from error


def _picked(outputs: Any, selection: Callable[[Any], Any]) -> Any:
    try:
        return selection(outputs)
    except Exception as error:
        raise UsageError(
            f"the function given as outputs= failed on {describe(outputs)}: {type(error).__name__}: {error}",
            expected="a function from the model's outputs to the part that counts",
        ) from error
