"""`evalmode`: find the command, run it, and turn what it raises into a message and an exit status."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import evalmode
from evalmode.cli.printing import UnwrittenError, writing
from evalmode.errors import EvalmodeError

__all__ = ["main"]

EPILOG = (
    "Exit status: 0 every clause is kept, 1 something is broken, 2 the command or the task is wrong. "
    "Results go to standard output, progress and errors to standard error."
)
COMMANDS = (
    "card",
    "certify",
    "check",
    "compare",
    "evaluate",
    "explain",
    "init",
    "inspect",
    "optimize",
    "predict",
    "report",
    "verify",
)
_HELP = {"-h", "--help"}
_INTERRUPTED, _BROKEN_PIPE = 130, 141  # 128 + the signal's number, as shells count
_UNWRITTEN = 2  # as where a file cannot be written
_OUT_OF_REACH = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}
_LONGEST_PATH = 200
_DEFECT = 70  # EX_SOFTWARE of sysexits.h: no verdict on the model


def main(argv: list[str] | None = None) -> int:
    """Run the command line (that of the process by default) and return its exit status.

    Example:
        >>> main(["--version"])
        evalmode ...
        0
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if "--debug" in arguments:  # wherever it stands
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    try:
        typer.main.get_command(app).main(args=arguments, prog_name="evalmode", obj=arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        return _flushed(status)
    except OSError as error:  # no command has run: of a help page, or the version
        return _unwritten(error)
    except Exception:  # noqa: BLE001 - a defect of evalmode
        return _defect()
    return 0


class _Commands(TyperGroup):
    """Commands that are imported when they are named."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"evalmode.cli.{cmd_name}")
        return typer.main.get_command(module.app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names: Any = dict.fromkeys(COMMANDS)
        self.commands = names  # what a misspelt name is held against
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help opens with what evalmode is for, not with its usage."""
        for paragraph in (self.help or "").split("\n\n"):
            formatter.write_text(" ".join(paragraph.split()))
            formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            with writing():
                sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except EvalmodeError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand)
            params = [] if command is None else command.params
            raise typer.Exit(_explain(error, params, debug=ctx.params.get("debug", False))) from error
        except KeyboardInterrupt as error:
            print(f"evalmode: {error}" if str(error) else "evalmode: stopped", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from error
        except SystemExit as end:  # none of our commands ends so: it is the model's code, or its data's
            _explain_exit(end)
            raise typer.Exit(2) from end
        except (UnwrittenError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _OUT_OF_REACH and isinstance(error.filename, str):
                _explain_path(error)
                raise typer.Exit(2) from error
            help_page = not _HELP.isdisjoint(ctx.obj or ())  # printed by click, and no code of the user's has run
            cause = error if help_page else error.__cause__ if isinstance(error, UnwrittenError) else None
            raise typer.Exit(_unwritten(cause) if isinstance(cause, OSError) else _defect()) from error
        return result


def _explain(error: EvalmodeError, params: Iterable[Any], *, debug: bool) -> int:
    """Print a user's mistake as its message alone; with its traceback when asked."""
    from evalmode.cli.option_names import as_options, options_of
    from evalmode.terminal import displayable, look

    sys.stdout.flush()
    if debug:
        traceback.print_exception(error)
    else:
        told = f"{type(error).__name__}: {as_options(error, options_of(params))}"
        print(displayable(told, unicode=look(sys.stderr).unicode), file=sys.stderr)
    return 2


def _explain_exit(end: SystemExit) -> None:
    from evalmode.task.definition import line_of

    sys.stdout.flush()
    print(f"TaskError: code of the task called sys.exit({end.code!r})\n  at {line_of(end)}", file=sys.stderr)


def _explain_path(error: OSError) -> None:
    """A path that may not be looked at, or is none."""
    from evalmode.terminal import displayable, look

    shown = os.fsencode(error.filename).decode(errors="replace")
    shown = shown if len(shown) <= _LONGEST_PATH else f"{shown[:_LONGEST_PATH]}..."
    told = f"UsageError: cannot use {shown!r}: {error.strerror}"
    print(displayable(told, unicode=look(sys.stderr).unicode), file=sys.stderr)


def _defect() -> int:
    """Show a defect of evalmode whole; its status must not say "broken"."""
    traceback.print_exc()
    print("evalmode itself failed: please report this with the lines above", file=sys.stderr)
    return _DEFECT


def _flushed(status: int) -> int:
    """`status`, unless what was printed cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritten(error)
    return status


def _unwritten(error: OSError) -> int:
    _let_go_of_stdout()
    if isinstance(error, BrokenPipeError):  # whoever read has gone, which is no error
        return _BROKEN_PIPE
    print(f"evalmode: cannot write the result: {error.strerror}", file=sys.stderr)
    return _UNWRITTEN


def _let_go_of_stdout() -> None:
    """Nobody reads any more: what is still buffered must not raise again when the interpreter ends."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file: nothing is flushed at the end
        return
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"evalmode {evalmode.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=EPILOG,
    context_settings={"help_option_names": sorted(_HELP), "max_content_width": 80},
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="EVALMODE_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Same sample, same answer: alone, in any batch, under any load; or the line that breaks it.

    evalmode tests what model.eval() promises on your own PyTorch model.
    """
