"""Extractors other than the embedded one: TorchScript by path, transformers by path."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raygen.errors import ConfigError
from raygen.metrics.classifier import Classifier
from raygen.metrics.features import Features, extractor, frechet_name

CLIPS = np.random.default_rng(0).integers(0, 256, (5, 6, 16, 16, 3)).astype(np.uint8)


class Means(nn.Module):
    """Three features, the mean of each colour; and the side and range that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        rest = torch.tensor([float(x.size(3)), float(x.size(4))]).expand(x.size(0), 2)
        return torch.cat([x.mean((2, 3, 4)), rest], 1)


class LikeI3d(nn.Module):
    """400 features, called as the I3D of FVD is."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert rescale == resize == return_features
        return x.mean((1, 2, 3, 4))[:, None].expand(-1, 400)


class Frames(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def made(path: Path, module: nn.Module) -> Features:
    torch.jit.save(torch.jit.script(module), str(path))
    return extractor(str(path), Classifier(2), batch_size=2, frames=6, size=16)


def test_a_torchscript_file_is_given_224_pixels_in_minus_one_to_one(tmp_path: Path) -> None:
    features = made(tmp_path / "means.pt", Means())
    found = features(CLIPS)
    assert (features.name, features.dim, found.shape) == ("means.pt", 5, (5, 5))
    assert found[:, 3:].unique().tolist() == [224]
    # Resizing sixteen pixels to a multiple of them moves a mean a little.
    expected = CLIPS.mean((1, 2, 3)) / 127.5 - 1
    assert found[:, :3].numpy() == pytest.approx(expected, abs=0.02)
    assert frechet_name(features, 2048, 16) == "Fréchet distance in means.pt (not FVD)"


def test_only_the_published_protocol_is_called_fvd(tmp_path: Path) -> None:
    features = made(tmp_path / "i3d_torchscript.pt", LikeI3d())
    assert features(CLIPS)[:, 7].numpy() == pytest.approx(CLIPS.mean((1, 2, 3, 4)), rel=1e-4)
    assert frechet_name(features, 2048, 16) == "FVD (i3d_torchscript.pt)"
    assert "not FVD" in frechet_name(features, 512, 16)
    assert "not FVD" in frechet_name(features, 2048, 32)


def test_what_is_no_extractor_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"not a zip")
    for path, said in (("none.pt", "no .*none.pt; give embedded"), ("broken.pt", "no TorchScript")):
        with pytest.raises(ConfigError, match=said) as caught:
            extractor(str(tmp_path / path), Classifier(2), batch_size=2, frames=6, size=16)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"frames.pt gives no features \[B,D\]"):
        made(tmp_path / "frames.pt", Frames())
    (tmp_path / "folder").mkdir()
    present = importlib.util.find_spec("transformers")
    said = "holds no video model" if present else r"pip install 'raygen\[transformers\]'"
    with pytest.raises(ConfigError, match=said):
        extractor(str(tmp_path / "folder"), Classifier(2), batch_size=2, frames=6, size=16)


def test_a_videomae_by_its_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=16,
        num_frames=4,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    torch.manual_seed(0)
    transformers.VideoMAEModel(config).save_pretrained(tmp_path / "tiny-videomae")
    path = str(tmp_path / "tiny-videomae")
    features = extractor(path, Classifier(2), batch_size=2, frames=6, size=16)
    found = features(CLIPS)
    assert (features.name, features.dim, found.shape) == ("tiny-videomae", 12, (5, 12))
    assert torch.allclose(features(CLIPS[3:]), found[3:], atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
