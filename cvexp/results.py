"""What a run leaves behind and what it tells its user: configuration, result table, where to look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import nn

from cvexp.data.records import Problem
from cvexp.resume import first_process


@rank_zero_only
def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; with several processes only the first writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_config(cfg: DictConfig) -> None:
    """``config.yaml``: the whole configuration, every interpolation resolved."""
    write_text(Path(cfg.paths.output) / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))


@rank_zero_only
def write_problems(problems: dict[str, list[Problem]], folder: str) -> None:
    """``data_problems.txt`` and one line on the screen, when ``data.on_bad=skip`` left something out."""
    lines = [f"{split}: {problem}" for split, found in problems.items() for problem in found]
    if lines:
        path = Path(folder) / "data_problems.txt"
        write_text(path, "\n".join(lines) + "\n")
        Console(stderr=True).print(
            f"{len(lines)} problem(s) in the data (what was unusable is left out), listed in {path}", soft_wrap=True
        )


def write_results(
    results: dict[str, float], model: nn.Module, data: Any, cfg: DictConfig, metric: Any = None
) -> dict[str, Any]:
    """``result.json``: one flat dictionary, also returned; with the metric's settings where it has any.

    Beside it ``evidence.npz``, what the figures rest on, where the metric has it.
    """
    flat: dict[str, Any] = {
        **results,
        "model/parameters": sum(p.numel() for p in model.parameters()),
        "model/trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data/classes": len(data.class_names),
        "data/skipped": sum(not problem.kept for found in data.problems.values() for problem in found),
        "seed": cfg.seed,
    }
    flops = flops_of_one_image(model, data)
    if flops is not None:
        flat["model/flops"] = flops
    if hasattr(metric, "settings"):
        flat["metric/settings"] = metric.settings
    if "train/seconds" in results:
        steps = results["train/steps"] * cfg.data.batch_size * cfg.trainer.accumulate_grad_batches
        images = results.get("train/images", steps)
        flat |= {"train/images": images, "train/images_per_second": images / max(results["train/seconds"], 1e-9)}
    known = {name: value for name, value in flat.items() if value == value}  # JSON has no NaN: a class without objects
    _write_evidence(Path(cfg.paths.output), metric, known, step=bool(cfg.trainer.fast_dev_run))
    write_text(Path(cfg.paths.output) / "result.json", json.dumps(known, indent=2, sort_keys=True) + "\n")
    return flat


@rank_zero_only
def _write_evidence(folder: Path, metric: Any, results: dict[str, Any], step: bool) -> None:
    """``evidence.npz`` of these results, but not of ``debug=step``'s; one of former results goes."""
    from cvexp.metrics.evidence import NAME, belongs_to, write_evidence

    evidence = getattr(metric, "evidence", None)
    if evidence is not None and not step and belongs_to(evidence, results):
        write_evidence(folder / NAME, evidence)
    else:
        (folder / NAME).unlink(missing_ok=True)


def flops_of_one_image(model: nn.Module, data: Any) -> int | None:
    """2 x MAC of one pass over the first test image, as the network sees it; None where that cannot be had.

    Counted where the model is, in eval mode, by the first process alone. Only what `cvexp.benchmark.flops` knows is counted.
    """
    from cvexp.benchmark.flops import count_flops

    modes = [(module, module.training) for module in model.modules()]
    try:
        loader = data.test_dataloader()
        batch = loader.collate_fn([loader.dataset[(0, 0)]])
        device = next(parameter.device for parameter in model.parameters())
        extras = {name: [each.to(device) for each in every] for name, every in getattr(batch, "extras", {}).items()}
        found = count_flops(model.eval(), batch.images.to(device), **extras) if first_process() else None
        return (found.total or None) if found is not None else None
    except Exception:  # another kind of data or model, or too little memory: the results are there without it
        return None
    finally:
        for module, training in modes:
            module.training = training


TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
SHOWN_PREFIXES = (
    "AP50/",
    "accuracy",
    "best_accuracy",
    "AUC",
    "EER",
    "threshold",
    "TAR@",
    "rank1",
    "CMC@",
    "all_pairs/",
)
PLACES = {
    "results": "result.json",
    "what they rest on": "evidence.npz",
    "curves over time": "metrics.csv",
    "configuration": "config.yaml",
    "what it was made of": "manifest.json",
    "report": "report.html",
    "precision-recall": "figures/pr_curves.png",
    "pictures": "predictions.png",
    "ROC": "roc.png",
    "embeddings": "embedding_map.png",
    "worst pairs": "pairs.png",
    "alarms": "alarms.txt",
    "best checkpoint": "checkpoints/best.ckpt",
    "profile": "fit-profile.txt",
}


@rank_zero_only
def show(results: dict[str, Any], folder: Path) -> None:
    """Prints the table of results and where to look."""
    table = Table(title="results")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for split in ("train/", "val/", "test/", ""):  # the last: detections of another tool, which belong to no split
        shown = SHOWN if split else TWELVE
        for name in (f"{split}{mask}{short}" for mask in ("", "mask/") for short in shown):
            if results.get(name, float("nan")) == results.get(name):
                table.add_row(name, _number(results[name]))
        wanted = tuple(f"{split}{prefix}" for prefix in SHOWN_PREFIXES)
        names = [n for n in sorted(results) if n.startswith(wanted) and not n.endswith(("_low", "_high", "_se"))]
        for name in _few(names):
            if "@" not in name or results[name] == results[name]:  # a rate that cannot be had is told by a note
                table.add_row(name, _number(results[name]) + _spread(name, results))
    for name, form in (
        ("val/best", ".4f"),
        ("test/cnn_passes_per_image", ",.0f"),
        ("test/windows_per_image", ",.0f"),
        ("test/possible_boxes", ",.0f"),
        ("test/seconds_per_image", ".4f"),
        ("test/proposals_seconds_per_image", ".4f"),
        ("train/seconds", ".1f"),
        ("train/images_per_second", ".1f"),
        ("model/parameters", ","),
    ):
        if name in results:
            table.add_row(name, format(results[name], form))
    console = Console()
    console.print(table)
    if "metric/settings" in results:
        console.print(f"measured by: {results['metric/settings']}", soft_wrap=True, highlight=False)
    _where(console, results, folder)


def _few(names: list[str], most: int = 25) -> list[str]:
    """Without the classes where there are too many for a screen: result.json and the report have them."""
    return names if len(names) <= most else [name for name in names if "AP50/" not in name]


def _where(console: Console, results: dict[str, Any], folder: Path) -> None:
    """Where to look, and what to do next."""
    for label, name in PLACES.items():
        if (folder / name).exists():
            console.print(f"{label:>19}: {folder / name}", soft_wrap=True, highlight=False)
    best = folder / PLACES["best checkpoint"]
    if best.exists():
        faces = any(name.endswith("/AUC") for name in results)
        source = "<face> against=<another face>" if faces else "<image, folder, video or camera>"
        console.print(f"\nNext: python -m cvexp.predict ckpt={best} source={source}", soft_wrap=True, highlight=False)


def _spread(name: str, results: dict[str, Any]) -> str:
    """`` (0.84 to 0.88)`` or `` +- 0.005``, where there is such a thing."""
    if f"{name}_se" in results:
        return f" +- {results[f'{name}_se']:.4f}"
    low, high = results.get(f"{name}_low"), results.get(f"{name}_high")
    return "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"


def _number(value: float) -> str:
    return "none" if value != value else f"{value:.4f}"
