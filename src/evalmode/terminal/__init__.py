"""How results look in a terminal: one layout for every command and for `print(report)`.

Nothing is wider than the terminal and nothing is cut: what does not fit is wrapped. Colour follows NO_COLOR,
FORCE_COLOR and whether a terminal listens; where ✓ cannot be shown, "ok" stands for it. Knows no torch.
"""

from evalmode.terminal.layout import Look, displayable, duration, entry, look, render
from evalmode.terminal.pages import page_text, topics_text
from evalmode.terminal.results import certificate_text, check_text

__all__ = [
    "Look",
    "certificate_text",
    "check_text",
    "displayable",
    "duration",
    "entry",
    "look",
    "page_text",
    "render",
    "topics_text",
]
