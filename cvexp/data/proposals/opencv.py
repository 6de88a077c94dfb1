"""OpenCV's contributed modules, which selective search and edge boxes need: an extra of cvexp."""

from __future__ import annotations

from functools import cache
from typing import Any

from cvexp.types import UserError


@cache
def ximgproc(name: str) -> tuple[Any, Any]:
    """``cv2`` with one thread (images are spread over processes instead) and ``cv2.ximgproc``.

    Args:
        name: of the proposals that need it.

    Raises:
        UserError: OpenCV is missing, or lacks the contributed modules.
    """
    try:
        import cv2
    except ImportError:
        raise UserError(
            f"data.proposals={name} needs OpenCV. Fix: pip install 'cvexp[proposals]', or data.proposals=segments, which"
            " does without"
        ) from None
    if not hasattr(cv2, "ximgproc"):
        raise UserError(
            f"data.proposals={name}: this OpenCV {cv2.__version__} lacks ximgproc. Fix: pip uninstall opencv-python"
            " opencv-python-headless, then pip install 'cvexp[proposals]'"
        )
    cv2.setNumThreads(1)
    return cv2, cv2.ximgproc
