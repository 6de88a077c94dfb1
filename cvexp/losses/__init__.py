"""One formula per file. A loss takes what is matched already and answers one number per prior.

A box loss says in ``space`` what it compares: ``deltas`` (offsets from priors, `cvexp.ops.coding`) or ``boxes`` (xyxy).
"""
