"""`raygen evaluate` on a folder of clips that anything generated: figures, page, mistakes."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from raygen import cli
from raygen.data import synthetic

QUICK = ["evaluate.judge_steps=10", "evaluate.clips=32"]


def raygen(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["raygen", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """Arrays of 8 frames of 32x32, four of each class of `shapes`; two copies of one clip."""
    folder = tmp_path_factory.mktemp("generated")
    for name in sorted(path.name for path in shapes.iterdir() if path.is_dir()):
        colour, shape, motion = name.split("-")
        clips = []
        for number in range(4):
            rng = np.random.default_rng(number)
            path = synthetic.path(motion, 8, rng)
            clips.append(synthetic.render(shape, colour, path, 32, rng))
        (folder / name).mkdir()
        np.save(folder / name / "three.npy", np.stack(clips[:3]))
        np.save(folder / name / "one.npy", clips[3])
    return folder


class Page(HTMLParser):
    """Counts elements and holds that each that is opened is closed."""

    VOID = frozenset({"meta", "img", "!doctype"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_folder_is_judged_without_a_run(
    generated: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    html, figures = tmp_path / "page.html", tmp_path / "figures.json"
    written = ["--html", str(html), "--json", str(figures)]
    assert (
        raygen(monkeypatch, "evaluate", str(generated), "--against", str(shapes), *written, *QUICK)
        == 0
    )
    assert "motion ratio" in capsys.readouterr().out
    document = json.loads(figures.read_text())
    assert (document["clips"], document["real_clips"]) == (12, 24)
    assert document["distance"] == "embedded Fréchet distance (not FVD)"
    assert document["score"] > 0
    assert set(document["controls"]) >= {"frozen", "shuffled in time", "blurred"}
    text = html.read_text()
    page = Page(text)
    assert not page.open
    assert page.seen.count("img") == 3 * 9  # three of each class, each beside two real clips
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources)
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text
    assert "script" not in page.seen


def test_mistakes_are_answered_in_a_line(
    generated: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd" / "red-squid-left").mkdir(parents=True)
    np.save(tmp_path / "odd" / "red-squid-left" / "a.npy", np.zeros((8, 32, 32, 3), np.uint8))
    (tmp_path / "grey").mkdir()
    np.save(tmp_path / "grey" / "a.npy", np.zeros((8, 32, 32), np.uint8))
    real = ["--against", str(shapes)]
    for arguments, code, said in (
        ([str(tmp_path / "empty"), *real], 1, "no clip below"),
        ([str(tmp_path / "odd"), *real], 1, "'red-squid-left', which .* does not have: name each"),
        ([str(generated), "--against", str(tmp_path / "none")], 1, "no folder at"),
        ([str(generated)], 1, "no run at .*, or --against"),
        ([str(tmp_path / "grey"), *real], 1, r"a.npy is uint8 \[8, 32, 32\]: clips are"),
        ([str(generated), *real, "evaluate.features=none.pt"], 2, "evaluate.features: no none.pt"),
        ([str(generated), *real, "evaluate.stpes=3"], 2, "unknown key evaluate.stpes"),
    ):
        assert raygen(monkeypatch, "evaluate", *arguments) == code, arguments
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert re.search(said, lines[0]), lines
