"""Placeholder until the methods are there."""

from cvexp.data.proposals.proposer import Proposer


def make_proposer(choice):
    """By name."""
    from cvexp.data.proposals.segments import Segments

    return Segments() if isinstance(choice, str) else choice


__all__ = ["Proposer", "make_proposer"]
