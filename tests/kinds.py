"""Which model YAML is of which kind: a model says so itself by the task that it overrides."""

from __future__ import annotations

from cvexp.config import conf_dir


def models_of(kind: str) -> list[str]:
    """Names of ``conf/model/*.yaml`` whose task is ``kind`` (``detection`` where a model says nothing)."""
    return sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml") if _kind(path.stem) == kind)


def _kind(name: str) -> str:
    import yaml

    defaults = yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8")).get("defaults", [])
    kind = "detection"
    for entry in defaults:
        if isinstance(entry, str) and entry != "_self_":
            kind = _kind(entry)  # a model that begins with another one
        elif isinstance(entry, dict):
            kind = entry.get("override /task@_global_.task", kind)
    return kind
