"""Proposals: boxes in which there may be an object of whatever class, made before a network sees the image.

``data.proposals`` names one of them, or is a node with ``_target_`` for another that fulfils `Proposer`.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from cvexp.data.proposals.proposer import Proposer, Unlearnt, fingerprint, tidy
from cvexp.data.proposals.store import ProposalStore
from cvexp.types import UserError

__all__ = ["METHODS", "ProposalStore", "Proposer", "Unlearnt", "fingerprint", "make_proposer", "tidy"]

METHODS = {
    "selective_search": "SelectiveSearch",
    "edge_boxes": "EdgeBoxes",
    "segments": "Segments",
    "sliding_window": "SlidingWindow",
    "constant": "Constant",
}
"""Name in ``data.proposals``, also of the file, and the class."""


def make_proposer(choice: str | Proposer) -> Proposer:
    """The proposer of a name with the settings of its paper, or the one that is given.

    Raises:
        UserError: there is none of that name, it is no proposer, or it needs a package that is missing.
    """
    if not isinstance(choice, str):
        if isinstance(choice, Proposer):
            return choice
        raise UserError(
            f"data.proposals={choice!r} is no Proposer. Fix: one of {', '.join(METHODS)}, or a class with its methods"
        )
    if choice not in METHODS:
        near = get_close_matches(choice, METHODS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"data.proposals={choice}: no such proposals{hint} Fix: one of {', '.join(METHODS)}")
    made: Proposer = getattr(import_module(f"cvexp.data.proposals.{choice}"), METHODS[choice])()
    return made
