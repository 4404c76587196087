"""The first check in a process does not load torch's compiler, which takes seconds."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import torch
from torch import nn
import evalmode

model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1)).eval()
assert evalmode.check(model, torch.randn(6, 4)).ok
model[1].track_running_stats = False
model[1].running_mean = model[1].running_var = None
assert not evalmode.check(model, torch.randn(6, 4)).ok
print({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules))
"""


def test_a_check_loads_no_compiler():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
