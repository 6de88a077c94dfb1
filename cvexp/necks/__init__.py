"""Pyramids: list in, list out, with ``out_channels`` and ``strides``."""
