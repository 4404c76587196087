"""How the contents of an artifact look in a terminal. Takes plain data, and knows no torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from evalmode.certificate import Certificate, Environment
from evalmode.terminal.layout import entry, look, plural, render

__all__ = ["artifact_text"]


def artifact_text(
    rows: Sequence[tuple[str, str]],
    environment: Environment,
    certificate: Certificate | None,
    *,
    width: int | None = None,
    color: bool | None = None,
) -> str:
    """Labels and texts, one below the other, then where the artifact was made and what its certificate says.

    Example:
        >>> made = Environment(
        ...     evalmode="0.1.0",
        ...     python="3.11.7",
        ...     torch="2.13.0",
        ...     device="cpu",
        ...     processor="EPYC",
        ...     cores=2,
        ...     threads=2,
        ...     platform="Linux",
        ... )
        >>> print(artifact_text([("plan", "openvino fp32")], made, None, width=60, color=False))
        plan         openvino fp32
        made on      EPYC, 2 cores, cpu; torch 2.13.0, evalmode 0.1.0
        certificate  none
    """
    shape = look(width=width, color=color)
    cores = plural(environment.cores, "core", "cores")
    made = (
        f"{environment.processor}, {cores}, {environment.device}; torch {environment.torch}, "
        f"evalmode {environment.evalmode}"
    )
    told = [*rows, ("made on", made), ("certificate", _summary(certificate))]
    lines: list[Text] = []
    for label, text in told:
        lines += entry(Text(label, style="dim"), 13, text, shape)
    return render(lines, shape)


def _summary(certificate: Certificate | None) -> str:
    if certificate is None:
        return "none"
    counts = certificate.counts()
    clauses = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{certificate.subject}, {certificate.created}: {clauses or 'no clause tested'}"
