"""One formula per file. A loss takes what is matched already and answers one number per prior.

It says in ``space`` what it compares, and a model refuses one that does not suit its slot: ``deltas`` (offsets from priors,
`cvexp.ops.coding`), ``boxes`` (xyxy), ``logit`` (log odds with a goal in 0..1) or ``classes`` (K logits with a label).
"""
