"""ONNX files of networks, compared with PyTorch before they count.

A detector is a network and, around it, Python: images of many sizes, decoding, NMS. What goes into the file is a network or a
part of one, as a module of tensors only. Needs the extra ``export``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvexp.types import UserError

TOLERANCE = 1e-4
"""Largest difference of any number, over the largest number of its output."""


def export_onnx(module: nn.Module, inputs: Sequence[Tensor], path: Path, tolerance: float = TOLERANCE) -> float:
    """Writes a module as an ONNX file, weights inside, and runs it once against PyTorch.

    Args:
        module: tensors to a tensor, or to several; in evaluation mode.
        inputs: one example of each input; the file takes these shapes.
        path: an old file there is only replaced by one that computes the same as the module.
        tolerance: see `TOLERANCE`.

    Returns:
        The largest difference, over the largest number of its output.

    Raises:
        UserError: the extra is missing, the module is in training mode, or ONNX Runtime computes something else.
    """
    if module.training:
        raise UserError("A network is exported in evaluation mode. Fix: module.eval()")
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}. Fix: pip install 'cvexp[export]'") from error
    with torch.no_grad():
        found = module(*inputs)
    wanted = [found] if isinstance(found, Tensor) else list(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        torch.onnx.export(
            module, tuple(inputs), str(written), dynamo=True, external_data=False, verbose=False,
            custom_translation_table=_translations(),
        )  # fmt: skip
        difference = max(_difference(*pair) for pair in zip(_run(written, inputs), wanted, strict=True))
        if not difference <= tolerance:
            raise UserError(
                f"{path}: ONNX Runtime differs from PyTorch by {difference:.1e} of the largest number, more than"
                f" {tolerance:.0e}; the file was not kept. Fix: report the model and the versions of torch and onnxruntime"
            )
        written.replace(path)
    return difference


def _run(path: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of ONNX Runtime on the processor."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(each) for each in session.run(None, given)]


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or not bool(found.isfinite().all() and wanted.isfinite().all()):
        return float("inf")
    if not wanted.numel():
        return 0.0
    return float((found - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-12)


def _translations() -> dict[Any, Callable]:
    """ONNX operators for torchvision's that the exporter does not know."""
    from onnxscript import opset18 as op

    def roi_pool(maps: Any, boxes: Any, scale: float, height: int, width: int) -> Any:
        pooled = op.MaxRoiPool(maps, boxes, pooled_shape=(height, width), spatial_scale=scale)
        return pooled, op.Identity(boxes)  # where the maxima were: nobody asks in a file for inference

    import torchvision.ops  # noqa: F401  registers the operator

    return {torch.ops.torchvision.roi_pool.default: roi_pool}
