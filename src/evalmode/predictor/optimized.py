"""The predictor that `evalmode.optimize` gives and `evalmode.load` reads: fast, and the same bits in any batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from evalmode.backends.backend import Executor
from evalmode.certificate import Certificate
from evalmode.errors import OptimizationError, StalePredictorError, UsageError
from evalmode.mode import derived
from evalmode.observe.fingerprint import fingerprint
from evalmode.predictor.arguments import batch_of_arguments, batch_of_rule
from evalmode.predictor.execution import Execution
from evalmode.predictor.plan import Plan
from evalmode.predictor.protocol import Predictor
from evalmode.predictor.signature import Signature
from evalmode.predictor.structure import Structure

__all__ = ["OptimizedPredictor", "Serialisable"]

Serialisable = Callable[[], "OptimizedPredictor"]


@final
class OptimizedPredictor(Predictor):
    """Runs a model by a plan, always in evaluation: for any batch, in any order, a sample gets the same bits.

    It is called as the model's `forward` is, with as many samples as the caller likes, from any thread, whatever grad
    mode, inference mode, autocast, default dtype or default device the caller has on. Its outputs are ordinary tensors
    without a graph, as under `torch.no_grad()`, and share no memory with those of another call. It keeps weights of its
    own: after the model was trained further, `evalmode.refresh` makes it anew.

    Parameters: `executors` are those of the plan's configurations, in their order; `outputs` builds outputs of their
    own classes, where they are at hand; `probes` are flat inputs of a few samples, kept for the artifact; `golden` is
    how far their outputs may be off on another machine; `model` is what it was built from, and is not held; `plain`
    runs the model itself, for the samples that the plan leaves to it;
    `serialisable` makes another predictor of the same model to save in place of this one, if this one cannot be; it is
    closed once it is saved.

    Raises:
        UsageError: the executors are not those of the plan.
        OptimizationError: an output without batch axis depends on the samples.
    """

    def __init__(
        self,
        plan: Plan,
        executors: Sequence[Executor],
        *,
        outputs: Structure | None = None,
        certificate: Certificate | None = None,
        probes: Sequence[Tensor] | None = None,
        golden: float | None = None,
        model: nn.Module | None = None,
        plain: Executor | None = None,
        serialisable: Serialisable | None = None,
    ) -> None:
        if tuple(executor.configuration for executor in executors) != plan.configurations:
            raise UsageError(
                f"the executors run {', '.join(str(executor.configuration) for executor in executors) or 'nothing'}",
                expected=", ".join(map(str, plan.configurations)),
            )
        if (plain is not None) != (plan.non_finite is not None and plan.non_finite.answer == "plain"):
            raise UsageError(
                f"plain is {plain!r} for a plan that answers NaN and infinity by {plan.non_finite}",
                expected="the model's own executor where the plan leaves samples to it, and only there",
            )
        self._plan = plan
        self._executors = tuple(executors)
        self._plain = plain
        self._input_form = Structure(plan.input_form)
        self._output_form = outputs if outputs is not None else Structure(plan.output_form)
        self._signature = plan.signature
        self._certificate = certificate
        self._probes = tuple(tensor.detach().clone() for tensor in probes) if probes is not None else None
        self._golden = golden
        self._serialisable = serialisable
        self._closed = False
        sized = zip(plan.sizes, executors, strict=True)
        self._execution = Execution(plan, dict(sized), self._probes, plain)
        self._execution.require_shared_outputs()
        if model is not None:
            derived.register(model, self)

    @property
    def plan(self) -> Plan:
        """What it runs."""
        return self._plan

    @property
    def signature(self) -> Signature:
        """What it takes: names, dtypes and shapes; any number of samples."""
        return self._signature

    @property
    def certificate(self) -> Certificate | None:
        """What was tested on the model and on the plan."""
        return self._certificate

    @property
    def execution_sizes(self) -> tuple[int, ...]:
        """How many samples its executions run."""
        return self._plan.sizes

    @property
    def probes(self) -> tuple[Tensor, ...] | None:
        """The flat inputs that an artifact of it is tested with."""
        return self._probes

    @property
    def golden(self) -> float | None:
        """How far its outputs may be off on another machine, relative to their largest value; None for the usual."""
        return self._golden

    @property
    def executors(self) -> tuple[Executor, ...]:
        """What runs it, one for each execution size."""
        return self._executors

    @property
    def serialisable(self) -> Serialisable | None:
        """What makes the predictor to save where this one cannot be."""
        return self._serialisable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, called as the model's `forward` is.

        Raises:
            BatchError: the arguments do not fit the signature.
            OptimizationError: the predictor is closed.
        """
        if len(args) == 1 and not kwargs and self._plan.call == "single":
            return self._run(args[0])
        return self._run(batch_of_arguments(self._plan, args, kwargs))

    def predict(self, batch: Any) -> Any:
        """The outputs of one batch, called by the one calling rule.

        Raises:
            BatchError: the batch does not fit the signature.
            OptimizationError: the predictor is closed.
        """
        return self._run(batch_of_rule(self._plan, batch))

    def _run(self, batch: Any) -> Any:
        return self._output_form.rebuild(self.run_flat(self._input_form.flatten(batch)))

    def run_flat(self, inputs: Sequence[Tensor], sizes: Sequence[int] | None = None) -> list[Tensor]:
        """The flat outputs of flat inputs; `sizes` are the executions to use instead of the cheapest ones.

        Raises:
            BatchError: an input does not fit the signature.
            OptimizationError: the predictor is closed.
        """
        if self._closed:
            raise OptimizationError(f"{self!r} is closed", fix="make a new one, or load it again")
        return self._execution(inputs, sizes)

    def matches(self, model: nn.Module) -> bool:
        """Whether `model` has the weights that this was built from, bit for bit, under the same names."""
        return bool(self._plan.weights) and fingerprint(model) == self._plan.weights

    def require_fresh(self) -> None:
        """Refuse to be used once the model that this was built from has other weights.

        Raises:
            StalePredictorError: the model lives, and its weights have changed.
        """
        if not derived.fresh(self):
            raise StalePredictorError(
                f"the model's weights have changed since {self!r} was built from it",
                expected="a predictor that gives the answers of the model as it is now",
                fix="fast = evalmode.refresh(fast, model)",
            )

    def attach(self, certificate: Certificate) -> None:
        """Carry `certificate` from now on, into artifacts too."""
        self._certificate = certificate

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one file that `evalmode.load` reads, atomically; `evalmode.predictor.artifact` says what is in it.

        Raises:
            ArtifactError: nothing in it can be written, and the reason.
        """
        from evalmode.predictor.artifact import save_artifact

        return save_artifact(self, path)

    def close(self) -> None:
        """Give back memory and threads; it is not called again."""
        if not self._closed:
            self._closed, self._serialisable = True, None  # which holds the whole search
            derived.unregister(self)
            for executor in (*self._executors, *([self._plain] if self._plain is not None else [])):
                executor.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise OptimizationError(
            f"{self!r} cannot be copied or pickled: it holds threads and compiled code",
            fix="use it from several threads as it is; for another process, fast.save(path) and evalmode.load(path)",
        )

    def __repr__(self) -> str:
        return f"<OptimizedPredictor {self._plan}>"

    def __str__(self) -> str:
        record = self._plan.record
        speed = f": {record.speedup:.1f}x plain eval()" if record is not None and record.speedup else ""
        bits = "the same for a sample in any batch" if self._plan.stable else "may differ with the batch"
        lines = [
            f"{self._plan}{speed}",
            f"  takes   {', '.join(map(str, self._signature.inputs))}",
            f"  gives   {', '.join(map(str, self._plan.gives()))}",
            f"  bits    {bits}",
        ]
        broken = [f"  but     {self._plan.non_finite}"] if self._plan.non_finite is not None else []
        return "\n".join([*lines, *broken])
