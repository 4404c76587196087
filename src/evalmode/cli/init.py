"""`evalmode init [PATH]`: write a task file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("init")
def init_task(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The file to write, or a folder for it.")] = Path(
        "task.py"
    ),
) -> None:
    """Write a commented task file that runs as it is."""
    from importlib.resources import files

    from evalmode.cli.printing import print_text
    from evalmode.errors import UsageError

    target = path / "task.py" if path.is_dir() else path
    if target.suffix != ".py":
        raise UsageError(f"{target} does not end in .py", expected="a Python file, or a folder that exists")
    text = files("evalmode.cli").joinpath("starter_task.py").read_text(encoding="utf-8")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(
            f"{target} exists already, and is left as it is", fix="give another path: evalmode init PATH"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    print_text(f"wrote {target}: put your model and your data in, then\n  evalmode certify {target}")
