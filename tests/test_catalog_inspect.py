"""`raygen data scan` and `inspect`, as a user calls them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from raygen.cli import app
from raygen.data import inspect
from raygen.data.scan import scan
from raygen.errors import ConfigError, DataError
from tests.clips import encode, moving, scenery


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    for name in ("red-circle-right", "blue-square-up"):
        (folder / "train" / name).mkdir(parents=True)
        for seed in range(2):
            data = encode(moving(name, seed, frames=32 + 16 * seed))
            (folder / "train" / name / f"{seed}.mp4").write_bytes(data)
    (folder / "still.mp4").write_bytes(encode(np.repeat(scenery(0)[None], 32, axis=0)))
    (folder / "broken.mp4").write_bytes(b"<html>")
    return folder


def run(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_scan_says_what_it_found_and_dropped(videos: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "c.parquet")
    said = run("scan", str(videos), "-o", output, "--drop-static", "--cuts")
    assert "class: 2" in said
    assert "refused 1: hardly moves" in said
    assert "refused 1: is broken or not a video" in said
    assert "dropped 1, each of which hardly moves" in said
    assert "2.0 s, 16.7% of the video to decode" in said
    assert "6 videos, 4 usable; probed 6 of 6 objects" in said
    again = run("scan", str(videos), "-o", output)
    assert "6 videos, 5 usable; probed 0 of 6 objects" in again
    assert "dropped" not in again
    assert "probed 6 of 6" in run("scan", str(videos), "-o", output, "--fresh")


def test_a_scan_says_what_its_manifest_names_in_vain(videos: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    lines = ["uri,label", "still.mp4,nothing", *(f"gone-{k}.mp4,x" for k in range(5))]
    manifest.write_text("\n".join(lines) + "\n")
    output = str(tmp_path / "c.parquet")
    said = run("scan", str(videos), "-o", output, "--labels", f"manifest:{manifest}")
    assert "refused 5: is not named by the source of labels" in said
    assert "5 labelled videos are not below" in said
    assert "gone-0.mp4, gone-1.mp4, gone-2.mp4, ..." in said
    assert "6 videos, 1 usable; probed 1 of 6 objects" in said


def test_a_catalogue_is_described_and_drawn(videos: Path, tmp_path: Path) -> None:
    output, sheet = str(tmp_path / "c.parquet"), tmp_path / "sheet.png"
    run("scan", str(videos), "-o", output)
    said = run("inspect", output, "-o", str(sheet))
    for words in ("5 usable", "1 refused", "class: 3", "red-circle-right", "split: 2", "train"):
        assert words in said
    assert "h264" in said
    seconds = next(line for line in said.splitlines() if "seconds" in line)
    assert "2.00" in seconds
    assert "3.00" in seconds
    assert "is broken or not a video" in said
    image = np.asarray(Image.open(sheet).convert("RGB"))
    assert image.shape[0] == 3 * inspect.SHEET_SIZE + 2 * 2
    # The shapes move from the sheet's first frame of a class to its last.
    first, last = image[: inspect.SHEET_SIZE, -8 * 98 : -7 * 98], image[: inspect.SHEET_SIZE, -96:]
    assert np.abs(first[:, :96].astype(int) - last.astype(int)).mean() > 3


def test_a_class_whose_first_video_is_gone_is_drawn_by_its_second(videos: Path) -> None:
    found = scan(str(videos / "train"))
    (videos / "train" / "blue-square-up" / "0.mp4").unlink()
    height = Image.open(io.BytesIO(inspect.sheet(found))).height
    assert height == 2 * inspect.SHEET_SIZE + 2


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    (tmp_path / "1.mp4").write_bytes(b"<html>")
    found = scan(str(tmp_path))
    assert [section[0] for section in inspect.summary(found)][-1] == "refused"
    with pytest.raises(DataError, match="nothing to draw"):
        inspect.sheet(found)


def test_more_classes_than_fit_are_counted(tmp_path: Path) -> None:
    for number in range(23):
        (tmp_path / f"class-{number:02d}").mkdir()
        (tmp_path / f"class-{number:02d}" / "1.mp4").write_bytes(
            encode(moving("red-circle-up", 0, 8))
        )
    title, _, rows = inspect.classes(scan(str(tmp_path)))
    assert title == "class: 23"
    assert len(rows) == inspect.TOP + 1
    assert rows[-1][0] == "and 3 more"


@pytest.mark.parametrize(
    "arguments", [("scan", ".", "-o", "x.csv"), ("inspect", "c", "-o", "x.gif")]
)
def test_a_wrong_suffix_is_refused_before_the_work(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.(parquet|png)"):
        run(*arguments)
