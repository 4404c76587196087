"""An evaluation from its model and data to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import EvaluationRecord, SampleRecord
from evalmode.errors import TaskError, UsageError
from evalmode.evaluation import whole_metrics
from evalmode.evaluation.as_they_come import AsTheyCome
from evalmode.evaluation.choice import chosen_metrics, refuse_equal_names
from evalmode.evaluation.figures import (
    calibration_of,
    confusion_of,
    data_digest,
    metrics_of,
    records_of,
    worst_samples,
)
from evalmode.evaluation.going_on import SameData, require_same
from evalmode.evaluation.groups import Group
from evalmode.evaluation.identity import data_identity, described, model_identity, told_whole
from evalmode.evaluation.journal import Journal
from evalmode.evaluation.keeping import Keeping
from evalmode.evaluation.labels import GROUPS, Labels, each_apart, inputs_named
from evalmode.evaluation.loader_checks import endless, require_end, worker_deaths_told
from evalmode.evaluation.loading import Loading
from evalmode.evaluation.options import Options
from evalmode.evaluation.passing import Pass
from evalmode.evaluation.pictures import picture_of
from evalmode.evaluation.predictions import require_writable, write_predictions
from evalmode.evaluation.progress import OnProgress, Tracker, shown
from evalmode.evaluation.reading import Reader
from evalmode.evaluation.repeatable import require_repeatable
from evalmode.evaluation.result import Evaluation, subject_of
from evalmode.evaluation.runners import runner_for
from evalmode.evaluation.samples import Samples
from evalmode.evaluation.slices import cuts_of, slice_records, values_of
from evalmode.evaluation.source import Source, source_of
from evalmode.evaluation.told import all_bad
from evalmode.evaluation.untouched import Untouched
from evalmode.measure.metric import Metric
from evalmode.observe.fingerprint import environment_record, model_record
from evalmode.task import Task

__all__ = ["Work"]

_READ = 64  # samples read at a time where nothing says otherwise


class Work:
    """What `evaluate` does, step by step."""

    def __init__(self, model: Any, data: Any, options: Options, started: float) -> None:
        self.started = started
        self.subject = ""
        if isinstance(model, Task):
            model, data, options, self.subject = _of_task(model, data, options)
        if data is None:
            raise UsageError("evaluate was given no data", fix="evalmode.evaluate(model, (inputs, targets))")
        self.model, self.data, self.options = model, data, options
        self.runner, self.module = runner_for(model, options.forward, options.device, whole=not options.exact)
        rest, self.whole = whole_metrics.apart(options.metrics)
        self.cuts = cuts_of(options.slices)
        self.labels = Labels(
            options.ids,
            options.groups,
            [name for cut in self.cuts for name in cut.columns],
            values_of(options.slices),
            every=any(cut.every for cut in self.cuts),
        )
        keep_scores = bool(options.keep_predictions) or bool(self.whole)
        self.notes: list[str] = []
        chosen = chosen_metrics(rest, self.notes.append)
        self.reader = Reader(options.prediction, chosen, options.loss, keep_scores=keep_scores)
        self.source: Source | None = None

    def result(self, progress: bool | OnProgress) -> Evaluation:
        """The evaluation."""
        source = self.source = source_of(self.data) if self.options.exact else None
        if source is not None:
            self._require_end(source)
            self.labels.require_length(source.samples)
            self.notes += source.notes
        else:
            if self.options.limit is None:
                require_end(self.data)
            self.notes.append("exact=False: batches ran as they came, so figures may depend on how they were made")
        if isinstance(self.options.keep_predictions, str | os.PathLike):
            require_writable(self.options.keep_predictions)
        split = self.options.split
        with contextlib.ExitStack() as stack:
            stack.enter_context(worker_deaths_told())
            journal = self._before(source, stack)
            keeping = Keeping(journal, self.runner.record)
            if keeping.told:
                self.runner.recall(keeping.told)
            loading = self._loading(source, keeping)
            before = keeping.samples + len(keeping.bad)
            tracker = Tracker(stack.enter_context(shown(progress)), loading.samples, self.options.confidence, before)
            work = Pass(
                self.runner,
                self.reader,
                keeping,
                self.labels,
                tracker,
                split=None if split is None else Untouched(split, "split", self.notes.append),
                wanted=inputs_named(self.module or self.model),
                on_bad_sample=self.options.on_bad_sample,
            )
            stack.enter_context(self.runner.running())
            self._pass(work, loading, source)
            tracker.finish()
            try:
                evaluation = self._evaluation(work, keeping)
                if journal is not None:
                    evaluation = _finished(journal, evaluation)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._stopped(keeping, loading.samples)) from None
        return self._kept(evaluation)

    def _before(self, source: Source | None, stack: contextlib.ExitStack) -> Journal | None:
        """Look at the data once more, and open the journal where there is one."""
        try:
            if source is not None:
                loading = self._loading(source, None)
                if isinstance(loading, Loading):
                    require_repeatable(loading, self.labels.name)
            if self.options.journal is None:
                return None
            return stack.enter_context(Journal.open(self.options.journal, self._identity(source)))
        except KeyboardInterrupt:
            again = "the same call"
            if self.options.journal is not None:
                again += f" with journal={os.fspath(self.options.journal)!r}"
            raise KeyboardInterrupt(
                f"stopped while the data was looked through, before a sample was run: {again} goes on from there"
            ) from None

    def _pass(self, work: Pass, loading: AsTheyCome | Loading, source: Source | None) -> None:
        keeping = work.keeping
        try:
            if keeping.samples and source is not None and isinstance(loading, Loading):
                # what the first group decides is not in the journal
                for group in self._loading(source, None):
                    reading = work.look(group) if isinstance(group, Group) else None
                    if isinstance(group, Group) and reading is not None and self.runner.exact:
                        require_same(group, reading, keeping)
                    if self.reader.chosen is not None:
                        break
                SameData(keeping, self.labels.name).over(loading)
            work.over(loading)
            keeping.flush()
            if source is not None and self.options.most is None:
                self._count(source, keeping.samples + len(keeping.bad))
        except BaseException as error:
            keeping.flush()
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(self._stopped(keeping, loading.samples)) from None
            raise
        if not keeping.samples:
            if work.reason is not None:
                raise all_bad(work.reason, len(keeping.bad))
            if keeping.bad:
                torn = keeping.listed()[0]
                raise TaskError(
                    f"all {len(keeping.bad):,} samples were left out; {torn.id}: {torn.reason}",
                    expected="at least one sample that can be read, run and measured",
                    fix="mend the data or the model, and begin with a new journal",
                )
            raise TaskError("the test data gave no samples", expected="at least one sample")

    def _count(self, source: Source, found: int) -> None:
        """What is to be said once all of the data has been read."""
        if source.samples is None:
            self.labels.require_length(found)
        elif source.stream is not None and found != source.samples:
            self.notes.append(f"{source.kind} says that it has {source.samples:,} samples, and gave {found:,}")

    def _stopped(self, keeping: Keeping, total: int | None) -> str:
        of = f" of {total:,}" if total is not None else ""
        if self.options.journal is None:
            return f"stopped after {keeping.samples:,}{of} samples; with a journal the next call would go on from here"
        journal = os.fspath(self.options.journal)
        return (
            f"stopped after {keeping.samples:,}{of} samples: the same call with journal={journal!r} goes on from here"
        )

    def _require_end(self, source: Source) -> None:
        if source.samples is None and not source.ends and self.options.limit is None:
            raise endless(source.kind)
        if source.stream is not None and self.options.workers:
            self.notes.append("a stream is read in one process: workers= has no effect")

    def _loading(self, source: Source | None, keeping: Keeping | None) -> AsTheyCome | Loading:
        options = self.options
        size = 64 if options.batch_size == "auto" else options.batch_size
        if source is None:
            loading = AsTheyCome(self.data, size, options.most)
            self.notes += loading.batches.notes
            return loading
        return Loading(
            source,
            size=self.runner.size,
            chunk=_READ if options.batch_size == "auto" else size,
            device=self.runner.device.type,
            done=None if keeping is None else keeping.done(),
            limit=options.most,
            workers=0 if source.stream is not None else options.workers,
            digested=options.journal is not None and not told_whole(source),
        )

    def _identity(self, source: Source | None) -> dict[str, str]:
        if source is None:
            raise UsageError(
                "journal= was given with exact=False",
                expected="an exact evaluation: batches as they come may be others the next time",
                fix="leave exact=False out, or journal=",
            )
        options = self.options
        settings = {
            name: described(getattr(options, name))
            for name in ("metrics", "split", "forward", "prediction", "loss", "slices", "groups", "ids")
        }
        plain = {name: repr(getattr(options, name)) for name in ("confidence", "on_bad_sample", "limit")}
        if source.own_collate:
            settings["collate_fn"] = described(source.collate)
        scores = {"scores": "kept" if self.reader.keep_scores else "not kept", "device": str(self.runner.device)}
        machine = environment_record(self.runner.device)  # bits differ between processors, threads and versions
        where = {"torch": machine.torch, "processor": machine.processor, "place": machine.device}
        if self.module is not None:  # a plan sets its own number of threads, and names it
            where["threads"] = str(machine.threads)
        model = model_identity(self.model, self.module)
        return {**model, **where, "data": data_identity(source), **settings, **plain, **scores}

    def _evaluation(self, work: Pass, keeping: Keeping) -> Evaluation:
        places = keeping.places()
        samples = keeping.result()
        if self.labels.id_column is not None and (twice := len(samples) - len(np.unique(samples.ids))):
            self.notes.append(f"ids: {twice} samples have the id of another one, so results cannot be compared by it")
        metrics = metrics_of(self.reader.chosen or (), samples)
        confidence = self.options.confidence
        clusters = self._clusters(samples)
        records, said = records_of(metrics, samples, confidence, clusters)
        if self.whole:
            records = (
                *records,
                *whole_metrics.records(self.whole, samples, predicted=self.options.prediction is not None),
            )
            refuse_equal_names([record.name for record in records])
        exact = self.runner.exact and self.options.exact
        record = EvaluationRecord(
            samples=len(samples),
            batch_size=self.runner.largest or max(self.runner.sizes, default=0),
            metrics=records,
            plan=self.runner.plan,
            execution_sizes=tuple(sorted(self.runner.sizes)),
            exact=exact,
            data=data_digest(samples),
            skipped=len(keeping.bad),
            bad=keeping.listed(),
            slices=slice_records(self.cuts, samples, tuple(metrics.values()), confidence, clusters),
            confusion=confusion_of(samples),
            calibration=calibration_of(samples),
            worst=self._worst(metrics, samples, places),
            notes=tuple(dict.fromkeys((*self.notes, *self.runner.notes, *work.notes, *said))),
            seconds=time.perf_counter() - self.started,
        )
        return Evaluation(
            record,
            tuple(self.reader.said),
            samples,
            metrics,
            None if self.module is None else model_record(self.module),
            environment_record(self.runner.device),
            self.subject or subject_of(self.module or self.model),
        )

    def _clusters(self, samples: Samples) -> NDArray[Any] | None:
        groups = self.options.groups
        if groups is None:
            return None
        found, alone = each_apart(samples.columns[groups if isinstance(groups, str) else GROUPS])
        if alone:
            self.notes.append(f"groups: {alone} samples have none: each of them is taken for one of its own")
        return found

    def _worst(
        self, metrics: dict[str, Metric], samples: Samples, places: Sequence[int] | NDArray[np.int64]
    ) -> tuple[SampleRecord, ...]:
        source = self.source

        def picture(place: int) -> str:
            if source is None or (source.fetch is None and source.rows is None):
                return ""
            return picture_of(source.sample(int(places[place])))

        return worst_samples(metrics, samples, picture)

    def _kept(self, evaluation: Evaluation) -> Evaluation:
        where = self.options.keep_predictions
        if where is not None and not isinstance(where, bool):
            write_predictions(where, evaluation)
        return evaluation


def _of_task(task: Task, data: Any, options: Options) -> tuple[Any, Any, Options, str]:
    """The parts of a task where nothing else was given."""
    built = task.built()
    given = {
        name: getattr(built, name)
        for name in ("metrics", "split", "forward", "prediction", "loss")
        if getattr(options, name) is None
    }
    if data is None:
        data = built.data("test_data")
    if data is None:
        raise TaskError(
            f"{built.home} has no test data",
            expected="def test_data() that returns a DataLoader, a Dataset, or a pair (inputs, targets)",
            fix="add it to the task",
        )
    return built.model, data, dataclasses.replace(options, **given), built.name or type(built.model).__name__


def _finished(journal: Journal, evaluation: Evaluation) -> Evaluation:
    """The evaluation as its journal has it: a second call gives what the first one gave."""
    if journal.finished is None:
        journal.finish(msgspec.msgpack.encode(evaluation.record))  # JSON has no NaN and no infinity
        return evaluation
    return dataclasses.replace(evaluation, record=msgspec.msgpack.decode(journal.finished, type=EvaluationRecord))
