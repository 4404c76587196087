"""Import a Python file as a module of its own: no file is taken for another of the same name.

A task file is registered as `evalmode.task.file_<path in hexadecimal>`, so that two files called `task.py` stay apart,
and so that a fresh process (a DataLoader worker) that unpickles one of its classes finds the file by that name.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

__all__ = ["import_file", "importing_for", "importing_from", "install_finder", "module_name"]

_PREFIX = "evalmode.task.file_"
_folders: set[str] = set()  # those of the task files that were loaded


def module_name(path: Path) -> str:
    """The name under which a task file is registered in `sys.modules`."""
    return _PREFIX + os.fsencode(path).hex()


def import_file(path: Path) -> ModuleType:
    """The file, executed afresh. Its folder stands first on `sys.path` while it runs and last afterwards.

    Raises:
        Whatever reading, compiling or executing the file raises.
    """
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path, loader=_FreshLoader(name, str(path)))
    if spec is None or spec.loader is None:  # pragma: no cover - only without a loader, and one is given
        raise ImportError(f"no loader for {path}", path=str(path))
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


@contextlib.contextmanager
def importing_from(folder: str) -> Iterator[None]:
    """`folder` stands first on `sys.path` inside, and last afterwards, for imports in functions that run later.

    What was imported from another task's folder is forgotten where this one has modules of the same names.
    """
    _forget_other_neighbours(folder)
    _folders.add(folder)
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def importing_for(function: object) -> contextlib.AbstractContextManager[None]:
    """The same for a function of a task file, which may import its neighbours only once it is called."""
    home = getattr(sys.modules.get(getattr(function, "__module__", None) or ""), "__file__", None)
    folder = str(Path(home).parent) if isinstance(home, str) else ""
    return importing_from(folder) if folder in _folders else contextlib.nullcontext()


def install_finder() -> None:
    """Let `import evalmode.task.file_<...>` find its file. Done once, when this room is loaded."""
    if not any(isinstance(finder, _TaskFileFinder) for finder in sys.meta_path):
        sys.meta_path.append(_TaskFileFinder())


def _forget_other_neighbours(folder: str) -> None:
    """Forget modules that an earlier task imported from its own folder and that this folder has its own file for."""
    others = tuple(f"{other}{os.sep}" for other in _folders - {folder})
    if not others:
        return
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith(_PREFIX) or not isinstance(file, str) or not file.startswith(others):
            continue
        top = name.partition(".")[0]
        here = Path(folder, top)
        ours = file.startswith((f"{here}.py", f"{here}{os.sep}"))
        if not ours and (here.with_suffix(".py").is_file() or here.is_dir()):
            del sys.modules[name]


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles what the file says now: a cached byte code may be one edit behind within the clock's tick."""

    def get_code(self, fullname: str) -> CodeType:
        source = importlib.util.decode_source(self.get_data(self.path))
        return compile(source, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        with importing_from(str(Path(self.path).parent)):
            super().exec_module(module)


class _TaskFileFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        try:
            file = os.fsdecode(bytes.fromhex(fullname.removeprefix(_PREFIX)))
        except ValueError:
            return None
        if not Path(file).is_file():
            return None
        return importlib.util.spec_from_file_location(fullname, file, loader=_FreshLoader(fullname, file))
