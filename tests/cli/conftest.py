import sys
import textwrap
from pathlib import Path

import pytest

TASK = """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, inputs):
            return F.dropout(self.head(inputs), 0.5)

    def broken():
        torch.manual_seed(0)
        return Broken()

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    def test_data():
        generator = torch.Generator().manual_seed(0)
        return torch.randn(40, 4, generator=generator), torch.arange(40) % 3
"""


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    """A current folder with `task.py`, and `broken.py` whose model draws in evaluation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("NO_COLOR", "FORCE_COLOR", "LC_ALL", "EVALMODE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    text = textwrap.dedent(TASK)
    Path("task.py").write_text(text, encoding="utf-8")
    Path("broken.py").write_text(
        text.replace("def model", "def kept").replace("def broken", "def model"), encoding="utf-8"
    )
    return tmp_path
