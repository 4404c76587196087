"""Still evaluation: random operators give their typical value instead of a draw.

What depends on the batch in a model that also draws can then be told from the drawing: with the draws stilled, any
position and any batch size may be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from evalmode.mode.dispatch_mode import DispatchMode
from evalmode.observe.higher_order import run_inside

__all__ = ["can_still", "steady", "still"]

Stilled = Callable[..., Any]


def can_still(operator: str) -> bool:
    """Whether a random operator has a typical value: those of other libraries than torch have none.

    Example:
        >>> can_still("aten.bernoulli_.float"), can_still("aten._scaled_dot_product_flash_attention.default")
        (True, True)
        >>> can_still("evalmode.convolution.default")
        False
    """
    library, name, overload = operator.split(".")
    if library != "aten":
        return False
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema  # noqa: SLF001 - the documented schema
    return _plain_name(name) in _TYPICAL or any(a.name == "dropout_p" for a in schema.arguments)


class still(DispatchMode):  # noqa: N801 - a context manager, named for what the block is
    """Inside this context a dropout keeps everything, noise is its mean, and a sample is the likeliest choice.

    Example:
        >>> with still():
        ...     torch.rand(2), torch.nn.functional.dropout(torch.ones(2), 0.25)
        (tensor([0.5000, 0.5000]), tensor([1.3333, 1.3333]))
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):  # noqa: SLF001 - cond, while_loop, flex_attention
            return run_inside(self, func, args, kwargs or {})
        named = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **named)
        schema = func._schema  # noqa: SLF001 - the documented schema of an OpOverload
        values = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        values |= dict(zip((a.name for a in schema.arguments), args, strict=False)) | named
        base = schema.name.removeprefix("aten::")
        if "dropout_p" in values and base not in _TYPICAL:
            position = next(i for i, a in enumerate(schema.arguments) if a.name == "dropout_p")
            if position < len(args):
                args = (*args[:position], 0.0, *args[position + 1 :])
            else:
                named["dropout_p"] = 0.0
            return func(*args, **named)
        outputs = func(*args, **named)
        typical = _TYPICAL.get(_plain_name(base))
        return outputs if typical is None else typical(outputs, values)


class steady(DispatchMode):  # noqa: N801 - as above
    """Inside this context a batch norm over several samples uses fixed statistics, never those of the batch.

    Example:
        >>> with torch.no_grad(), steady():
        ...     torch.nn.functional.batch_norm(torch.full((2, 1), 3.0), None, None, training=True).round()
        tensor([[3.],
                [3.]])
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):  # noqa: SLF001 - cond, while_loop, flex_attention
            return run_inside(self, func, args, kwargs or {})
        named = dict(kwargs or {})
        schema = func._schema  # noqa: SLF001 - the documented schema of an OpOverload
        if schema.name not in ("aten::native_batch_norm", "aten::_native_batch_norm_legit"):
            return func(*args, **named)
        values = dict(zip((a.name for a in schema.arguments), args, strict=False)) | named
        source: torch.Tensor = values["input"]
        if not values["training"] or len(source) == 1:
            return func(*args, **named)
        mean, variance = values.get("running_mean"), values.get("running_var")
        mean = source.new_zeros(source.shape[1]) if mean is None else mean
        variance = source.new_ones(source.shape[1]) if variance is None else variance
        affine = values.get("weight"), values.get("bias")
        return torch.native_batch_norm(source, *affine, mean, variance, False, 0.0, values["eps"])


def _plain_name(base: str) -> str:
    return base.removesuffix("_").removesuffix("_like")


def _filled(value: Callable[[dict[str, Any]], Any]) -> Stilled:
    def fill(outputs: torch.Tensor, values: dict[str, Any]) -> torch.Tensor:
        chosen = value(values)
        filled: torch.Tensor = outputs.copy_(chosen) if isinstance(chosen, torch.Tensor) else outputs.fill_(chosen)
        return filled

    return fill


def _bernoulli(values: dict[str, Any]) -> Any:
    p = values.get("p")
    if p is None:
        p = values["self"]
    return (p >= 0.5).to(torch.float32) if isinstance(p, torch.Tensor) else float(p >= 0.5)


def _native_dropout(outputs: Any, values: dict[str, Any]) -> Any:
    if not values.get("train"):
        return outputs
    return values["input"] / (1 - values["p"]), torch.ones_like(outputs[1])


def _rrelu(outputs: torch.Tensor, values: dict[str, Any]) -> torch.Tensor:
    if not values.get("training"):
        return outputs
    slope = (float(values["lower"]) + float(values["upper"])) / 2
    source: torch.Tensor = values["self"]
    if outputs is source:  # in place: what was negative before has been scaled by a slope between the two
        return outputs
    typical: torch.Tensor = torch.nn.functional.leaky_relu(source, slope)
    return typical


def _permutation(outputs: torch.Tensor, values: dict[str, Any]) -> torch.Tensor:
    return outputs.copy_(torch.arange(len(outputs), device=outputs.device))


def _likeliest(outputs: torch.Tensor, values: dict[str, Any]) -> torch.Tensor:
    """The most probable categories in order, again from the first where more are asked for than there are."""
    weights: torch.Tensor = values["self"]
    ordered = weights.argsort(-1, descending=True)
    turns = -(-outputs.shape[-1] // ordered.shape[-1])
    return outputs.copy_(torch.cat([ordered] * turns, -1)[..., : outputs.shape[-1]])


_TYPICAL: dict[str, Stilled] = {
    "_sample_dirichlet": _filled(lambda values: values["self"] / values["self"].sum(-1, keepdim=True)),
    "_standard_gamma": _filled(lambda values: values["self"]),
    "bernoulli": _filled(_bernoulli),
    "binomial": _filled(lambda values: (values["count"] * values["prob"]).round()),
    "cauchy": _filled(lambda values: float(values.get("median", 0.0))),
    "exponential": _filled(lambda values: 1.0 / float(values.get("lambd", 1.0))),
    "geometric": _filled(lambda values: 1.0),
    "log_normal": _filled(lambda values: 1.0),
    "multinomial": _likeliest,
    "native_dropout": _native_dropout,
    "normal": _filled(lambda values: values.get("mean", 0.0)),
    "normal_functional": _filled(lambda values: values.get("mean", 0.0)),
    "poisson": _filled(lambda values: values["self"].round()),
    "rand": _filled(lambda values: 0.5),
    "randint": _filled(lambda values: values.get("low", 0)),
    "randn": _filled(lambda values: 0.0),
    "random": _filled(lambda values: values.get("from", 0) or 0),
    "randperm": _permutation,
    "rrelu_with_noise": _rrelu,
    "uniform": _filled(lambda values: (float(values.get("from", 0.0)) + float(values.get("to", 1.0))) / 2),
}
