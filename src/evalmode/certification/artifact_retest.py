"""The plan of a certificate, tested again: from its artifact, by its golden outputs, on data, and beside its model."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from evalmode.certificate import Certificate, ClauseResult, EvaluationRecord, ModelRecord
from evalmode.certification.optimized import first_inputs, task_pairs
from evalmode.certification.preparation import inputs_as_then, model_device, module_of, probe_inputs
from evalmode.certification.retested import Outcome, Retested
from evalmode.certification.whole_way import evaluated, record_beside_plain
from evalmode.checking.runner import check
from evalmode.clause import Verdict
from evalmode.errors import (
    ArtifactError,
    EvalmodeError,
    MissingExtraError,
    NonFiniteOutputError,
    OtherOutputsError,
    TaskError,
)
from evalmode.evaluation.batches import Batches, batches_from
from evalmode.evaluation.result import Evaluation
from evalmode.finding import Finding
from evalmode.mode.derived import staleness_unchecked
from evalmode.observe.fingerprint import environment_record, fingerprint
from evalmode.observe.tree import describe, map_tensors
from evalmode.optimization.exporting import program_of
from evalmode.optimization.judge import judge_of
from evalmode.optimization.subject import Subject
from evalmode.optimization.task_data import task_data
from evalmode.optimization.tolerance import Tolerance
from evalmode.predictor.artifact import inspect_artifact, load
from evalmode.predictor.calling import call
from evalmode.predictor.golden import instability
from evalmode.predictor.manifest import same_machine
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.predictor.structure import Structure
from evalmode.task import Task

__all__ = ["Loaded", "certified_again", "loaded_again"]

ANSWERS = ("deterministic", "batch-independent", "finite")
"""The clauses about answers alone: the others look into the model, which an artifact does not hold."""

NO_MODEL = "an artifact holds the plan, not the model: verify the certificate with the task"
_GATE_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A predictor, what its loading has shown, and the fingerprint of its model. Without a predictor, `reason` says
    why it does not run here."""

    predictor: OptimizedPredictor | None
    results: tuple[Retested, ...]
    weights: str
    device: torch.device
    reason: str = ""


def loaded_again(
    then: Certificate, given: OptimizedPredictor | str | os.PathLike[str], *, allow_native: bool
) -> Loaded:
    """The predictor of an artifact, its golden outputs run again; or one that is loaded already.

    Raises:
        ArtifactError: the file is damaged, foreign or newer.
    """
    golden = "golden outputs"
    if isinstance(given, OptimizedPredictor):
        known = Retested("plan", golden, Outcome.UNTESTED, "they are in the artifact, and a predictor was given")
        return Loaded(given, (_same_plan(then, str(given.plan), ""), known), given.plan.weights, given.plan.device)
    manifest = inspect_artifact(given)
    plan = _same_plan(then, str(manifest.plan), manifest.instead_of)
    weights, device = manifest.plan.weights, manifest.plan.device
    try:
        predictor = load(given, allow_native=allow_native)
    except OtherOutputsError as error:
        return Loaded(None, (plan, Retested("plan", golden, Outcome.DIFFERS, error.got)), weights, device, error.got)
    except (ArtifactError, MissingExtraError) as error:
        reason = str(error).splitlines()[0]
        return Loaded(None, (plan, Retested("plan", golden, Outcome.UNTESTED, reason)), weights, device, reason)
    if same_machine(manifest):
        detail = "the same bits"
    else:
        detail = f"another machine: within {manifest.golden:g} of their largest value, and the same bits in any batch"
    return Loaded(predictor, (plan, Retested("plan", golden, Outcome.SAME, detail)), weights, device)


def _same_plan(then: Certificate, plan: str, instead_of: str) -> Retested:
    """Whether the plan is the one that the certificate evaluated, or that its search chose."""
    certified = then.evaluation.plan if then.evaluation is not None else ""
    if not certified:
        return Retested("plan", "plan", Outcome.UNTESTED, f"the certificate names none; the artifact runs {plan}")
    if certified == plan:
        return Retested("plan", "plan", Outcome.SAME, plan)
    if certified == instead_of:
        detail = f"{certified}, which cannot be written into a file; the artifact runs {plan} in its place"
        return Retested("plan", "plan", Outcome.UNTESTED, detail)
    return Retested("plan", "plan", Outcome.DIFFERS, f"{certified}, here {plan}")


def certified_again(
    then: Certificate,
    loaded: Loaded,
    task: Task | None,
    *,
    own_model: bool,
    batch: Any = None,
    batch_size: int = 64,
    limit: int | None = None,
) -> Certificate:
    """What the tests of `then` that concern answers alone give with the predictor.

    `task` has the data, and with `own_model` the model too, beside which the plan is held: the clause `faithful`.
    """
    predictor, created = loaded.predictor, dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    model = ModelRecord(name="", modules=0, parameters=0, bytes=0, fingerprint=loaded.weights)  # it knows no more
    machine = environment_record(loaded.device)
    here = Certificate(created=created, subject=then.subject, model=model, environment=machine)
    if predictor is None:
        return here
    wanted = [result.clause for result in then.clauses if result.verdict is not Verdict.NOT_TESTED]
    data = None if task is None else task.data("test_data")
    own_inputs = batch is None and data is None
    if batch is None and task is not None and data is not None:
        batch = inputs_as_then(task, then.inputs)
    inputs = _inputs(predictor, task, batch, None if data is None else batches_from(data, batch_size))
    answers = [_about_answers(name, predictor, inputs, _probes(then)) for name in ANSWERS if name in wanted]
    module = module_of(task) if own_model and task is not None else None
    clauses = [result for result, _, _ in answers]
    if "faithful" in wanted:
        clauses.append(_faithful(then, predictor, task if module is not None else None, batch_size))
    evaluation = None
    if data is not None and task is not None and then.evaluation is not None:
        evaluation = _evaluated(predictor, task, data, batch_size, limit, beside_plain=module is not None)
    return msgspec.structs.replace(
        here,
        inputs="" if own_inputs else describe(inputs),
        clauses=tuple(clauses),
        findings=tuple(finding for _, findings, _ in answers for finding in findings),
        evaluation=evaluation,
        forward_passes=sum(passes for _, _, passes in answers),
    )


def _about_answers(
    clause: str, predictor: OptimizedPredictor, inputs: Any, probes: Any
) -> tuple[ClauseResult, tuple[Finding, ...], int]:
    """What `check` finds about one clause, and in how many passes; where a plan promises bits, any bit that moves with
    the companions breaks the promise."""
    if clause == "batch-independent" and predictor.plan.stable and (moved := instability(predictor)):
        return ClauseResult(clause=clause, verdict=Verdict.BROKEN, probes=1, evidence=moved), (), 0
    try:
        found = check(predictor, inputs, clauses=[clause], probes=probes).certificate
    except EvalmodeError as error:
        return ClauseResult(clause=clause, verdict=Verdict.NOT_TESTED, evidence=error.got), (), 0
    return found.clauses[0], found.findings, found.forward_passes


def _probes(then: Certificate) -> Any:
    return then.probes if then.probes in {"fast", "default", "thorough"} else "default"


def _inputs(predictor: OptimizedPredictor, task: Task | None, batch: Any, batches: Batches | None) -> Any:
    """What was given, else the first samples of the data, else the artifact's own probes; on the plan's device."""
    if batch is None and task is not None and batches is not None:
        batch, _ = probe_inputs(task, batches)
    if batch is None:
        batch = Structure(predictor.plan.input_form).rebuild(predictor.probes or ())
    return map_tensors(lambda tensor: tensor.to(predictor.plan.device), batch)


def _faithful(then: Certificate, predictor: OptimizedPredictor, task: Task | None, batch_size: int) -> ClauseResult:
    """The gate of the search, with the predictor as it is: its answers beside those of its own model."""

    def untested(why: str) -> ClauseResult:
        return ClauseResult(clause="faithful", verdict=Verdict.NOT_TESTED, evidence=why)

    if task is None:
        return untested("needs the model beside its plan: give the task as data")
    module = module_of(task)
    if fingerprint(module) != predictor.plan.weights:
        return untested("the model of the task has other weights than the plan")
    kind = then.optimization.tolerance if then.optimization is not None else "fp32"
    try:
        with staleness_unchecked():
            inputs, _ = first_inputs(task, batch_size)
            device = model_device(module)
            inputs = map_tensors(lambda tensor: tensor.to(device), inputs)
            exported = program_of(module, inputs, task.forward)
            subject = Subject(exported, predictor.execution_sizes, predictor.plan.weights, task.forward)
            data = None
            if kind == "task":
                pairs, metric = task_pairs(task, batch_size)
                plain: Any = subject.flat.model
                data = task_data(pairs, metric, lambda given: call(plain, given, task.forward))
            judge = judge_of(subject, Tolerance.of(kind), task=data, seconds=_GATE_SECONDS)
            runs = dict.fromkeys(predictor.execution_sizes, _run(predictor))
            found = judge.verify(runs, predictor)
    except EvalmodeError as error:
        return untested(f"{type(error).__name__}: {error.got}")
    return ClauseResult(
        clause="faithful",
        verdict=Verdict.KEPT if found.accepted else Verdict.BROKEN,
        probes=found.probes,
        evidence=found.reason,
        notes=tuple(found.notes),
    )


def _run(predictor: OptimizedPredictor) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda chunks: [tuple(predictor.run_flat(chunk)) for chunk in chunks]


def _evaluated(
    predictor: OptimizedPredictor, task: Task, data: Any, batch_size: int, limit: int | None, *, beside_plain: bool
) -> EvaluationRecord:
    """The figures of the plan; where the model is at hand, with the number of samples that plain answers alike.

    Raises:
        NonFiniteOutputError: an output is not finite.
    """
    answers = evaluated(predictor, task, data, batch_size, limit, None)
    if isinstance(answers, NonFiniteOutputError):
        raise answers
    if answers is None:
        raise TaskError("the test data is gone", expected="the data that was given")
    plain = evaluated(module_of(task), task, data, batch_size, limit, None) if beside_plain else None
    return record_beside_plain(plain, answers, predictor) if isinstance(plain, Evaluation) else answers.record
