"""Every sample once, and the same bits whatever the batch size, workers, order or interruption."""

import datetime as dt
import decimal
import math
import signal
import threading
import time

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from tests.predictor.fake_backend import Net, predictor
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

import evalmode
from evalmode.errors import (
    BatchError,
    EvalmodeError,
    ModelRunError,
    NonFiniteOutputError,
    NotAModuleError,
    PredictionsError,
    RowCountError,
    StalePredictorError,
    TaskError,
    UsageError,
)
from evalmode.evaluation.evaluator import evaluate as evaluate_aloud
from evalmode.measure.metric import Aggregate, Metric

GENERATOR = torch.Generator().manual_seed(3)
INPUTS = torch.randn(301, 12, generator=GENERATOR)
LABELS = torch.randint(0, 4, (301,), generator=GENERATOR)


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(12, 33),
        nn.BatchNorm1d(33),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(33, 17),
        nn.Tanh(),
        nn.Linear(17, 4),
    )


MODEL = network()


def evaluate(model, data, **options):
    return evaluate_aloud(model, data, **{"progress": False, **options})


class Pairs(Dataset):
    """Samples one by one, in an order of their own."""

    def __init__(self, order=range(301), inputs=INPUTS, labels=LABELS):
        self.order, self.inputs, self.labels = list(order), inputs, labels

    def __len__(self):
        return len(self.order)

    def __getitem__(self, place):
        return self.inputs[self.order[place]], int(self.labels[self.order[place]])


class Stream(IterableDataset):
    def __init__(self, samples, length=None):
        self.samples, self.length = samples, length

    def __iter__(self):
        return (self.samples[place] for place in range(len(self.samples)))


class Sized(Stream):
    def __len__(self):
        return len(self.samples)


def same(first, second):
    """Bit for bit: figures with their intervals, ids, rows and answers."""
    assert first.record.metrics == second.record.metrics
    assert first.samples.rows.keys() == second.samples.rows.keys()
    for name, rows in first.samples.rows.items():
        assert rows.tobytes() == second.samples.rows[name].tobytes(), name
    assert np.array_equal(first.samples.prediction, second.samples.prediction)
    assert np.array_equal(first.samples.target, second.samples.target)
    assert first.record.slices == second.record.slices
    assert first.record.confusion == second.record.confusion
    assert first.record.calibration == second.record.calibration


def bits(result):
    return {name: rows.tobytes() for name, rows in result.samples.rows.items()}


def squashed(outputs, target):
    """A metric of one's own in fp32, whose kernels may round otherwise for another number of rows."""
    return (outputs.exp() * outputs.sigmoid()).mean(1) + F.cross_entropy(outputs, target, reduction="none")


METRICS = {"accuracy": "accuracy", "log loss": "log loss", "squashed": squashed}


@pytest.fixture(scope="module")
def whole():
    return evaluate(MODEL, (INPUTS, LABELS), metrics=METRICS, slices="class")


def test_figures_agree_with_scikit_learn(whole):
    with torch.no_grad():
        logits = network().eval()(INPUTS).double()
    assert whole["accuracy"].value == accuracy_score(LABELS, logits.argmax(1))
    assert whole["log loss"].value == pytest.approx(log_loss(LABELS, logits.softmax(1), labels=range(4)), rel=1e-6)
    assert np.array_equal(np.array(whole.record.confusion.counts), confusion_matrix(LABELS, logits.argmax(1)))
    assert whole.record.samples == 301
    assert whole.record.exact
    assert sum(entry.count for entry in whole.record.calibration) == 301


def test_the_module_is_left_as_it_was():
    model = network()
    model[1].eval()
    torch.manual_seed(5)
    before = [model.training, *(part.training for part in model), torch.get_rng_state().tolist()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, DataLoader(Pairs(), batch_size=16))
    assert [model.training, *(part.training for part in model), torch.get_rng_state().tolist()] == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class Recording(nn.Module):
    """It writes into a buffer, replaces another, and keeps a number and a list of its own."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(12, 4), nn.BatchNorm1d(12)
        self.register_buffer("mean", torch.zeros(12))
        self.calls, self.sizes = 0, []

    def forward(self, inputs):
        self.calls += 1
        self.sizes.append(len(inputs))
        self.norm.num_batches_tracked += 1
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
        return self.layer(F.batch_norm(inputs, self.norm.running_mean, self.norm.running_var, training=len(inputs) > 1))


def test_what_a_model_writes_of_its_own_is_put_back():
    model = Recording()
    state = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    evaluate(model, (INPUTS, LABELS))
    evaluate(model, (INPUTS, LABELS), exact=False)
    with pytest.raises(ModelRunError):
        evaluate(model, (INPUTS[:, :5], LABELS))
    now = model.state_dict(keep_vars=True)
    assert all(now[name] is tensor and torch.equal(tensor, before) for name, (tensor, before) in state.items())
    assert (model.calls, model.sizes) == (0, [])


def test_weights_that_are_not_there_yet_are_named_and_not_made_up():
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(UsageError, match=r"`0\.weight` is not initialised yet"):
        evaluate(model, (INPUTS, LABELS))
    assert model[0].has_uninitialized_params()


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 400), st.randoms(use_true_random=False), st.sampled_from(["loader", "dataset", "arrays", "stream"])
)
def test_batch_size_order_and_kind_of_data_change_no_bit(whole, size, shuffle, kind):
    order = shuffle.sample(range(301), 301)
    inputs, labels = INPUTS[order], LABELS[order]
    data = {
        "loader": lambda: DataLoader(Pairs(order), batch_size=size),
        "dataset": lambda: Pairs(order),
        "arrays": lambda: {"input": inputs, "labels": labels},
        "stream": lambda: Sized(Pairs(order)),
    }[kind]()
    result = evaluate(MODEL, data, metrics=METRICS, slices="class", batch_size=size)
    assert result.record.metrics == whole.record.metrics
    assert result.record.slices == whole.record.slices
    back = np.argsort(order)
    for name, rows in whole.samples.rows.items():
        assert result.samples.rows[name][back].tobytes() == rows.tobytes(), name


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit(whole, workers):
    same(evaluate(MODEL, Pairs(), metrics=METRICS, slices="class", workers=workers, batch_size=19), whole)


def test_an_optimised_predictor_gives_the_same_bits_at_any_batch_size_and_order():
    fast = evalmode.optimize(network(), INPUTS[:16], backends=["eager"], budget_s=4, batch_sizes=(1, 16))
    first = evaluate(fast, (INPUTS, LABELS), metrics=METRICS)
    assert first.record.plan == str(fast.plan)
    assert first.record.execution_sizes == fast.execution_sizes
    for size in (1, 3, 50):
        same(evaluate(fast, Pairs(), metrics=METRICS, batch_size=size), first)
    order = torch.randperm(301, generator=torch.Generator().manual_seed(0)).tolist()
    assert evaluate(fast, Pairs(order), metrics=METRICS).record.metrics == first.record.metrics
    with torch.no_grad():
        fast_rows = fast(INPUTS).argmax(1)
    assert np.array_equal(first.samples.prediction, fast_rows.numpy())


def test_a_stale_predictor_is_refused():
    model = network()
    fast = evalmode.optimize(model, INPUTS[:4], backends=["eager"], budget_s=2)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(StalePredictorError):
        evaluate(fast, (INPUTS, LABELS))


def test_a_model_that_looks_at_its_companions_runs_one_sample_at_a_time():
    class Ranked(nn.Module):
        def forward(self, inputs):
            return inputs[:, :4] - inputs.mean()

    result = evaluate(Ranked(), (INPUTS, LABELS), metrics=METRICS)
    assert result.record.execution_sizes == (1,)
    assert any("one at a time" in note for note in result.record.notes)
    order = torch.randperm(301).tolist()
    assert evaluate(Ranked(), Pairs(order), metrics=METRICS).record.metrics == result.record.metrics


class Dropping(nn.Module):
    def forward(self, inputs):
        return F.dropout(inputs, 0.3)[:, :4]


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return inputs[:, :4] + self.calls


@pytest.mark.parametrize("model", [Dropping, Counting])
@pytest.mark.parametrize("rows", [1, 301])
def test_a_random_or_counting_model_is_not_exact_and_companions_are_not_blamed(model, rows):
    record = evaluate(model(), (INPUTS[:rows], LABELS[:rows]), metrics=METRICS).record
    assert not record.exact
    assert any("not the same twice" in note and "evalmode.check" in note for note in record.notes)
    assert not any("beside it" in note for note in record.notes)


def test_samples_of_different_shapes_are_grouped_by_their_own():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 9), nn.Linear(9, 3)

        def forward(self, tokens):
            return self.head(self.embed(tokens).mean(1))

    model = Pooled()
    draw = torch.Generator().manual_seed(2)
    texts = [
        torch.randint(0, 50, (int(length),), generator=draw) for length in torch.randint(1, 9, (90,), generator=draw)
    ]
    labels = [int(label) for label in torch.randint(0, 3, (90,), generator=draw)]
    result = evaluate(model, (texts, labels))
    with torch.no_grad():
        alone = torch.stack([model.eval()(text[None])[0] for text in texts])
    assert np.array_equal(result.samples.prediction, alone.argmax(1))
    assert result.samples.target.tolist() == labels
    order = torch.randperm(90).tolist()
    again = evaluate(model, ([texts[place] for place in order], [labels[place] for place in order]), batch_size=5)
    assert again.record.metrics == result.record.metrics


def padding(samples):
    texts, labels = zip(*samples, strict=True)
    return nn.utils.rnn.pad_sequence(list(texts), batch_first=True), torch.tensor(labels)


def test_a_collate_that_pads_is_refused_and_runs_as_it_comes_when_told():
    texts = [(torch.arange(1 + place % 5), place % 2) for place in range(20)]
    loader = DataLoader(texts, batch_size=4, collate_fn=padding)
    model = nn.Sequential(nn.Embedding(9, 2), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten())
    with pytest.raises(TaskError, match=r"collate_fn changes a sample with its companions") as caught:
        evaluate(model, loader)
    assert "exact=False" in str(caught.value)
    result = evaluate(model, loader, exact=False)
    assert result.record.samples == 20
    assert not result.record.exact
    assert any("exact=False" in note for note in result.record.notes)


def test_a_collate_that_pads_text_late_in_the_data_is_caught_by_its_batches():
    class Texts(Dataset):
        def __len__(self):
            return 400

        def __getitem__(self, place):
            return "x" * (9 if place == 301 else 4), 0

    def tokenised(samples):
        longest = max(len(text) for text, _ in samples)
        return torch.ones(len(samples), longest), torch.zeros(len(samples), dtype=torch.long)

    loader = DataLoader(Texts(), collate_fn=tokenised)
    with pytest.raises(TaskError, match="different shapes"):
        evaluate(nn.Sequential(nn.AdaptiveAvgPool1d(3)), loader)


def test_a_collate_of_ones_own_that_keeps_samples_apart_is_taken(whole):
    def doubled(samples):
        inputs, labels = zip(*samples, strict=True)
        return torch.stack(inputs), torch.tensor(labels)

    same(evaluate(MODEL, DataLoader(Pairs(), batch_size=9, collate_fn=doubled), metrics=METRICS, slices="class"), whole)


@pytest.mark.parametrize(
    "collate",
    [
        lambda samples: default_collate([sample for sample in samples if sample[1] != 2]),
        lambda samples: default_collate([view for sample in samples for view in (sample, sample)]),
        lambda samples: {"x": torch.stack([x for x, _ in samples])[1:], "labels": torch.zeros(len(samples) - 1)},
    ],
)
@pytest.mark.parametrize("data", [Pairs, lambda: TensorDataset(INPUTS, LABELS), lambda: Sized(Pairs())])
def test_a_collate_that_gives_another_number_of_rows_is_refused(collate, data):
    with pytest.raises(RowCountError, match=r"\d+ (outputs|targets) \(.*\) for a batch of 1024 samples") as caught:
        evaluate(MODEL, DataLoader(data(), batch_size=8, collate_fn=collate))
    assert "exact=False" in str(caught.value)


@pytest.mark.parametrize("skip", ["error", "skip"])
def test_a_collate_that_filters_beside_a_list_of_everything_is_refused(skip):
    def filtering(samples):
        inputs, labels = default_collate([sample for sample in samples if sample[1] != 2])
        return {"x": inputs, "y": labels, "names": [str(label) for _, label in samples]}

    loader = DataLoader(Sized(Pairs()), collate_fn=filtering)
    with pytest.raises(RowCountError, match=r"\d+ outputs \(float32\[\d+, 4\]\) for a batch of 1024 samples"):
        evaluate(MODEL, loader, split=lambda batch: (batch["x"], batch["y"]), on_bad_sample=skip)
    with pytest.raises(RowCountError, match=r"1023 targets"):
        evaluate(MODEL, (INPUTS, LABELS), split=lambda batch: (batch[0], batch[1][1:]), on_bad_sample=skip)


def test_a_collate_whose_batches_split_puts_in_order_is_taken(whole):
    def turned(samples):
        inputs, labels = default_collate(samples)
        return inputs.reshape(-1, 3, 4).transpose(0, 1).contiguous(), labels.reshape(1, -1)

    def flat(samples):
        inputs, labels = default_collate(samples)
        return inputs.reshape(-1, 4), labels.reshape(1, -1)

    splits = {
        turned: lambda batch: (batch[0].transpose(0, 1).flatten(1), batch[1][0]),
        flat: lambda batch: (batch[0].reshape(-1, 12), batch[1][0]),
    }
    for collate, split in splits.items():
        result = evaluate(MODEL, DataLoader(Pairs(), collate_fn=collate), split=split, metrics=METRICS)
        assert result.record.metrics == whole.record.metrics


def test_a_collate_that_gives_lists_or_something_shared_is_taken(whole):
    def listed(samples):
        return list(samples)

    def shared(samples):
        return {**default_collate([{"x": x, "labels": y} for x, y in samples]), "classes": torch.arange(4)}

    stacked = evaluate(
        MODEL,
        DataLoader(Pairs(), collate_fn=listed),
        split=lambda batch: (torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch])),
        metrics=METRICS,
    )
    assert stacked.record.metrics == whole.record.metrics
    split = {"split": lambda batch: (batch["x"], batch["labels"])}
    assert evaluate(MODEL, DataLoader(Pairs(), collate_fn=shared), metrics=METRICS, **split).record.metrics == (
        whole.record.metrics
    )


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: DataLoader(Pairs(), shuffle=True), "at random"),
        (lambda: DataLoader(Pairs(), sampler=torch.utils.data.SubsetRandomSampler(range(10))), "at random"),
        (lambda: DataLoader(Pairs(), sampler=torch.utils.data.WeightedRandomSampler([1.0] * 9, 9)), "at random"),
        (lambda: DataLoader(Pairs(), sampler=torch.utils.data.DistributedSampler(Pairs(), 2, 0)), "DistributedSampler"),
        (lambda: DataLoader(Pairs(), sampler=[*range(301), 5]), "repeats 1 of 301"),
        (lambda: DataLoader(Pairs(), sampler=range(300)), "leaves 1 of 301"),
        (lambda: DataLoader(Pairs(), batch_sampler=[[0, 1], [1, 2]]), "repeats 1 of 301"),
        (lambda: DataLoader(Pairs(), batch_sampler=BatchSampler(range(7), 2, drop_last=True)), "leaves 294 of 301"),
    ],
)
def test_samplers_that_draw_repeat_or_drop_are_refused_with_the_fix(loader, words):
    with pytest.raises(TaskError, match=words) as caught:
        evaluate(MODEL, loader())
    assert "exact=False" in str(caught.value)


def test_a_sampler_that_only_orders_and_drop_last_are_said(whole):
    loader = DataLoader(Pairs(), sampler=list(reversed(range(301))), batch_size=8)
    result = evaluate(MODEL, loader, metrics=METRICS, slices="class")
    same(result, whole)
    assert any("order" in note for note in result.record.notes)
    dropping = DataLoader(Pairs(), batch_sampler=BatchSampler(SequentialSampler(Pairs()), 8, drop_last=True))
    assert evaluate(MODEL, dropping).record.samples == 301
    dropping = evaluate(MODEL, DataLoader(TensorDataset(INPUTS, LABELS), batch_size=8, drop_last=True))
    assert dropping.record.samples == 301
    assert any("drop_last" in note for note in dropping.record.notes)


def test_a_part_of_the_data_and_ready_batches(whole):
    part = evaluate(MODEL, DataLoader(Subset(Pairs(), range(100, 200)), batch_size=8))
    assert np.array_equal(part.samples.prediction, whole.samples.prediction[100:200])
    ready = [(INPUTS[start : start + 37], LABELS[start : start + 37]) for start in range(0, 301, 37)]
    result = evaluate(MODEL, DataLoader(ready, batch_size=None), metrics=METRICS, slices="class", limit=math.inf)
    same(result, whole)


@pytest.mark.parametrize("limit", [1, 100, 301, 999])
def test_a_limit_takes_the_first_samples(whole, limit):
    result = evaluate(MODEL, Pairs(), limit=limit, metrics=METRICS)
    assert result.record.samples == min(limit, 301)
    for name, rows in result.samples.rows.items():
        assert rows.tobytes() == whole.samples.rows[name][:limit].tobytes()


class Endless(IterableDataset):
    def __iter__(self):
        place = 0
        while True:
            yield INPUTS[place % 301], int(LABELS[place % 301])
            place += 1


def test_an_endless_stream_needs_a_limit():
    with pytest.raises(UsageError, match="stream without length") as caught:
        evaluate(MODEL, Endless())
    assert "limit=" in caught.value.fix
    assert evaluate(MODEL, Endless(), limit=500).record.samples == 500
    assert evaluate(MODEL, DataLoader(Endless(), batch_size=8), limit=77).record.samples == 77


@pytest.mark.parametrize("data", [Endless(), DataLoader(Endless(), batch_size=8)])
def test_an_endless_stream_needs_a_limit_as_it_comes_too(data):
    with pytest.raises(UsageError, match="the Endless is a stream without length"):
        evaluate(MODEL, data, exact=False)
    assert evaluate(MODEL, data, exact=False, limit=70).record.samples == 70
    assert evaluate(MODEL, Stream(Pairs()), exact=False, limit=math.inf).record.samples == 301
    assert evaluate(MODEL, Sized(Pairs()), exact=False).record.samples == 301


def test_a_stream_that_only_raises_is_given_up():
    class Lost(IterableDataset):
        def __iter__(self):
            return self

        def __next__(self):
            raise OSError("connection lost")

    with pytest.raises(TaskError, match=r"the Lost raised 10,000 times running .*: OSError: connection lost"):
        evaluate(MODEL, Lost(), limit=math.inf, on_bad_sample="skip")


def test_a_stream_that_ends_is_read_to_its_end(whole):
    same(evaluate(MODEL, Stream(Pairs()), limit=math.inf, metrics=METRICS, slices="class"), whole)


@pytest.mark.parametrize(
    "data", [(INPUTS[:0], LABELS[:0]), Pairs([]), DataLoader(Pairs([])), TensorDataset(INPUTS[:0])]
)
def test_an_empty_set_is_said(data):
    with pytest.raises(TaskError, match="empty"):
        evaluate(MODEL, data)
    with pytest.raises(TaskError, match="no samples"):
        evaluate(MODEL, Stream(Pairs([])), limit=9)


class Torn(Pairs):
    def __init__(self, bad=(7, 130)):
        super().__init__()
        self.bad = bad

    def __getitem__(self, place):
        if place in self.bad:
            raise OSError(f"truncated file {place}")
        return super().__getitem__(place)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named_or_left_out(whole, workers):
    with pytest.raises(BatchError, match=r"sample 7: it cannot be read: OSError: truncated file 7") as caught:
        evaluate(MODEL, Torn(), workers=workers)
    assert "skip" in caught.value.fix
    result = evaluate(MODEL, Torn(), workers=workers, on_bad_sample="skip", metrics=METRICS)
    assert (result.record.samples, result.record.skipped) == (299, 2)
    assert [(bad.id, "truncated" in bad.reason) for bad in result.record.bad] == [("7", True), ("130", True)]
    kept = np.delete(np.arange(301), [7, 130])
    assert np.array_equal(result.samples.ids, kept)
    for name, rows in result.samples.rows.items():
        assert rows.tobytes() == whole.samples.rows[name][kept].tobytes()


@pytest.mark.parametrize("skip", ["error", "skip"])
def test_as_it_comes_the_batch_that_cannot_be_read_is_named(skip):
    with pytest.raises(BatchError, match=r"batch 16 of the data \(from 0\) cannot be read: OSError") as caught:
        evaluate(MODEL, DataLoader(Torn(bad=[130]), batch_size=8), exact=False, on_bad_sample=skip)
    assert "on_bad_sample='skip'" in caught.value.fix
    assert isinstance(caught.value.__cause__, OSError)


def test_a_sample_whose_outputs_are_nan_is_named_or_left_out(whole):
    inputs = INPUTS.clone()
    inputs[200] = math.nan
    with pytest.raises(NonFiniteOutputError, match=r"sample 200: the model's outputs are NaN or Inf"):
        evaluate(MODEL, (inputs, LABELS))
    result = evaluate(MODEL, (inputs, LABELS), on_bad_sample="skip", metrics=METRICS, ids=[f"s{i}" for i in range(301)])
    assert [bad.id for bad in result.record.bad] == ["s200"]
    assert result.samples.ids[200] == "s201"
    for name, rows in result.samples.rows.items():
        assert rows.tobytes() == np.delete(whole.samples.rows[name], 200).tobytes()


def test_a_shape_that_does_not_fit_is_named_or_left_out():
    samples = [(torch.ones(12) * place, place % 4) for place in range(30)]
    samples[11] = (torch.ones(13), 1)
    with pytest.raises(ModelRunError, match=r"sample 11: Sequential failed"):
        evaluate(MODEL, samples)
    result = evaluate(MODEL, samples, on_bad_sample="skip")
    assert [bad.id for bad in result.record.bad] == ["11"]
    fast = evalmode.optimize(network(), INPUTS[:4], backends=["eager"], budget_s=2)
    with pytest.raises(BatchError, match=r"sample 11: .*13"):
        evaluate(fast, samples)
    assert evaluate(fast, samples, on_bad_sample="skip").record.skipped == 1


def test_a_metric_that_fails_names_itself_and_the_sample():
    def picky(outputs, target):
        if bool((target == -1).any()):
            raise KeyError("no such class")
        return outputs[:, 0]

    labels = LABELS.clone()
    labels[42] = -1
    with pytest.raises(TaskError, match="sample 42: the metric 'picky' failed: KeyError"):
        evaluate(MODEL, (INPUTS, labels), metrics=picky)
    result = evaluate(MODEL, (INPUTS, labels), metrics=picky, on_bad_sample="skip")
    assert [bad.id for bad in result.record.bad] == ["42"]
    with pytest.raises(TaskError, match="the metric 'broken' failed: ZeroDivisionError"):
        evaluate(MODEL, (INPUTS, LABELS), metrics={"broken": lambda outputs, target: 1 / 0}, on_bad_sample="skip")


def test_a_class_that_does_not_exist_names_the_sample():
    labels = LABELS.clone()
    labels[100] = 17
    with pytest.raises(BatchError, match=r"sample 100: .*class index is 17"):
        evaluate(MODEL, (INPUTS, labels))


class Hungry(nn.Module):
    """Runs out of memory above a number of samples, at once or after some calls."""

    def __init__(self, most, after=0, rounds=False, error=None):
        super().__init__()
        self.most, self.left, self.rounds = most, after, rounds
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def forward(self, inputs):
        self.left -= 1
        if self.left < 0 and len(inputs) > self.most:
            raise self.error
        return inputs[:, :4] + (1e-3 * len(inputs) if self.rounds else 0.0)


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        ),
    ],
)
def test_out_of_memory_starts_again_at_a_smaller_shape(error):
    result = evaluate(Hungry(20, error=error), (INPUTS, LABELS), metrics=METRICS)
    assert result.record.execution_sizes == (16,)
    assert any("out of memory" in note for note in result.record.notes)
    reference = evaluate(Hungry(999), (INPUTS, LABELS), metrics=METRICS)
    assert result.record.metrics == reference.record.metrics


@pytest.mark.parametrize("rows", [64, 301])
def test_memory_for_one_sample_is_enough_and_what_could_not_be_tried_is_said(rows):
    record = evaluate(Hungry(1), (INPUTS[:rows], LABELS[:rows]), metrics=METRICS).record
    assert record.execution_sizes == (1,)
    note = next(note for note in record.notes if "out of memory" in note)
    assert "could not be tried" in note
    with pytest.raises(ModelRunError, match=r"out of memory at sample 0, even with one sample at a time") as caught:
        evaluate(Hungry(0), (INPUTS[:rows], LABELS[:rows]), metrics=METRICS)
    assert "exact=False" not in str(caught.value)


def test_out_of_memory_later_goes_on_only_at_the_same_bits():
    data = (INPUTS.repeat(8, 1), LABELS.repeat(8))
    result = evaluate(Hungry(64, after=4), data, metrics=METRICS)
    assert result.record.metrics == evaluate(Hungry(9999), data, metrics=METRICS).record.metrics
    for after, sample in ((3, 0), (4, 1024)):  # where samples are tried beside others, and in the second group
        with pytest.raises(
            ModelRunError, match=rf"of memory at sample {sample}, and no smaller execution gives the same"
        ):
            evaluate(Hungry(64, after=after, rounds=True), data)


@pytest.mark.parametrize(
    "turn",
    [
        lambda array: array.astype(array.dtype.newbyteorder()),
        np.asfortranarray,
        lambda array: array[::-1].copy()[::-1],
        lambda array: np.repeat(array, 2, 0)[::2],
    ],
    ids=["other byte order", "columns", "backwards", "every second"],
)
def test_arrays_in_any_order_of_bytes_and_rows_give_the_same_bits(whole, turn):
    turned = evaluate(MODEL, (turn(INPUTS.numpy()), turn(LABELS.numpy())), metrics=METRICS)
    assert bits(turned) == bits(whole)


@pytest.mark.parametrize("how", ["negative strides", "other byte order", "sparse"])
def test_samples_that_cannot_be_put_into_a_batch_are_named(how):
    class Odd(Pairs):
        def __getitem__(self, index):
            inputs, target = super().__getitem__(index)
            array = inputs.numpy()
            odd = {
                "negative strides": array[::-1],
                "other byte order": array.astype(">f4"),
                "sparse": inputs.to_sparse(),
            }
            return odd[how], target

    with pytest.raises(BatchError, match="sample 0: it cannot be put into a batch"):
        evaluate(MODEL, Odd())


def test_a_sparse_array_of_samples_is_refused_with_the_fix():
    with pytest.raises(TaskError, match=r"sparse_coo, which is not dense(.|\n)*to_dense"):
        evaluate(MODEL, (INPUTS.to_sparse(), LABELS))


NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
)


def hungry_plan(monkeypatch, most, error, sizes=(2, 4, 8), after=0, **options):
    """A predictor whose executions of more than `most` samples run out of memory, after so many that did not."""
    torch.manual_seed(0)
    fast = predictor(sizes, model=Net(), **options)
    for executor in fast.executors:
        if executor.configuration.batch > most:
            executor.runs.clear()

            def run(chunks, executor=executor):
                if len(executor.runs) >= after:
                    raise error
                return type(executor).run(executor, chunks)

            monkeypatch.setattr(executor, "run", run)
    return fast


ROWS = (INPUTS[:, :6], LABELS.clamp(max=2))
OF_LOGITS = {"log loss": "log loss", "squashed": lambda outputs, target: squashed(outputs["logits"], target)}


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("after", [0, 9])
@pytest.mark.parametrize(("most", "handed"), [(4, [8, 4]), (2, [8, 4, 2])])
def test_a_plan_that_runs_out_of_memory_gives_the_same_bits_at_a_smaller_shape(monkeypatch, error, after, most, handed):
    whole = evaluate(hungry_plan(monkeypatch, 8, error), ROWS, metrics=OF_LOGITS)
    fast = hungry_plan(monkeypatch, most, error, after=after)
    short = evaluate(fast, ROWS, metrics=OF_LOGITS)
    assert bits(short) == bits(whole)
    assert short.record.metrics == whole.record.metrics
    assert short.record.exact
    told = [note for note in short.record.notes if "out of memory" in note]
    assert told == [f"out of memory: {size} samples at a time were handed to the plan" for size in handed]


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("stable", [True, False])
def test_a_plan_without_a_smaller_shape_of_its_class_stops_clearly(monkeypatch, error, stable):
    fast = hungry_plan(monkeypatch, 1 if stable else 2, error, stable=stable)
    with pytest.raises(ModelRunError, match="out of memory at sample 0, and no smaller execution") as caught:
        evaluate(fast, ROWS)
    assert caught.value.__cause__ is error


def test_ids_columns_and_slices_come_from_the_data():
    rows = [
        {
            "x": INPUTS[place],
            "labels": int(LABELS[place]),
            "name": f"n{place:03}",
            "site": "ab"[place % 2],
            "age": place,
        }
        for place in range(301)
    ]

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x)

    result = evaluate(
        Named(),
        rows,
        ids="name",
        groups="site",
        slices=["site", ("age", 3), {"old": lambda columns: columns["age"] > 250}],
        metrics=["accuracy"],
    )
    assert result.samples.ids[:2].tolist() == ["n000", "n001"]
    by = {}
    for part in result.record.slices:
        by.setdefault(part.by, []).append(part.samples)
    assert sorted(by["site"]) == [150, 151]
    assert sum(by["age"]) == 301
    assert by["old"] == [50]
    assert "cluster" in result["accuracy"].method


def test_slices_are_worst_first_tested_and_adjusted():
    labels = LABELS.clone()
    site = np.where(np.arange(301) % 3 == 0, "hard", "easy")
    with torch.no_grad():
        answers = network().eval()(INPUTS).argmax(1)
    labels[:] = answers
    labels[torch.from_numpy(site == "hard")] = (answers[torch.from_numpy(site == "hard")] + 1) % 4
    result = evaluate(network(), (INPUTS, labels), slices={"site": site, "rare": np.arange(301) < 5})
    first = result.record.slices[0]
    assert (first.by, first.name, first.metrics[0].value) == ("site", "hard", 0.0)
    assert first.p_value < 1e-20
    small = next(part for part in result.record.slices if part.by == "rare" and part.name == "True")
    assert small.p_value is None
    assert "fewer than 20" in small.note
    assert result.record.slices[-1] == small


def test_metrics_of_torchmetrics_are_updated_in_sample_order():
    own = torchmetrics.classification.MulticlassAUROC(num_classes=4)
    own.update(torch.eye(4), torch.arange(4))
    kept = own.state_dict()
    first = evaluate(MODEL, (INPUTS, LABELS), metrics={"auroc": own, "accuracy": "accuracy"})
    assert own.update_count == 1
    assert own.state_dict() == kept
    with torch.no_grad():
        expected = torchmetrics.functional.classification.multiclass_auroc(network().eval()(INPUTS), LABELS, 4)
    assert first["auroc"].value == pytest.approx(float(expected), abs=1e-6)
    assert first["auroc"].low is None
    assert "torchmetrics" in first["auroc"].method
    for size in (1, 33):
        again = evaluate(MODEL, Pairs(), metrics={"auroc": own, "accuracy": "accuracy"}, batch_size=size)
        assert again.record.metrics == first.record.metrics
    many = evaluate(
        MODEL,
        (INPUTS, LABELS),
        metrics=torchmetrics.MetricCollection([torchmetrics.classification.MulticlassF1Score(4, average=None)]),
    )
    assert len(many.record.metrics) == 4


def test_progress_tells_rate_time_left_and_the_figure_so_far():
    seen = []
    result = evaluate(MODEL, (INPUTS, LABELS), progress=seen.append)
    last = seen[-1]
    assert (last.done, last.total, last.metric) == (301, 301, "accuracy")
    assert last.value == pytest.approx(result["accuracy"].value)
    assert last.low < last.value < last.high
    assert "samples/s" in str(last)


def test_the_result_is_shown_and_written(tmp_path, whole):
    text = str(whole)
    assert "Test set, 301 samples" in text
    assert "Slices by accuracy, worst first" in text
    assert max(map(len, text.splitlines())) <= 80
    assert b'"accuracy"' in whole.save(tmp_path / "result.json").read_bytes()
    with pytest.raises(KeyError, match="log loss"):
        whole["no such"]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"confidence": 95}, UsageError),
        ({"batch_size": 0}, UsageError),
        ({"workers": -1}, UsageError),
        ({"limit": 0}, UsageError),
        ({"on_bad_sample": "ignore"}, UsageError),
        ({"slices": 3}, UsageError),
        ({"slices": "colour"}, TaskError),
        ({"ids": "name"}, TaskError),
        ({"ids": [1, 2]}, UsageError),
        ({"journal": 3}, UsageError),
        ({"keep_predictions": 3}, UsageError),
        ({"progress": "x"}, UsageError),
        ({"groups": np.array(["a", 1] * 150 + [None], object)}, UsageError),
        ({"ids": [1] * 301}, UsageError),
        ({"device": "cuda:99"}, UsageError),
    ],
)
def test_options_that_are_wrong_say_so(options, kind):
    with pytest.raises(kind) as caught:
        evaluate(MODEL, (INPUTS, LABELS), **options)
    assert isinstance(caught.value, EvalmodeError)


@pytest.mark.parametrize("model", [network, nn.Linear, None, "model.evalmode"])
def test_what_is_no_model_says_so(model):
    with pytest.raises(NotAModuleError):
        evaluate(model, (INPUTS, LABELS))


@pytest.mark.parametrize("data", [None, 3, "nowhere.parquet", (INPUTS, LABELS[:9]), iter([1]), object()])
def test_what_is_no_data_says_so(data):
    with pytest.raises(UsageError):
        evaluate(MODEL, data)


def test_a_task_brings_its_parts(whole):
    task = evalmode.Task(
        model=network, test_data=(INPUTS, LABELS), metrics=["accuracy"], loss=F.cross_entropy, name="t"
    )
    result = evaluate(task, None)
    assert [metric.name for metric in result.record.metrics] == ["accuracy", "loss"]
    assert result.subject == "t"
    assert result["accuracy"] == whole["accuracy"]
    assert result["loss"].value == pytest.approx(whole["log loss"].value, rel=1e-5)


def test_dense_outputs_are_segmentation_or_tokens():
    masks = torch.randint(0, 3, (20, 6, 6), generator=torch.Generator().manual_seed(0))
    images = torch.randn(20, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    result = evaluate(nn.Identity(), (images, masks))
    assert [metric.name for metric in result.record.metrics] == ["mean IoU", "Dice"]
    answers = images.argmax(1)
    shares = [((answers == c) & (masks == c)).sum() / ((answers == c) | (masks == c)).sum() for c in range(3)]
    assert result["mean IoU"].value == pytest.approx(float(sum(shares) / 3))
    tokens = evaluate(nn.Identity(), (torch.randn(9, 5, 7), torch.randint(0, 7, (9, 5))))
    assert [metric.name for metric in tokens.record.metrics] == ["token accuracy", "token loss", "perplexity"]


def test_the_worst_samples_are_drawn_where_they_are_images():
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    result = evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (images, torch.arange(40) % 3))
    losses = result.samples.rows["log loss"]
    assert [sample.id for sample in result.record.worst] == [str(place) for place in np.argsort(-losses)[:16]]
    assert all(sample.image.startswith("iVBORw0K") for sample in result.record.worst)
    assert evaluate(MODEL, (INPUTS, LABELS)).record.worst[0].image == ""


class HuggingFace:
    """What `datasets.Dataset` shows of itself, with plain Python rows until a format is chosen."""

    def __init__(self, columns, kind=None):
        self.columns, self.kind = columns, kind
        self.features = dict.fromkeys(columns)

    @property
    def format(self):
        return {"type": self.kind}

    def with_format(self, kind):
        return HuggingFace(self.columns, kind)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, place):
        row = {name: values[place] for name, values in self.columns.items()}
        return {
            name: torch.tensor(value) if self.kind == "torch" and not isinstance(value, str) else value
            for name, value in row.items()
        }


def test_a_hugging_face_dataset_is_read_as_tensors(whole):
    data = HuggingFace({"features": INPUTS.tolist(), "label": LABELS.tolist(), "name": [f"n{i}" for i in range(301)]})
    result = evaluate(MODEL, data, ids="name", metrics=METRICS)
    assert result.samples.ids[300] == "n300"
    assert result.record.metrics == whole.record.metrics


def test_a_parquet_file_is_read_group_by_group(whole, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"fixed": pa.list_(pa.float32(), 12), "any": pa.list_(pa.float32())}
    for name, kind in kinds.items():
        table = pa.table({"features": pa.array(INPUTS.tolist(), kind), "label": LABELS.tolist()})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=50)
        result = evaluate(MODEL, tmp_path / f"{name}.parquet", metrics=METRICS)
        assert result.record.metrics == whole.record.metrics
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(TaskError, match="no Parquet file"):
        evaluate(MODEL, tmp_path / "torn.parquet")


def written(path, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"x": pa.array(INPUTS.tolist(), pa.list_(pa.float32())), "label": LABELS.tolist(), **columns})
    pq.write_table(table, path, row_group_size=50)
    return path


def test_columns_of_a_parquet_file_that_nobody_reads_stop_nothing(whole, tmp_path):
    path = written(
        tmp_path / "a.parquet",
        note=["a", None, "b"] * 100 + [None],
        when=[dt.datetime(2020, 1, 1)] * 301,
        price=[decimal.Decimal("1.5")] * 301,
        count=[1, None, 2] * 100 + [None],
    )
    options = {"split": lambda batch: (batch["x"], batch["label"]), "metrics": METRICS}
    assert evaluate(MODEL, path, **options).record.metrics == whole.record.metrics
    with pytest.raises(BatchError, match=r"sample 1: .*a value is missing"):
        evaluate(MODEL, path, **options, slices="note")
    with pytest.raises(EvalmodeError):
        evaluate(MODEL, path, **{**options, "split": lambda batch: ({**batch}["x"], batch["label"])})


def test_a_missing_value_that_is_read_leaves_the_other_samples_as_they_are(whole, tmp_path):
    path = written(tmp_path / "a.parquet", y=[None if place in {3, 60} else int(LABELS[place]) for place in range(301)])
    result = evaluate(MODEL, path, split=lambda batch: (batch["x"], batch["y"]), metrics=METRICS, on_bad_sample="skip")
    assert [bad.id for bad in result.record.bad] == ["3", "60"]
    for name, rows in result.samples.rows.items():
        assert rows.tobytes() == np.delete(whole.samples.rows[name], [3, 60]).tobytes()


def test_nested_lists_of_a_parquet_file_keep_their_type(tmp_path):
    import pyarrow as pa

    image = pa.array(INPUTS.reshape(301, 3, 4).tolist(), pa.list_(pa.list_(pa.float32())))
    seen = []

    def split(batch):
        seen.append(batch["image"])
        return batch["image"].flatten(1), batch["label"]

    evaluate(MODEL, written(tmp_path / "a.parquet", image=image), split=split)
    assert (seen[-1].dtype, seen[-1].shape[1:]) == (torch.float32, (3, 4))
    assert torch.equal(seen[-1][:301], INPUTS.reshape(301, 3, 4))


def test_predictions_that_cannot_be_written_are_told_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    ran = []

    def forward(model, inputs):
        ran.append(len(inputs))
        return model(inputs)

    for path in (tmp_path, tmp_path / "file" / "rows.parquet"):
        with pytest.raises(PredictionsError, match="cannot write"):
            evaluate(MODEL, (INPUTS, LABELS), keep_predictions=path, forward=forward)
    assert not ran
    evaluate(MODEL, (INPUTS, LABELS), keep_predictions=tmp_path / "new" / "rows.parquet", forward=forward)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["rows.parquet"]


def test_texts_in_an_array_of_objects_are_groups_and_ids(whole):
    texts = np.array([f"p{place // 2}" for place in range(301)], object)
    ids = np.array([f"s{place}" for place in range(301)], object)
    result = evaluate(MODEL, (INPUTS, LABELS), groups=texts, ids=ids, metrics=METRICS)
    assert result["accuracy"] == evaluate(MODEL, (INPUTS, LABELS), groups=texts.tolist(), metrics=METRICS)["accuracy"]
    assert result.samples.ids.tolist() == ids.tolist()


def test_samples_that_share_an_id_are_said():
    rows = [{"x": INPUTS[place], "label": int(LABELS[place]), "name": f"p{place // 2}"} for place in range(40)]
    options = {"split": lambda batch: (batch["x"], batch["label"]), "ids": "name"}
    assert any("20 samples have the id" in note for note in evaluate(MODEL, rows, **options).record.notes)
    assert not any("have the id" in note for note in evaluate(MODEL, rows[::2], **options).record.notes)


def test_rows_of_a_proportion_are_booleans():
    def right(outputs, target):
        return (outputs.argmax(1) == target).double()

    result = evaluate(MODEL, (INPUTS, LABELS), metrics=["accuracy", Metric("right", right, Aggregate.PROPORTION, True)])
    assert msgspec.structs.replace(result["right"], name="accuracy") == result["accuracy"]
    assert result.samples.rows["right"].dtype == np.bool_
    share = Metric("share", lambda outputs, target: outputs.softmax(1)[:, 0], Aggregate.PROPORTION, True)
    with pytest.raises(TaskError, match="'share' is a proportion") as caught:
        evaluate(MODEL, (INPUTS, LABELS), metrics=[share])
    assert "Aggregate.MEAN" in caught.value.fix
    broken = Metric("broken", lambda outputs, target: right(outputs, target) * torch.nan, Aggregate.PROPORTION, True)
    with pytest.raises(BatchError, match="'broken' is NaN"):
        evaluate(MODEL, (INPUTS, LABELS), metrics=[broken])


def test_ctrl_c_while_intervals_are_made_says_how_to_go_on(monkeypatch, tmp_path):
    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("evalmode.evaluation.work.records_of", stopping)
    with pytest.raises(KeyboardInterrupt, match="stopped after 301 of 301 samples: the same call with journal="):
        evaluate(MODEL, (INPUTS, LABELS), journal=tmp_path / "run.journal")


def test_one_ctrl_c_ends_a_stream_that_blocks():
    released = threading.Event()

    class Blocking(IterableDataset):
        def __iter__(self):
            yield from ((INPUTS[place], int(LABELS[place])) for place in range(300))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            released.wait(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest-xdist ignore it
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped after"):
            evaluate(MODEL, Blocking(), limit=10_000)
        assert time.monotonic() - started < 30
    finally:
        signal.signal(signal.SIGINT, before)
        released.set()


def test_an_interrupted_evaluation_goes_on_from_its_journal(tmp_path):
    class Stopping(Pairs):
        stops = True

        def __getitem__(self, place):
            if place == 2000 and Stopping.stops:
                raise KeyboardInterrupt
            return super().__getitem__(place)

    data = Stopping([*range(301)] * 8)
    options = {"metrics": METRICS, "slices": "class", "journal": tmp_path / "run.journal"}
    with pytest.raises(KeyboardInterrupt, match="stopped after 1,024 of 2,408 samples: the same call with journal="):
        evaluate(MODEL, data, **options)
    Stopping.stops = False
    result = evaluate(MODEL, data, **options)
    same(result, evaluate(MODEL, data, metrics=METRICS, slices="class"))
    again = evaluate(MODEL, data, **options)
    assert again.record == result.record
