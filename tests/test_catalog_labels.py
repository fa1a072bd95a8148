"""Each source of labels, on small files of the formats that people have."""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygen.data import store, tfrecord
from raygen.data.labels import Folders, Labels, sidecars, source
from raygen.errors import ConfigError, DataError

ROOT = "/clips"


def varint(value: int) -> bytes:
    low = value & 127
    return bytes([low]) if value < 128 else bytes([low | 128]) + varint(value >> 7)


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(name: bytes, labels: list[int], *, packed: bool = True) -> bytes:
    """A tf.Example as YouTube-8M's: an id, labels, and floats that nobody asks for."""
    if packed:
        integers = message(1, b"".join(map(varint, labels)))
    else:
        integers = b"".join(varint(1 << 3) + varint(label) for label in labels)
    floats = message(1, struct.pack("<3f", 0.5, 1.5, 2.5))
    features = {
        b"mean_rgb": message(2, floats),
        b"id": message(1, message(1, name)),
        b"labels": message(3, integers),
    }
    entries = [message(1, message(1, key) + message(2, value)) for key, value in features.items()]
    return message(1, b"".join(entries))


def crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def test_crc32c_is_the_published_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize(
    ("path", "label", "split"),
    [
        ("Archery/v_Archery_g01_c01.avi", "Archery", ""),
        ("train/jump/abc_000001_000011.mp4", "jump", "train"),
        ("kinetics/val_256/jump/abc_000001_000011.mp4", "jump", "val"),
        ("validate/jump/a.mp4", "jump", "val"),
        ("test/a.mp4", "unlabelled", "test"),
        ("a.mp4", "unlabelled", ""),
        ("test/deep/down/jump/a.mp4", "jump", ""),
        ("training/a.mp4", "training", ""),
    ],
)
def test_folders(path: str, label: str, split: str) -> None:
    assert Folders()(path) == Labels(label, split=split)


def test_ucf101s_lists_give_label_and_split(tmp_path: Path) -> None:
    lists = {
        "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\nBiking/v_Biking_g08_c01.avi 2\n",
        "testlist01.txt": "Archery/v_Archery_g01_c01.avi\r\n",
        "trainlist02.txt": "Archery/v_Archery_g01_c01.avi 1\n",
        "testlist02.txt": "",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    first = source(f"ucf101:{tmp_path}", ROOT)
    assert first("Archery/v_Archery_g08_c01.avi") == Labels("Archery", split="train")
    assert first("flat/v_Archery_g01_c01.mp4") == Labels("Archery", split="test")
    assert first("Archery/v_Archery_g99_c01.avi") is None
    assert first.missing() == ["v_Biking_g08_c01"]
    second = source(f"ucf101:{tmp_path}/trainlist02.txt", ROOT)
    assert second("Archery/v_Archery_g01_c01.avi") == Labels("Archery", split="train")
    (tmp_path / "testlist02.txt").write_text("<html>\n")
    with pytest.raises(DataError, match=r"testlist02.txt is no list of UCF101: '<html>'"):
        source(f"ucf101:{tmp_path}/trainlist02.txt", ROOT)


ROWS = {
    "path": ["a/1.mp4", f"{ROOT}/b/2.mp4", "gone.mp4"],
    "label": ["7", None, "8"],
    "caption": ["a dog, running", None, None],
    "split": ["train", "test", "test"],
    "weight": [2.5, None, 1.0],
    "extra": ["x", "y", "z"],
}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifests(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"manifest{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table(ROWS), path)
    elif suffix == ".csv":
        path.write_text(
            "path,label,caption,split,weight,extra\n"
            'a/1.mp4,7,"a dog, running",train,2.5,x\n'
            f"{ROOT}/b/2.mp4,,,test,,y\ngone.mp4,8,,test,1,z\n"
        )
    else:
        path.write_text(
            '{"path": "a/1.mp4", "label": "7", "caption": "a dog, running", "split": "train", '
            f'"weight": 2.5, "extra": "x"}}\n{{"path": "{ROOT}/b/2.mp4", "split": "test"}}\n'
            '{"path": "gone.mp4", "label": "8", "split": "test"}\n'
        )
    asked = source(f"manifest:{path}", ROOT)
    assert asked("a/1.mp4") == Labels("7", "a dog, running", "train", 2.5)
    assert asked("b/2.mp4") == Labels("unlabelled", "", "test", 1.0)
    assert asked("c/3.mp4") is None
    assert asked.missing() == ["gone.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.csv", "file,label\na,b\n", "needs a column uri or path; it has file, label"),
        ("m.csv", "uri,weight\na,heavy\n", "weight holds what is no number"),
        ("m.csv", "uri,weight\na,-1\n", "weight holds what is not 0 or more"),
        ("m.jsonl", "{oops", "cannot be read"),
        ("m.parquet", "<html>", "cannot be read"),
        ("m.txt", "", "must end in .csv, .jsonl or .parquet"),
    ],
)
def test_wrong_manifests_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        source(f"manifest:{tmp_path / name}", ROOT)


def test_youtube8m_joins_by_id_and_names_by_vocabulary(s3: str) -> None:
    first = record(example(b"abcd", [300, 7, 1999])) + record(example(b"none", []))
    store.write_bytes(f"{s3}/train0000.tfrecord", first)
    second = record(example(b"-x_y", [12], packed=False))
    store.write_bytes(f"{s3}/train0001.tfrecord", second)
    asked = source(f"youtube8m:{s3}", ROOT)
    assert asked("deep/abcd.mp4") == Labels("7")
    assert asked("-x_y.webm") == Labels("12")
    assert asked("other.mp4") is None
    assert asked.missing() == ["none"]
    names = "Index,TrainVideoCount,Name\n7,100,Car\n300,90,Vehicle\n12,80,Dance\n"
    store.write_bytes(f"{s3}/vocabulary.csv", names.encode())
    named = source(f"youtube8m:{s3}/*0000.tfrecord", ROOT)
    assert named("abcd.mp4") == Labels("Car", "Car, Vehicle, 1999")
    assert named("-x_y.webm") is None


def test_broken_tfrecords_are_named(tmp_path: Path) -> None:
    whole = record(example(b"abcd", [7]))
    path = tmp_path / "a.tfrecord"
    for data, said in (
        (whole + whole[:-9], rf"a.tfrecord is cut off at byte {len(whole)}"),
        (whole + whole[:5], rf"a.tfrecord is cut off at byte {len(whole)}"),
        (b"<html>403 Forbidden</html>", "is no TFRecord file, or broken at byte 0"),
        (record(b"\x0a\xff\xff"), "holds a record that is no tf.Example"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=said):
            source(f"youtube8m:{tmp_path}", ROOT)
    path.unlink()
    with pytest.raises(DataError, match=r"no \*.tfrecord in"):
        source(f"youtube8m:{tmp_path}", ROOT)


def test_floats_and_unknown_fields_are_passed_over() -> None:
    data = memoryview(message(9, b"?") + example(b"abcd", [1, 2]))
    assert tfrecord.features(data, "x") == {"id": [b"abcd"], "labels": [1, 2]}


def test_what_lies_beside_a_shards_video() -> None:
    assert sidecars({"txt": b" a caption\n", "cls": b"4"}) == {"label": "4", "caption": "a caption"}
    beside = {"json": b'{"class": 3, "text": "t", "split": "val", "fps": 30}'}
    assert sidecars(beside) == {"label": "3", "caption": "t", "split": "val"}
    assert sidecars(beside | {"txt": b"more"})["caption"] == "more"
    assert sidecars({"json": b"{broken"}) == {}
    assert sidecars({"json": b"[1, 2]"}) == {}


@pytest.mark.parametrize("spec", ["folder", "ucf101", "manifest:", "tar:x"])
def test_an_unknown_source_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=f"--labels {spec}: must be one of folders, ucf101:"):
        source(spec, ROOT)
