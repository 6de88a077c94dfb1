"""Verification: the same figures from any number of batches and processes, and errors that say what to do."""

from __future__ import annotations

import copy
import datetime
import math
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from cvexp.comparators.chi_square import WeightedChiSquare
from cvexp.comparators.cosine import Cosine
from cvexp.comparators.siamese import Siamese
from cvexp.comparators.squared_l2 import SquaredL2
from cvexp.metrics.face_protocol import COLLAPSED
from cvexp.metrics.identification import cmc, identify
from cvexp.metrics.verification import accuracy, best_threshold, roc, tar_interval, view2
from cvexp.metrics.verification_metric import Verification
from cvexp.types import FaceTruth, Pairs, UserError

CONF = Path(__file__).resolve().parents[2] / "conf" / "metric"


def faces(folds: int = 1, people: int = 14, strangers: int = 30, pairs: int = 60) -> tuple[FaceTruth, Tensor]:
    """People with three images each and strangers with one, in a mixed order, and an embedding of each image ``[I, 8]``."""
    g = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(people).repeat(3), people + torch.arange(strangers)])
    labels = labels[torch.randperm(len(labels), generator=g)]
    ids = 100 + 7 * torch.randperm(len(labels), generator=g)
    embeddings = torch.randn(people + strangers, 8, generator=g)[labels] + 0.9 * torch.randn(
        len(labels), 8, generator=g
    )
    distractor = labels >= people
    known = (~distractor).nonzero().flatten()
    same_of = [[i for i in known.tolist() if labels[i] == p] for p in range(people)]
    first, second = [], []
    for n in range(pairs):
        own = same_of[n % people]
        i, j = torch.randperm(3, generator=g)[:2].tolist()
        first.append(own[i])
        second.append(own[j] if n % 2 == 0 else same_of[(n + 1 + n // people) % people][j])
    same = torch.arange(pairs) % 2 == 0
    fold = torch.arange(pairs) * folds // pairs
    names = [f"person {p}" for p in range(people + strangers)]
    return FaceTruth(
        ids, labels, names, distractor, Pairs(ids[first], ids[second], same, fold, "pairs.txt")
    ), embeddings


def filled(truth: FaceTruth, embeddings: Tensor, batch: int = 7, **settings) -> Verification:
    metric = Verification(**settings)
    metric.set_ground_truth(truth)
    metric.comparator = SquaredL2(8)
    for ids, rows in zip(truth.image_ids.split(batch), embeddings.split(batch), strict=True):
        metric.update(ids, rows)
    return metric


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """To the last bit, NaN equal to NaN."""
    return list(a) == list(b) and all(torch.equal(a[k].nan_to_num(-1), b[k].nan_to_num(-1)) for k in a)


def scores_of(truth: FaceTruth, embeddings: Tensor) -> np.ndarray:
    row = {int(i): n for n, i in enumerate(truth.image_ids)}
    first, second = ([row[int(i)] for i in side] for side in (truth.pairs.first, truth.pairs.second))
    return -(embeddings[first] - embeddings[second]).square().sum(dim=1).double().numpy()


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_given_threshold() -> None:
    truth, embeddings = faces()
    metric = filled(truth, embeddings, fars=[0.1, 0.01])
    metric.threshold = -13.0
    numbers = metric.compute()
    scores, same = scores_of(truth, embeddings), truth.pairs.same.numpy()
    curve = roc(scores, same)
    assert numbers["accuracy"] == pytest.approx(np.mean((scores > -13) == same))
    assert 0.6 < numbers["accuracy_low"] < numbers["accuracy"] < numbers["accuracy_high"] < 1
    assert numbers["threshold"] == 13, "as a squared distance"
    assert "best_accuracy" not in numbers
    assert numbers["AUC"] == pytest.approx(curve.auc())
    assert numbers["EER"] == pytest.approx(curve.eer())
    assert numbers["TAR@1e-1"] == curve.tar_at_far(0.1)
    assert [numbers["TAR@1e-1_low"], numbers["TAR@1e-1_high"]] == list(tar_interval(scores, same, 0.1))
    assert numbers["TAR@1e-2"].isnan(), "30 different pairs"
    assert (numbers["pairs"], numbers["pairs_left_out"], numbers["images"]) == (60, 0, 72)
    assert all(value.dtype == torch.float64 and value.shape == () for value in numbers.values())
    result = metric.result
    assert result.name == "pairs.txt"
    assert result.scores == pytest.approx(scores)
    assert result.same.tolist() == same.tolist()
    assert result.index.tolist() == list(range(60))
    assert result.shown == pytest.approx(-scores)
    assert (result.threshold, result.chosen, result.measure, result.falling) == (-13, "given", "squared distance", True)
    assert result.tars[0.1] == (numbers["TAR@1e-1"], numbers["TAR@1e-1_low"], numbers["TAR@1e-1_high"])


def test_without_a_threshold_the_accuracy_is_called_best() -> None:
    truth, embeddings = faces()
    metric = filled(truth, embeddings)
    numbers = metric.compute()
    scores, same = scores_of(truth, embeddings), truth.pairs.same.numpy()
    assert "accuracy" not in numbers
    assert numbers["best_accuracy"] == accuracy(scores, same, best_threshold(scores, same))
    assert numbers["threshold"] == pytest.approx(-best_threshold(scores, same))
    assert any("optimistic" in note for note in metric.result.notes)


def test_several_folds_take_their_thresholds_from_each_other() -> None:
    truth, embeddings = faces(folds=5)
    metric = filled(truth, embeddings)
    metric.threshold = -1e9  # of no use here: it would be wrong for half of the pairs
    numbers = metric.compute()
    found = view2(scores_of(truth, embeddings), truth.pairs.same.numpy(), truth.pairs.fold.numpy())
    assert numbers["accuracy"] == pytest.approx(found.accuracy)
    assert numbers["accuracy_se"] == pytest.approx(found.standard_error)
    assert numbers["threshold"] == pytest.approx(-found.thresholds.mean())
    assert numbers["accuracy_low"] < numbers["accuracy"] < numbers["accuracy_high"]
    assert "5 folds" in metric.result.chosen


def test_all_pairs_and_identification() -> None:
    truth, embeddings = faces()
    numbers = filled(truth, embeddings, fars=[0.1]).compute()
    known = ~truth.distractor
    a, labels = embeddings[known], truth.labels[known]
    i, j = np.triu_indices(len(a), 1)
    curve = roc(SquaredL2(8).matrix(a, a).numpy()[i, j], (labels[i] == labels[j]).numpy())
    assert numbers["all_pairs/AUC"] == pytest.approx(curve.auc())
    assert numbers["all_pairs/TAR@1e-1"] == pytest.approx(curve.tar_at_far(0.1))
    assert numbers["all_pairs/TAR@1e-2"] == pytest.approx(curve.tar_at_far(0.01)), "one power of ten further"
    found = identify(SquaredL2(8).matrix, a, labels, embeddings[truth.distractor])
    assert (numbers["rank1"], numbers["rank1_distractors"]) == (found.rank1, found.rank1_distractors)
    assert numbers["rank1_distractors"] < numbers["rank1"] < 1
    assert [numbers["CMC@1"], numbers["CMC@10"]] == cmc(found.ranks, 10)[[0, 9]].tolist()


def test_without_distractors_there_is_no_figure_with_them() -> None:
    truth, embeddings = faces(strangers=0)
    assert "rank1_distractors" not in filled(truth, embeddings).compute()


def test_parts_can_be_left_out() -> None:
    truth, embeddings = faces()
    numbers = filled(truth, embeddings, fars=[], all_pairs=False, identification=False).compute()
    assert set(numbers) == {"best_accuracy", "threshold", "AUC", "EER", "pairs", "pairs_left_out", "images"}
    assert "all_pairs/AUC" in filled(truth, embeddings, fars=[]).compute()


def test_notes_say_what_is_too_little() -> None:
    truth, embeddings = faces()
    metric = filled(truth, embeddings, fars=[0.1, 0.01])
    metric.compute()
    notes = "\n".join(metric.result.notes)
    assert "TAR at FAR 0.1 rests on 3 of 30 different pairs, its 95 % interval is" in notes
    assert "TAR at FAR 0.01 cannot be told from 30 different pairs" in notes
    assert "over all pairs of images, TAR at FAR 0.001 cannot be told" in notes


def test_collapsed_embeddings() -> None:
    truth, embeddings = faces()
    metric = filled(truth, torch.ones_like(embeddings))
    metric.threshold = -0.5
    numbers = metric.compute()
    assert (numbers["accuracy"], numbers["AUC"], numbers["EER"], numbers["rank1"], numbers["CMC@10"]) == (
        0.5,
        0.5,
        0.5,
        0,
        0,
    )
    assert COLLAPSED in metric.result.notes


@pytest.mark.parametrize("kind", [SquaredL2, Cosine, WeightedChiSquare, Siamese])
def test_every_comparator_is_fitted_on_the_pairs_and_judges(kind) -> None:
    truth, embeddings = faces()
    metric = filled(truth, embeddings.clamp(min=0))
    metric.comparator = kind(8)
    a, b, same = metric.pair_embeddings()
    assert a.shape == b.shape == (60, 8)
    assert same.sum() == 30
    metric.comparator.fit(a, b, same)
    numbers = metric.compute()
    assert numbers["best_accuracy"] > 0.7
    assert metric.result.measure == kind.measure


def test_a_comparator_that_refuses() -> None:
    truth, embeddings = faces()
    metric = filled(truth, embeddings)
    metric.comparator = WeightedChiSquare(8)
    with pytest.raises(UserError, match=r"chi-square is a distance of features that are not negative"):
        metric.compute()


# --- collecting ------------------------------------------------------------------------------------------------------


def test_any_batch_size_order_and_repetition_gives_the_same() -> None:
    truth, embeddings = faces()
    expected = filled(truth, embeddings).compute()
    assert equal(filled(truth, embeddings, batch=1).compute(), expected)
    assert equal(filled(truth, embeddings, batch=100).compute(), expected)
    metric = filled(truth, embeddings)
    for n in (5, 3, 5):  # padding: the same images again
        metric.update(truth.image_ids[n : n + 2].tolist(), embeddings[n : n + 2])
    assert equal(metric.compute(), expected)
    metric.update([int(truth.image_ids[0])], embeddings[:1] + 9)  # the latest stands
    assert not equal(metric.compute(), expected)


def test_gathered_is_in_the_order_of_the_truth() -> None:
    truth, embeddings = faces()
    metric = Verification()
    metric.set_ground_truth(truth)
    for n in reversed(range(10)):
        metric.update(truth.image_ids[n : n + 1], embeddings[n : n + 1].double())
    found = metric.gathered()
    assert torch.equal(found[:10], embeddings[:10])
    assert found[10:].isnan().all()
    assert found.dtype == torch.float32


def test_half_precision_embeddings() -> None:
    truth, embeddings = faces()
    half = filled(truth, embeddings.bfloat16().requires_grad_())
    assert torch.equal(half.gathered(), embeddings.bfloat16().float())


def test_pairs_without_their_images_are_left_out_and_counted() -> None:
    truth, embeddings = faces()
    metric = Verification(fars=[0.1])
    metric.set_ground_truth(truth)
    metric.comparator, metric.threshold = SquaredL2(8), -13.0
    metric.update(truth.image_ids[:50], embeddings[:50])
    numbers = metric.compute()
    seen = set(truth.image_ids[:50].tolist())
    kept = [n for n, (i, j) in enumerate(zip(truth.pairs.first.tolist(), truth.pairs.second.tolist(), strict=True))
            if {i, j} <= seen]  # fmt: skip
    assert 5 < len(kept) < 50
    assert metric.result.index.tolist() == kept
    assert (numbers["pairs"], numbers["pairs_left_out"], numbers["images"]) == (len(kept), 60 - len(kept), 50)
    scores = scores_of(truth, embeddings)[kept]
    assert numbers["accuracy"] == np.mean((scores > -13) == truth.pairs.same.numpy()[kept])
    assert metric.result.notes[0].startswith(f"{60 - len(kept)} of 60 pairs are left out")
    assert len(metric.pair_embeddings()[2]) == len(kept)


@pytest.mark.parametrize("kind", [SquaredL2, Cosine, Siamese, WeightedChiSquare])
def test_nothing_was_seen_whatever_compares(kind) -> None:
    metric = Verification()
    metric.set_ground_truth(faces()[0])
    metric.comparator = kind(8)
    numbers = metric.compute()
    assert (numbers["images"], numbers["pairs"]) == (0, 0)
    assert numbers["AUC"].isnan()


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("threshold", [None, -13.0])
def test_too_little_was_seen(folds: int, threshold: float | None) -> None:
    """No image, one image, pairs of one kind: NaN, the same names, no warning."""
    truth, embeddings = faces(folds)
    pairs = truth.pairs
    whole = filled(truth, embeddings)
    whole.threshold = threshold
    names = list(whole.compute())
    row = {int(i): n for n, i in enumerate(truth.image_ids)}
    for rows in ([], [0], [row[int(pairs.first[0])], row[int(pairs.second[0])]]):
        metric = Verification()
        metric.set_ground_truth(truth)
        metric.comparator, metric.threshold = SquaredL2(8), threshold
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metric.update(truth.image_ids[rows], embeddings[rows])
            numbers = metric.compute()
        assert {name for name in names if not name.startswith("rank1_")} <= set(numbers) <= set(names)
        assert numbers["images"] == len(rows)
        wrong = [
            k for k in numbers if not numbers[k].isnan() and k not in ("pairs", "pairs_left_out", "images", "threshold")
        ]
        assert [k for k in wrong if not k.startswith(("rank1", "CMC"))] == []
        assert metric.result.roc is None
        assert metric.result.notes


def test_reset_forgets_the_embeddings_alone() -> None:
    truth, embeddings = faces()
    metric = filled(truth, embeddings)
    metric.threshold = -13.0
    expected = metric.compute()
    metric.reset()
    assert metric.result is not None, "a callback may draw after the epoch's reset"
    assert metric.compute()["images"] == 0
    metric.update(truth.image_ids, embeddings)
    assert equal(metric.compute(), expected)
    metric.set_ground_truth(truth)
    assert metric.result is None
    assert metric.compute()["images"] == 0


def test_the_comparator_is_no_part_of_the_metric() -> None:
    truth, embeddings = faces()
    metric = filled(truth, embeddings)
    metric.comparator = Siamese(8)
    assert not metric.state_dict(), "a checkpoint would hold it twice"
    assert not list(metric.children())
    before = copy.deepcopy(metric.comparator.state_dict())
    expected = metric.compute()
    for clone in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.half().to("cpu")):
        assert equal(clone.compute(), expected)
    assert all(torch.equal(value, before[name]) for name, value in metric.comparator.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_another_device() -> None:
    truth, embeddings = faces()
    metric = filled(truth, embeddings).to("cuda")
    metric.comparator = Siamese(8).cuda()
    metric.update(truth.image_ids.cuda(), embeddings.cuda())
    metric.comparator.fit(*metric.pair_embeddings())
    assert metric.compute()["images"] == 72
    assert metric.comparator.weight.is_cuda


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        ([100], torch.full((1, 8), torch.nan), r"image 100: its embedding is not finite. Fix: "),
        ([107, 100], torch.tensor([[0.0] * 8, [torch.inf] * 8]), r"image 100: its embedding is not finite"),
        ([5], torch.zeros(1, 8), r"image id 5 is not in the ground truth of 72 images. Fix: "),  # another split's
        ([100, 107], torch.zeros(1, 8), r"2 image ids for embeddings of shape \(1, 8\). Fix: "),
        ([100], torch.zeros(8), r"Fix: one row per image"),
    ],
)
def test_bad_batches(ids: list[int], rows: Tensor, message: str) -> None:
    metric = Verification()
    metric.set_ground_truth(faces()[0])
    with pytest.raises(UserError, match=message):
        metric.update(ids, rows)
    assert metric.gathered().shape == (72, 0), "nothing of the bad batch is kept"


def test_embeddings_of_two_lengths() -> None:
    truth, embeddings = faces()
    metric = filled(truth, embeddings)
    with pytest.raises(UserError, match=r"embeddings of 5 numbers after some of 8. Fix: "):
        metric.update(truth.image_ids[:2], torch.zeros(2, 5))


def test_used_in_the_wrong_order() -> None:
    truth, embeddings = faces()
    with pytest.raises(UserError, match=r"no ground truth. Fix: "):
        Verification().update([100], embeddings[:1])
    metric = filled(truth, embeddings)
    with pytest.raises(NotImplementedError, match=r"metric.update"):
        metric(truth.image_ids, embeddings)
    metric.comparator = None
    with pytest.raises(UserError, match=r"metric.comparator is not set. Fix: "):
        metric.compute()


def wrong(**changes) -> FaceTruth:
    truth = faces()[0]
    for name, value in changes.items():
        setattr(truth.pairs if hasattr(truth.pairs, name) else truth, name, value)
    return truth


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (lambda: wrong(labels=torch.zeros(3).long()), r"72 images with 3 labels.* Fix: "),
        (lambda: wrong(image_ids=torch.arange(72) // 2), r"image id 0 stands for several images. Fix: "),
        (lambda: wrong(people=["a"]), r"labels 0..43 for 1 people. Fix: "),
        (lambda: wrong(first=torch.full((60,), 5)), r"pairs.txt: image id 5 of a pair is no image of the split. Fix: "),
        (lambda: wrong(distractor=torch.ones(72).bool()), r"of a pair is a distractor of the split. Fix: "),
        (lambda: wrong(same=torch.ones(3).bool()), r"pairs.txt: the columns of the pairs differ in length. Fix: "),
    ],
)
def test_bad_truths(truth, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Verification().set_ground_truth(truth())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fars": [0.01, 0]}, r"metric.fars: 0.0 is no false accept rate. Fix: "),
        ({"fars": [1e-2, 2]}, r"metric.fars: 2.0"),
        ({"resamples": 0}, r"metric.resamples is 0. Fix: "),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Verification(**settings)


def test_yaml_gives_the_defaults() -> None:
    config = OmegaConf.load(CONF / "verification.yaml")
    metric, default = instantiate(config), Verification()
    for key in set(config) - {"_target_"}:
        assert getattr(metric, key) == getattr(default, key), key


# --- processes -------------------------------------------------------------------------------------------------------


def shares(case: str, count: int) -> list[list[int]]:
    """Which images each of two ranks sees."""
    rows = list(range(count))
    return {
        # round robin, as a distributed sampler
        "even": [rows[0::2], rows[1::2]],
        "uneven": [rows[:1], rows[1:]],
        # the rank that judges has no image
        "first empty": [[], rows],
        # a rank without any image
        "last empty": [rows, []],
        # padded shards: the first images on every rank again
        "padded": [rows[0::2] + rows[:3], rows[1::2] + rows[:3]],
    }[case]


CASES = ("even", "uneven", "first empty", "last empty", "padded")


def distributed_worker(rank: int, folder: str) -> None:
    """Runs every case and writes what the rank got."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    truth, embeddings = faces()
    metric = Verification()
    metric.set_ground_truth(truth)
    metric.comparator, metric.threshold = SquaredL2(8), -13.0
    got: dict[str, object] = {}
    for case in CASES:
        metric.reset()
        part = shares(case, len(embeddings))[rank]
        metric.update(truth.image_ids[part], embeddings[part])
        got[case] = (metric.compute(), metric.result, metric.gathered(), metric.pair_embeddings())
    metric.reset()
    got["never updated"] = (metric.compute(), metric.gathered())
    got["contradiction"] = contradict(metric, truth, embeddings, rank)
    got["failure"] = fail(metric, rank)
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(got))
    dist.destroy_process_group()


def contradict(metric: Verification, truth: FaceTruth, embeddings: Tensor, rank: int) -> Tensor:
    """Other numbers for the same images: those of the lowest rank stand."""
    if rank:
        metric.update(truth.image_ids, embeddings + 1)
    else:
        metric.update(truth.image_ids[:5], embeddings[:5])
    return metric.gathered()


def fail(metric: Verification, rank: int) -> str:
    """A failure on rank 0 must end the others' waiting, with the same error."""
    if rank == 0:
        metric.comparator = None
    try:
        metric.compute()
    except UserError as error:
        return str(error)
    return "no error"


@pytest.fixture(scope="module")
def distributed(tmp_path_factory) -> list[dict]:
    """What each rank got; one start of two processes serves all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(distributed_worker, args=(str(folder),), nprocs=2)
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_same(distributed, case: str) -> None:
    truth, embeddings = faces()
    single = filled(truth, embeddings)
    single.threshold = -13.0
    expected = single.compute()
    assert 0.6 < expected["accuracy"] < 1
    for got in distributed:
        numbers, result, gathered, pairs = got[case]
        assert equal(numbers, expected)
        assert torch.equal(gathered, embeddings)
        np.testing.assert_array_equal(result.scores, single.result.scores)
        assert all(torch.equal(a, b) for a, b in zip(pairs, single.pair_embeddings(), strict=True))


def test_processes_without_images_contradicting_and_failing(distributed) -> None:
    _, embeddings = faces()
    for got in distributed:
        numbers, gathered = got["never updated"]
        assert numbers["images"] == 0
        assert math.isnan(numbers["accuracy"])
        assert gathered.shape == (72, 0)
        assert torch.equal(got["contradiction"][:5], embeddings[:5])
        assert torch.equal(got["contradiction"][5:], embeddings[5:] + 1)
        assert "metric.comparator is not set" in got["failure"]
