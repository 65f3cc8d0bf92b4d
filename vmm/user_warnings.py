"""Warnings that point at the user's line that led to them."""

import sys
import warnings
from types import FrameType

# Packages whose lines are not the user's: our own, and those that call us for the user.
_BETWEEN = {"vmm", "torch", "transformers", "accelerate"}


def warn_user(text: str) -> None:
    """Gives a RuntimeWarning at the innermost line that is the user's, or at ours where there is none."""
    level = 2
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level if frame is not None else 2)
