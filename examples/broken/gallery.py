"""Check each broken model beside this file and show what was found: `make gallery`.

Each file has `model()`, `fixed()`, `batch()`, the clause and the code that are expected, and a comment `# breaks` on the
line to be found, if a line is to blame.
"""

import importlib.util
import os
import sys
import textwrap
from pathlib import Path

import torch

import evalmode

FOLDER = Path(__file__).resolve().parent
WIDTH = 80


def load(path):
    """The module of one example file."""
    spec = importlib.util.spec_from_file_location(f"evalmode_gallery_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def examples():
    """Every example by name."""
    return {path.stem: load(path) for path in sorted(FOLDER.glob("*.py")) if path.name != Path(__file__).name}


def expected_line(example):
    """The number of the line marked `# breaks`; 0 if none is."""
    lines = Path(example.__file__).read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines, 1) if line.endswith("# breaks")), 0)


def seeded(build):
    """What `build()` gives with the same random numbers every time, the process's own left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def is_expected(example, finding):
    """Whether the finding has the clause, the code and the line that the example is there to show."""
    here = finding.place.line if finding.place.file == example.__file__ else 0
    return (finding.clause, finding.code, here) == (example.CLAUSE, example.CODE, expected_line(example))


def shown(label, text):
    """One labelled entry, wrapped to the width."""
    head = f"    {label:<6} "
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=True)


def page(name, example, report):
    """The lines that show one example."""
    finding = next((found for found in report.findings if is_expected(example, found)), None)
    mark = "✓" if (sys.stdout.encoding or "").lower().startswith("utf") else "ok"
    if finding is None:
        codes = ", ".join(found.code for found in report.findings) or "nothing"
        return [f"NOT FOUND  {name}", *shown("wanted", f"{example.CODE} at line {expected_line(example)}, got {codes}")]
    place = finding.place
    where = place.module or "(the model itself)"
    if place.file:
        where += f"  {Path(place.file).name}:{place.line}  {place.source.removesuffix('# breaks').strip()}"
    title = f"{mark} {name.replace('_', ' ')}"
    tag = f"{finding.clause} {finding.code}"
    lines = [title + " " * max(1, WIDTH - len(title) - len(tag)) + tag]
    return [*lines, *shown("where", where), *shown("seen", finding.seen), *shown("fix", finding.fix)]


def main():
    """Show every example; 0 if each was found where it should be."""
    missed = 0
    every = examples()
    print(f"{len(every)} typical mistakes in models that run without error; evalmode.check:\n")
    for name, example in every.items():
        report = evalmode.check(seeded(example.model), seeded(example.batch))
        print("\n".join(page(name, example, report)) + "\n")
        missed += not any(is_expected(example, finding) for finding in report.findings)
    print(f"{len(every) - missed} of {len(every)} found, with the line and the fix")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `make gallery | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
