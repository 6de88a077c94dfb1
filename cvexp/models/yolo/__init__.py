"""The YOLO family, one version per file.

| version | paper | what is new |
|---|---|---|
| v1 | Redmon et al., CVPR 2016, arXiv 1506.02640 | one network pass: S x S cells, B boxes each, classes given an object |
"""
