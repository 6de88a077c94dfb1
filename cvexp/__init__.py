"""cvexp: train, measure and compare the architectures of a computer-vision lecture by one command.

Nothing heavy is imported here, so that ``python -m cvexp.train --help`` answers at once.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load"]

if TYPE_CHECKING:
    from cvexp.inference import load


def __getattr__(name: str) -> Any:
    if name == "load":
        from cvexp.inference import load

        return load
    raise AttributeError(f"module 'cvexp' has no attribute {name!r}")
