"""Every embedding model YAML at tiny size obeys contract 8; a new YAML is found by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from kinds import models_of
from test_contracts import _NoSync
from torch import Tensor, nn

from cvexp.build import build_model
from cvexp.config import conf_dir
from cvexp.types import Triplets, UserError

MODELS = models_of("embedding")
LOSSES = {"facenet": {"triplet"}}
"""The losses of a model, as its paper names them; a model without an entry is only measured."""
OPTIONS = {"facenet": ["model.loss.margin=4.0"]}  # untrained, no negative is within 0.2 beyond a positive
OFF_THE_SPHERE = {"face_resnet29"}
"""Models whose metric is the plain distance of their features."""
TRAINED = sorted(LOSSES)
NUM_CLASSES = 5


def build(name: str) -> nn.Module:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from cvexp.config import register_resolvers

    register_resolvers()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("train", [f"model={name}", "model.size=tiny", *OPTIONS.get(name, [])])
    torch.manual_seed(0)
    return build_model(cfg.model, NUM_CLASSES)


def faces(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Eight images of four people, their labels and ids."""
    size = model.image_size
    generator = torch.Generator().manual_seed(0)
    people = torch.randint(0, 256, (4, 3, size, size), generator=generator).repeat_interleave(2, dim=0)
    noise = torch.randint(-40, 41, people.shape, generator=generator)
    return (people + noise).clamp(0, 255).to(torch.uint8), torch.tensor([0, 0, 1, 1, 2, 2, 4, 4]), torch.arange(8) + 10


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, build(request.param)


@pytest.fixture(scope="module", params=TRAINED)
def trained(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, build(request.param)


def test_every_embedding_model_is_known() -> None:
    assert set(MODELS) >= set(TRAINED) | OFF_THE_SPHERE


def test_an_embedding_is_a_unit_vector_of_the_features(case) -> None:
    name, model = case
    images, _, _ = faces(model)
    model.eval()
    with torch.no_grad():
        features, embeddings = model.features(images), model(images)
    assert embeddings.shape == features.shape == (8, model.comparator.dim)
    assert embeddings.dtype == torch.float32
    if name in OFF_THE_SPHERE:
        assert torch.equal(embeddings, features)
    else:
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(8), atol=1e-6, rtol=0)
        torch.testing.assert_close(embeddings, F.normalize(features))


def test_an_embedding_does_not_depend_on_its_batch(case) -> None:
    _, model = case
    images, _, _ = faces(model)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.embed(images)[3], model.embed(images[3:4])[0], atol=1e-5, rtol=1e-4)


def test_faces_are_told_apart(case) -> None:
    """Two noisy images of one picture are nearer than those of two: else nothing of the image arrives at the end."""
    _, model = case
    images, labels, _ = faces(model)
    model.eval()
    with torch.no_grad():
        embeddings = model.embed(images)
        scores = model.comparator.matrix(embeddings, embeddings)
    assert scores.shape == (8, 8)
    same = labels[:, None] == labels[None]
    assert scores[same].mean() > scores[~same].mean()


def test_images_are_left_alone(case) -> None:
    _, model = case
    images, _, _ = faces(model)
    before = images.clone()
    model.embed(images)
    assert torch.equal(images, before)


def test_saved_and_loaded_gives_the_same_output(case, tmp_path, compose: Callable) -> None:
    name, model = case
    images, _, _ = faces(model)
    model.eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = build_model(compose(f"model={name}", "model.size=tiny").model, NUM_CLASSES)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    again.eval()
    with torch.no_grad():
        assert torch.equal(model.embed(images), again.embed(images))


def test_losses_are_named_finite_scalars(trained) -> None:
    name, model = trained
    images, labels, ids = faces(model)
    model.train()
    losses = model.losses(model(images), labels, ids)
    assert set(losses) == LOSSES[name]
    assert all(value.ndim == 0 and math.isfinite(value.detach()) and value.requires_grad for value in losses.values())


def test_every_trainable_parameter_gets_a_gradient(trained) -> None:
    _, model = trained
    images, labels, ids = faces(model)
    model.train()
    model.zero_grad()
    sum(model.losses(model(images), labels, ids).values()).backward()
    without = {
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    }
    assert without == set()


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([3] * 8, id="one person only: no negative"),
        pytest.param(list(range(8)), id="eight people: no positive"),
    ],
)
def test_a_batch_without_triplets_trains(trained, labels: list[int]) -> None:
    _, model = trained
    images, _, ids = faces(model)
    model.train()
    model.zero_grad()
    total = sum(model.losses(model(images), torch.tensor(labels), ids).values())
    total.backward()
    assert total.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_equal_images_give_no_nan(trained) -> None:
    """The square root of a distance of 0 has no gradient; a squared distance has."""
    _, model = trained
    images, labels, ids = faces(model)
    model.train()
    model.zero_grad()
    sum(model.losses(model(images[:1].expand(8, -1, -1, -1)), labels, ids).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_statistics_are_scalars_without_gradient(trained) -> None:
    _, model = trained
    images, labels, ids = faces(model)
    model.train()
    values = model.statistics(model(images), labels, ids)
    assert {"triplets", "active", "semi_hard", "positive_distance", "negative_distance", "spread"} <= set(values)
    assert all(v.ndim == 0 and v.isfinite() and not v.requires_grad and v.is_floating_point() for v in values.values())
    assert all(0 <= values[name] <= 1 for name in ("active", "semi_hard"))


def test_mined_triplets_are_two_people(trained) -> None:
    _, model = trained
    images, labels, ids = faces(model)
    triplets = model.mine(model(images), labels, ids)
    assert isinstance(triplets, Triplets)
    a, p, n = (index[triplets.valid] for index in (triplets.anchor, triplets.positive, triplets.negative))
    assert len(a) > 0
    assert (a != p).all()
    assert torch.equal(labels[a], labels[p])
    assert (labels[a] != labels[n]).all()


def test_a_training_step_never_waits_for_the_device(trained) -> None:
    _, model = trained
    images, labels, ids = faces(model)
    model.train()
    with _NoSync():
        torch.stack(list(model.losses(model(images), labels, ids).values())).sum().backward()


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(TRAINED)))
def test_a_model_that_is_only_measured_says_so(name: str) -> None:
    model = build(name)
    images, labels, ids = faces(model)
    with pytest.raises(UserError, match="test_only"):
        model.losses(model(images), labels, ids)
