"""The whole way in one call: check, find a plan, evaluate, and one certificate of all of it."""

from evalmode.certification.optimized import optimize_loaded
from evalmode.certification.preparation import model_device, module_of, probe_inputs, usable_device
from evalmode.certification.whole_way import Progress, certified, certify, check_task

__all__ = [
    "Progress",
    "certified",
    "certify",
    "check_task",
    "model_device",
    "module_of",
    "optimize_loaded",
    "probe_inputs",
    "usable_device",
]
