"""`drawn_faces`: people who are drawn, not photographed. Cartoon faces for tests, lessons and first experiments.

A person is some thirty numbers: shape of the head, skin, hair (colour, hairline, length, curls), distance, size and colour of the
eyes, brows, nose, mouth, ears, sometimes beard or glasses. An image adds what does not tell who it is: place, size, tilt and
turn of the head, expression, light, clothes, ground and noise. No single colour gives a person away: light and ground change
them by more than people differ. A person depends on (draw_seed, split, person) and an image on (draw_seed, split, person,
index) alone, so more people or images keep those that there were. People of different splits are different.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from cvexp.data.face_module import FaceData, FaceSource, pairs_of
from cvexp.data.module import Split
from cvexp.types import UserError

CACHE_BYTES = 1 << 30
"""A split whose pixels fit here is drawn once and kept."""
_SKINS = np.array([(92, 62, 45), (141, 96, 68), (190, 140, 105), (226, 182, 148), (244, 208, 180)], dtype=np.float32)
_HAIRS = np.array(
    [(28, 24, 24), (66, 44, 32), (110, 74, 44), (164, 92, 46), (206, 170, 104), (168, 166, 164)], dtype=np.float32
)
_EYES = np.array([(62, 42, 30), (96, 70, 40), (84, 110, 70), (72, 110, 156), (110, 120, 130)], dtype=np.float32)


@dataclass(kw_only=True, eq=False)
class DrawnFacesData(FaceData):
    """The drawn people.

    Args:
        image_size: side of the drawn image, at least 32 pixels.
        train_identities, val_identities, test_identities: people of each split.
        train_images, val_images, test_images: of each person.
        draw_seed: of people and images; apart from ``seed`` (order, augmentation), so that runs of all seeds share one test.
    """

    image_size: int = 64
    train_identities: int = 120
    val_identities: int = 20
    test_identities: int = 40
    train_images: int = 20
    val_images: int = 10
    test_images: int = 10
    draw_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 32:
            raise UserError(
                f"data.image_size={self.image_size}: faces are drawn at 32 pixels or more. Fix: image_size=64"
            )
        least = {f"{split}_{what}": 2 for split in get_args(Split) for what in ("identities", "images")}
        for name, smallest in {**least, "draw_seed": 0}.items():
            if getattr(self, name) < smallest:
                raise UserError(
                    f"data.{name}={getattr(self, name)} must be at least {smallest}. Fix: data.{name}={smallest}"
                )

    def load(self, split: Split) -> FaceSource:
        people, each = getattr(self, f"{split}_identities"), getattr(self, f"{split}_images")
        labels = [person for person in range(people) for _ in range(each)]
        names = [f"{split}_{person:04d}" for person in range(people)]
        return FaceSource(
            people=names,
            labels=labels,
            names=[f"{names[person]}_{index:04d}.png" for person in range(people) for index in range(each)],
            images=DrawnImages(self.image_size, self.draw_seed, split, people, each),
            pairs=pairs_of(names, labels, self.pairs, self.pair_seed, f"{people} drawn people"),
        )


class DrawnImages:
    """The images of one split, person by person; drawn when they are first asked for."""

    def __init__(self, size: int, seed: int, split: Split, people: int, each: int) -> None:
        self.size, self.seed, self.split, self.each = size, seed, get_args(Split).index(split), each
        self.people: dict[int, Person] = {}
        self._cache: dict[int, Tensor] = {}
        self._keep = people * each * size * size * 3 <= CACHE_BYTES

    def __getitem__(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index].clone()
        number, image = divmod(index, self.each)
        if number not in self.people:
            self.people[number] = Person.drawn(np.random.default_rng([self.seed, self.split, number]))
        pixels = draw(self.people[number], self.size, np.random.default_rng([self.seed, self.split, number, image + 1]))
        drawn = torch.from_numpy(pixels).permute(2, 0, 1)  # laid out as decoders do
        if self._keep:
            self._cache[index] = drawn.clone()
        return drawn


@dataclass
class Person:
    """Who somebody is. Lengths in half sides of an upright image of the middle size, from the middle of the head; y goes down."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    head: tuple[float, float]  # half width, half height
    jaw: float  # how much narrower the chin is than the temples
    square: float  # 0 an ellipse, 1 a box
    hairline: tuple[float, float, float]  # height in the middle, slope, bend
    volume: float  # of the hair over the head
    curls: tuple[float, int]  # height, number
    back: float  # how far down the hair hangs; 0 not at all
    eyes: tuple[float, float]  # half distance, height
    eye: tuple[float, float]  # half width, half height
    slant: float
    pupil: float
    brow: tuple[float, float, float]  # half length, half thickness, tilt
    brow_gap: float
    nose: tuple[float, float]  # half width, length
    mouth: tuple[float, float, float]  # half width, half height, place
    ear: float
    beard: float  # strength of the beard
    moustache: float
    glasses: float  # thickness of the frame; 0 none

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Person:
        """Somebody."""
        u = rng.uniform
        skin = _between(_SKINS, u()) + u(-8, 8, 3).astype(np.float32)
        curly, beard, moustache, glasses = rng.random(4)
        return cls(
            skin=skin,
            hair=_between(_HAIRS, u()) + u(-12, 12, 3).astype(np.float32),
            iris=_between(_EYES, u()),
            lips=skin * np.float32(u(0.62, 0.9)) + np.array([u(10, 55), 0, u(0, 15)], dtype=np.float32),
            head=(u(0.46, 0.6), u(0.62, 0.74)),
            jaw=u(0.05, 0.42),
            square=u(0, 0.45),
            hairline=(u(-0.52, -0.24), u(-0.35, 0.35), u(-0.5, 0.6)),
            volume=u(1.02, 1.22),
            curls=(u(0.03, 0.07), int(rng.integers(7, 16))) if curly < 0.35 else (0.0, 1),
            back=u(0.35, 1.1) if rng.random() < 0.5 else 0.0,
            eyes=(u(0.18, 0.28), u(-0.14, 0.02)),
            eye=(u(0.075, 0.12), u(0.038, 0.075)),
            slant=u(-0.3, 0.3),
            pupil=u(0.036, 0.052),
            brow=(u(0.08, 0.14), u(0.012, 0.034), u(-0.35, 0.35)),
            brow_gap=u(0.07, 0.13),
            nose=(u(0.045, 0.11), u(0.14, 0.26)),
            mouth=(u(0.11, 0.23), u(0.022, 0.05), u(0.33, 0.42)),
            ear=u(0.06, 0.13),
            beard=u(0.35, 0.9) if beard < 0.22 else 0.0,
            moustache=u(0.5, 1) if moustache < 0.2 else 0.0,
            glasses=u(0.014, 0.03) if glasses < 0.2 else 0.0,
        )


def _between(palette: np.ndarray, place: float) -> np.ndarray:
    """The colour at ``place`` 0..1 along a palette ``[n, 3]``."""
    at = place * (len(palette) - 1)
    low = min(int(at), len(palette) - 2)
    return palette[low] + np.float32(at - low) * (palette[low + 1] - palette[low])


@dataclass
class _Scene:
    """An image being painted, or a window of it around a small part.

    ``pixels`` is float32 ``[S, S, 3]``, ``x`` and ``y`` ``[S, S]`` are each pixel's place in the person's frame, ``place``
    ``[2, 3]`` is the map from that frame to pixels.
    """

    pixels: np.ndarray
    x: np.ndarray
    y: np.ndarray
    place: np.ndarray
    pixel: float  # side of a pixel in the person's frame

    def window(self, x: float, y: float, radius: float) -> _Scene:
        """The part of the scene around a point."""
        column, row = self.place[:, :2] @ (x, y) + self.place[:, 2]
        reach = radius / self.pixel + 1.5
        size = len(self.pixels)
        rows, columns = (slice(max(int(c - reach), 0), min(max(int(c + reach) + 1, 0), size)) for c in (row, column))
        return _Scene(self.pixels[rows, columns], self.x[rows, columns], self.y[rows, columns], self.place, self.pixel)

    def soft(self, inside: np.ndarray) -> np.ndarray:
        """Coverage 0..1 from the distance inside an edge, one pixel soft."""
        return np.clip(inside * np.float32(1 / self.pixel) + np.float32(0.5), 0, 1)

    def paint(self, cover: np.ndarray, colour: np.ndarray | np.floating) -> None:
        """Lays ``colour`` (a grey, ``[3]`` or ``[S, S, 3]``) over the scene where ``cover`` ``[S, S]`` is."""
        self.pixels += cover[..., None] * (colour - self.pixels)

    def ellipse(self, x: float, y: float, a: float, b: float, tilt: float = 0.0) -> np.ndarray:
        """Coverage of an ellipse; ``tilt`` shears it (right side down)."""
        along, across = self.x - np.float32(x), self.y - np.float32(y)
        if tilt:
            across = across - np.float32(tilt) * along
        radius = np.sqrt((along * np.float32(1 / a)) ** 2 + (across * np.float32(1 / b)) ** 2)
        return self.soft((1 - radius) * np.float32(min(a, b)))


def draw(person: Person, size: int, rng: np.random.Generator) -> np.ndarray:
    """One image of a person: uint8 ``[size, size, 3]``, everything but who it is drawn from ``rng``."""
    scene = _scene(size, rng)
    turn = rng.uniform(-0.07, 0.07)  # of the head: what is in front moves more than what is behind
    _shoulders(scene, person, rng)
    head = _head(scene, person, turn)
    _eyes(scene, person, turn, rng)
    _nose_and_mouth(scene, person, turn, rng)
    _hair(scene, person, head, turn)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32) * np.float32(rng.uniform(0, 0.35))
    light = 1 + slope[0] * scene.x + slope[1] * scene.y
    colour = rng.uniform(0.72, 1.18) * (1 + rng.uniform(-0.1, 0.1, 3))
    lit = scene.pixels
    lit *= light[..., None]
    lit *= colour.astype(np.float32)
    lit += rng.integers(-9, 10, lit.shape, dtype=np.int8)
    return np.clip(lit, 0, 255, out=lit).astype(np.uint8)


def _scene(size: int, rng: np.random.Generator) -> _Scene:
    """The ground (four coarse colours that run into each other), and the head's place, size and tilt."""
    half = size / 2
    angle, scale = rng.normal(0, 0.1), rng.uniform(0.8, 0.98) * half
    shift_x, shift_y = rng.uniform(-0.1, 0.1, 2) * half
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    place = np.array([[cos, -sin, half + shift_x - 0.5], [sin, cos, half + shift_y - 0.5]])
    back = np.linalg.inv(place[:, :2]).astype(np.float32)
    steps = np.arange(size, dtype=np.float32)
    columns, rows = steps[None, :] - np.float32(place[0, 2]), steps[:, None] - np.float32(place[1, 2])
    across = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    ends = np.concatenate([1 - across, across], axis=1)  # [size, 2]
    corners = rng.uniform(20, 235, (3, 2, 2)).astype(np.float32)
    ground = (ends @ corners @ ends.T).transpose(1, 2, 0)
    x, y = back[0, 0] * columns + back[0, 1] * rows, back[1, 0] * columns + back[1, 1] * rows
    return _Scene(np.ascontiguousarray(ground), x, y, place, 1 / scale)


def _shoulders(scene: _Scene, person: Person, rng: np.random.Generator) -> None:
    width, height = person.head
    if person.back:  # hair behind everything
        scene.paint(
            scene.ellipse(0, 0.3 * person.back - 0.1, width * person.volume * 1.16, 0.62 + 0.4 * person.back),
            person.hair * 0.8,
        )
    neck = scene.window(0, height, 0.5)
    neck.paint(neck.soft(width * 0.55 - np.abs(neck.x)) * (neck.y > 0), person.skin * 0.8)
    scene.paint(scene.ellipse(0, height + 0.62, 0.95, 0.5), rng.uniform(15, 240, 3).astype(np.float32))


def _head(scene: _Scene, person: Person, turn: float) -> np.ndarray:
    """Paints ears and head; returns the head's radius ``[S, S]``, 1 at its edge."""
    width, height = person.head
    for side in (-1, 1):
        x = side * (width + 0.02) - turn
        ear = scene.window(x, 0, person.ear * 1.5)
        ear.paint(ear.ellipse(x, 0, person.ear * 0.7, person.ear * 1.3), person.skin * 0.88)
    low = np.maximum(scene.y, 0) * np.float32(1 / height)
    x = np.abs(scene.x) / (np.float32(width) * (1 - np.float32(person.jaw) * low * low).clip(0.2))
    y = np.abs(scene.y) * np.float32(1 / height)
    radius = (1 - person.square) * np.sqrt(x * x + y * y) + person.square * np.maximum(x, y)
    shade = (1.04 - 0.16 * radius * radius).astype(np.float32)
    inside = scene.soft((1 - radius) * np.float32(width))
    scene.paint(inside, shade[..., None] * person.skin)
    if person.beard:
        _, _, mouth = person.mouth
        edge = scene.soft(scene.y - np.float32(mouth - 0.18) - 0.35 * (0.4 - np.abs(scene.x)).clip(0))
        scene.paint(inside * edge * np.float32(person.beard), person.hair)
    return radius


def _eyes(scene: _Scene, person: Person, turn: float, rng: np.random.Generator) -> None:
    apart, height = person.eyes
    a, b = person.eye
    b = b * rng.uniform(0.7, 1.1)  # how far they are open
    gaze_x, gaze_y = rng.uniform(-0.3, 0.3) * a, rng.uniform(-0.2, 0.2) * b
    raised, drawn = rng.uniform(-0.02, 0.05), rng.uniform(-0.15, 0.15)
    length, thick, tilt = person.brow
    for side in (-1, 1):
        x = side * apart + turn
        eye = scene.window(x, height, max(a, b) * 1.3)
        opening = eye.ellipse(x, height, a, b, side * person.slant)
        eye.paint(eye.ellipse(x, height - 0.012, a * 1.12, b * 1.2, side * person.slant), person.skin * 0.5)
        eye.paint(opening, np.float32(242))
        eye.paint(opening * eye.ellipse(x + gaze_x, height + gaze_y, person.pupil, person.pupil), person.iris)
        eye.paint(
            opening * eye.ellipse(x + gaze_x, height + gaze_y, person.pupil / 2.2, person.pupil / 2.2), np.float32(12)
        )
        y = height - b - person.brow_gap - raised
        brow = scene.window(x, y, length * 1.2)
        brow.paint(brow.ellipse(x, y, length, thick, side * (tilt + drawn)), person.hair * 0.75)
        if person.glasses:
            frame = scene.window(x, height, a + 0.12)
            outer, inner = (frame.ellipse(x, height + 0.01, a + d, a * 0.85 + d) for d in (0.05, 0.05 - person.glasses))
            frame.paint(outer - inner, np.float32(30))
    if person.glasses:
        bridge = scene.window(turn, height, apart)
        line = bridge.soft(
            np.minimum(person.glasses / 2 - np.abs(bridge.y - height), apart - a - 0.04 - np.abs(bridge.x - turn))
        )
        bridge.paint(line, np.float32(30))


def _nose_and_mouth(scene: _Scene, person: Person, turn: float, rng: np.random.Generator) -> None:
    front = 1.6 * turn  # the nose stands out
    width, length = person.nose
    tip = person.eyes[1] + 0.08 + length
    nose = scene.window(front, tip - length / 2, length)
    nose.paint(nose.ellipse(front, tip - 0.02, width, width * 0.62), person.skin * 0.84)
    nose.paint(nose.ellipse(front, tip - length * 0.45, width * 0.5, length * 0.62), person.skin * 1.07)
    for side in (-1, 1):
        nose.paint(nose.ellipse(front + side * width * 0.5, tip + 0.008, 0.02, 0.014), person.skin * 0.42)
    half, lips, y = person.mouth
    half, smile, opened = half * rng.uniform(0.9, 1.12), rng.uniform(-0.5, 1.6), max(rng.uniform(-0.05, 0.07), 0.0)
    mouth = scene.window(1.2 * turn, y, half * 1.4)
    bent = mouth.y + np.float32(smile) * (mouth.x - np.float32(1.2 * turn)) ** 2  # corners up
    curved = _Scene(mouth.pixels, mouth.x, bent, mouth.place, mouth.pixel)
    curved.paint(curved.ellipse(1.2 * turn, y, half, lips + opened), person.lips)
    gap = curved.ellipse(1.2 * turn, y, half * 0.82, max(opened, 0.008))
    curved.paint(gap, np.array([70, 22, 24], dtype=np.float32))
    if person.moustache:
        above = scene.window(1.3 * turn, y, half * 1.4)
        band = above.ellipse(1.3 * turn, y - lips - 0.045, half * 0.95, 0.042, 0.0)
        above.paint(band * np.float32(person.moustache), person.hair)


def _hair(scene: _Scene, person: Person, radius: np.ndarray, turn: float) -> None:
    """The hair in front: what is above the hairline within a larger head, with curls at its edge."""
    top, slope, bend = person.hairline
    height, number = person.curls
    x = scene.x - np.float32(turn)
    line = top + slope * x + bend * x * x
    edge = np.float32(person.volume) - radius
    if height:
        waves = np.sin(np.float32(number) * np.arctan2(scene.y, scene.x))
        edge = edge + np.float32(height) * waves
        line = line + np.float32(height) * np.sin(np.float32(3 * number) * x)
    cover = np.minimum(scene.soft(edge * np.float32(person.head[0])), scene.soft(line - scene.y))
    gloss = (0.92 + 0.25 * (scene.y + 0.6)).clip(0.7, 1.15).astype(np.float32)
    scene.paint(cover.astype(np.float32), gloss[..., None] * person.hair)
