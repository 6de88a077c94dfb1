"""Checkpoints are written whole or not at all.

Lightning writes through fsspec, whose transaction lies in the system's temporary folder: moved from another file system, a full
disk or a kill leaves half a file under the good name.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from cvexp.types import UserError


class AtomicIO(TorchCheckpointIO):
    """Writes beside the old file, forces it to the disk and renames it; the old file stands until then."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See above; other addresses than files (``s3://``) are left to Lightning.

        Raises:
            UserError: the file cannot be written; what was there before is intact.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            raise UserError(_not_written(path, error)) from error
        finally:
            with suppress(OSError):
                part.unlink()
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Forces a renaming to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _not_written(path: Path, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    before = "the checkpoint before it is intact" if path.exists() else "there is none before it"
    return (
        f"{path}: cannot be written ({reason[:160]}); {before}. Fix: make room on the disk (or the right to write there),"
        f" then go on with resume={path.parent.parent}"
    )
