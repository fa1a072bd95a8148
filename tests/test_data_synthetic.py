"""Moving shapes: each class moves as it says, looks as it says, and comes out the same again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from raygen.data import synthetic
from raygen.data.decode import decode, probe
from raygen.errors import ConfigError

Floats = npt.NDArray[np.float64]
SIZE, FRAMES = 64, 24


def rendered(shape: str, colour: str, motion: str, seed: int = 0) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    way = synthetic.path(motion, FRAMES, rng)
    return synthetic.render(shape, colour, way, SIZE, rng)


def mask(clip_THWC: npt.NDArray[np.uint8], colour: str) -> npt.NDArray[np.bool_]:
    """The pixels nearer to the shape's colour than to the dim background."""
    distance_THW = np.linalg.norm(clip_THWC - np.array(synthetic.COLOURS[colour]) * 0.94, axis=-1)
    return np.asarray(distance_THW < 60)


def centroids(mask_THW: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """x and y of the mask's middle in each frame, fractions of the side."""
    row_H = (np.arange(SIZE) + 0.5) / SIZE
    area_T = mask_THW.sum((1, 2))
    assert area_T.min() > 0, "the shape left the frame"
    x_T = (mask_THW * row_H[None, None, :]).sum((1, 2)) / area_T
    y_T = (mask_THW * row_H[None, :, None]).sum((1, 2)) / area_T
    return x_T, y_T


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1)]
)
@pytest.mark.parametrize("shape", synthetic.SHAPES)
def test_straight_motions_go_the_way_they_say(
    shape: str, motion: str, axis: int, sign: int
) -> None:
    for seed, colour in enumerate(synthetic.COLOURS):
        path_2T = np.array(centroids(mask(rendered(shape, colour, motion, seed), colour)))
        steps_T = np.diff(path_2T[axis]) * sign
        assert steps_T.min() > 0, "stands still or turns back"
        assert 0.45 < steps_T.sum() < 0.7
        assert np.ptp(path_2T[1 - axis]) < 0.02, "drifts sideways"


def test_pulse_beats_in_place() -> None:
    for shape, seed in itertools.product(synthetic.SHAPES, range(3)):
        mask_THW = mask(rendered(shape, "yellow", "pulse", seed), "yellow")
        area_T = mask_THW.sum((1, 2))
        x_T, y_T = centroids(mask_THW)
        assert area_T.max() > 3 * area_T.min()
        assert max(np.ptp(x_T), np.ptp(y_T)) < 0.03
        grows_T = np.sign(np.diff(area_T))
        assert 2 <= (np.diff(grows_T[grows_T != 0]) != 0).sum() <= 5, "not about two beats"


@pytest.mark.parametrize("shape", ["square", "triangle"])
def test_spin_turns_clockwise_in_place(shape: str) -> None:
    rng = np.random.default_rng(0)
    way = synthetic.path("spin", FRAMES, rng)
    mask_THW = mask(synthetic.render(shape, "green", way, SIZE, rng), "green")
    x_T, y_T = centroids(mask_THW)
    assert max(np.ptp(x_T), np.ptp(y_T)) < 0.02
    assert np.ptp(mask_THW.sum((1, 2))) < 0.1 * mask_THW[0].sum()
    # The corner farthest from the middle, followed over its symmetry: 1/4 or 1/3 of a turn.
    fold = {"square": 4, "triangle": 3}[shape]
    pixels = (np.arange(SIZE) + 0.5) / SIZE
    dx_THW = pixels[None, None, :] - x_T[:, None, None]
    dy_THW = pixels[None, :, None] - y_T[:, None, None]
    # The phase of the mask's moment of that order turns `fold` times as fast as the shape.
    moment_T = (mask_THW * (dx_THW + 1j * dy_THW) ** fold).sum((1, 2))
    turned = np.unwrap(np.angle(moment_T))[[0, -1]] / fold
    # y points down, so a growing angle is clockwise.
    assert turned[1] - turned[0] == pytest.approx(way.angle_T[-1] - way.angle_T[0], abs=0.1)
    assert 0.85 < (turned[1] - turned[0]) / (2 * np.pi) < 1.15


def test_shapes_fill_their_boxes_as_they_should() -> None:
    # Area over the area of the bounding box: pi / 4, 1 and 1 / 2.
    for shape, share in {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}.items():
        mask_HW = mask(rendered(shape, "red", "right"), "red")[FRAMES // 2]
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert mask_HW.sum() / box == pytest.approx(share, abs=0.08)


def test_a_triangle_points_up() -> None:
    widths_H = mask(rendered("triangle", "blue", "right"), "blue")[FRAMES // 2].sum(1)
    filled_H = widths_H[widths_H > 0]
    assert filled_H[-1] > 3 * filled_H[0]


def test_class_names_spread() -> None:
    names = synthetic.class_names(6)
    triples = [name.split("-") for name in names]
    for attribute in zip(*triples[:3], strict=True):
        assert len(set(attribute)) == 3
    assert len({colour for colour, _, _ in triples[:4]}) == 4
    assert len({motion for _, _, motion in triples[:4]}) == 4
    for one, other in itertools.combinations(triples, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) >= 2


def test_all_classes_once_and_no_spinning_circle() -> None:
    names = synthetic.class_names(68)
    assert len(set(names)) == 68
    assert not any("circle-spin" in name for name in names)
    assert names[:4] == synthetic.class_names(4)


@pytest.mark.parametrize("count", [0, 69])
def test_too_few_or_many_classes(count: int) -> None:
    with pytest.raises(ConfigError, match="take 1 to 68"):
        synthetic.class_names(count)


def test_synthesize_writes_clips_that_decode_and_their_truth(tmp_path: Path) -> None:
    classes = synthetic.class_names(2)
    assert synthetic.synthesize(str(tmp_path), classes, 2, seed=5) == 4
    rows = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    assert [row["class"] for row in rows] == [classes[0]] * 2 + [classes[1]] * 2
    for row in rows:
        path = Path(row["uri"])
        assert path.parent == tmp_path / row["class"]
        assert row["class"] == f"{row['colour']}-{row['shape']}-{row['motion']}"
        assert row["caption"].startswith(f"a {row['colour']} {row['shape']} ")
        data = path.read_bytes()
        assert probe(data).width == SIZE
        clip_THWC = decode(data, start=0.0, frames=FRAMES, fps=16.0, size=SIZE)
        x_T, y_T = centroids(mask(clip_THWC, row["colour"]))
        # Where the edge cuts no part of the shape off, the truth is where the shape is seen.
        radius = row["radius"][0]
        for seen_T, true in ((x_T, row["x"]), (y_T, row["y"])):
            inside = [t for t in range(FRAMES) if radius < true[t] < 1 - radius]
            np.testing.assert_allclose(seen_T[inside], np.array(true)[inside], atol=0.02)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    classes = synthetic.class_names(3)
    for folder, names, seed in (("a", classes, 1), ("b", classes[1:], 1), ("c", classes, 2)):
        synthetic.synthesize(str(tmp_path / folder), names, 1, seed=seed, frames=8)
    file = f"{classes[1]}/{classes[1]}-0001.mp4"
    first, again, other = ((tmp_path / folder / file).read_bytes() for folder in "abc")
    assert first == again, "a clip depends on more than seed, class and number"
    assert first != other


def test_clips_of_a_class_differ() -> None:
    first, second = (rendered("circle", "red", "right", seed) for seed in (0, 1))
    assert np.abs(first.astype(int) - second).mean() > 5


def test_captions_say_what_is_shown() -> None:
    assert synthetic.caption("red-circle-right") == "a red circle moves right"
    assert synthetic.caption("blue-square-spin") == "a blue square spins"
    captions = {synthetic.caption(name) for name in synthetic.class_names(68)}
    assert len(captions) == 68


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(ConfigError, match="'pink-circle-right'"):
        synthetic.synthesize("unused", ["pink-circle-right"], 1, seed=0)
