"""A task: a model together with its data and what its answers are worth, from a Python file, a module, or in Python."""

from evalmode.task.definition import Task
from evalmode.task.importing import install_finder
from evalmode.task.reference import load_task, nearest

__all__ = ["Task", "load_task", "nearest"]

install_finder()  # so that a process which unpickles a class of a task file finds that file again
