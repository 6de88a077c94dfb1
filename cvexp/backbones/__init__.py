"""Feature extractors: a list of maps out, with ``out_channels`` and ``strides``."""
