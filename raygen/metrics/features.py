"""What distances are measured in: clips to features, by a network that the result names.

    evaluate.features=embedded               the classifier that was trained on the run's clips
    evaluate.features=i3d_torchscript.pt     a TorchScript file
    evaluate.features=models/videomae-base   a folder of a `transformers` model: VideoMAE, V-JEPA

Only figures of one extractor, one number of clips and one data set compare. A Fréchet distance is
called FVD where it follows the protocol of StyleGAN-V (arXiv 2112.14683, section 4 and appendix):
the I3D of the original FVD as TorchScript, 2,048 clips of 16 frames. No weights ship with raygen,
and none are downloaded.

Shapes: N clips or B in a batch, T frames, H, W, D features.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raygen.errors import ConfigError
from raygen.metrics.classifier import Classifier, Clips, examine

EMBEDDED = "embedded"
SIDE = 224  # pixels to which a TorchScript file's frames are resized
I3D_DIM = 400  # I3D's scores before their softmax: the features of FVD
FVD_CLIPS, FVD_FRAMES = 2048, 16
# What the I3D of FVD takes beside the clips; it scales and resizes them itself.
_I3D_OPTIONS = {"rescale": True, "resize": True, "return_features": True}
# Of ImageNet, which VideoMAE and V-JEPA were trained with.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Features(Protocol):
    """An extractor: uint8 clips [N,T,H,W,3] to float features [N,D] on the CPU."""

    name: str
    """What the result calls it."""
    dim: int
    """D."""
    is_i3d: bool
    """Whether it is called as the I3D of FVD is."""

    def __call__(self, clips_NTHWC: Clips) -> Tensor:
        """The features of all clips."""
        ...


class Embedded:
    """The features beneath the scores of the judge itself."""

    name = EMBEDDED
    dim = Classifier.features_dim
    is_i3d = False

    def __init__(self, model: Classifier, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size

    def __call__(self, clips_NTHWC: Clips) -> Tensor:
        """Features [N,D], not negative."""
        return examine(self.model, clips_NTHWC, self.batch_size).features_ND


class TorchScriptFeatures:
    """A TorchScript file, as StyleGAN-V publishes the I3D of FVD.

    Where its `forward` takes `rescale`, `resize` and `return_features`, it is given clips
    [B,3,T,H,W] in 0 to 255 and all three as true; any other gets them in -1 to 1 and resized,
    bilinearly, to 224 pixels. It answers with features [B,D].

    Raises ConfigError where there is no such file or it gives no such features.
    """

    def __init__(self, path: str, batch_size: int, frames: int, size: int) -> None:
        self.name = Path(path).name
        self.batch_size = batch_size
        try:
            self.module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError):
            raise _error(f"{path} is no TorchScript file; save one with torch.jit.save") from None
        names = {argument.name for argument in self.module.forward.schema.arguments}
        self.is_i3d = names >= set(_I3D_OPTIONS)
        try:
            self.dim = self(np.zeros((1, frames, size, size, 3), np.uint8)).shape[1]
        except (RuntimeError, ValueError, IndexError) as error:
            why = str(error).strip().splitlines()[-1]
            raise _error(
                f"{path} gives no features [B,D] of clips [B,3,{frames},{SIDE},{SIDE}]: {why}"
            ) from None

    @torch.inference_mode()
    def __call__(self, clips_NTHWC: Clips) -> Tensor:
        """Features [N,D]."""
        found = []
        for start in range(0, len(clips_NTHWC), self.batch_size):
            clips = torch.from_numpy(clips_NTHWC[start : start + self.batch_size])
            x_BCTHW = clips.permute(0, 4, 1, 2, 3).float()
            if self.is_i3d:
                features_BD = self.module(x_BCTHW, **_I3D_OPTIONS)
            else:
                features_BD = self.module(_resized(x_BCTHW, SIDE) / 127.5 - 1)
            if not isinstance(features_BD, Tensor) or features_BD.ndim != 2:
                raise ValueError("its forward does not answer with a matrix")
            found.append(features_BD.float())
        return torch.cat(found)


class TransformersFeatures:
    """A folder of a `transformers` video model: the mean of its last tokens.

    Frames are chosen evenly where the model takes another number of them, resized to what it was
    trained at and normalised as its preprocessor_config.json says, or as ImageNet is.

    Raises ConfigError where the package is absent or the folder holds no such model.
    """

    is_i3d = False

    def __init__(self, path: str, batch_size: int) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise _error(f"{path} needs transformers: pip install 'raygen[transformers]'")
        from transformers import AutoModel

        self.name = Path(path).name
        self.batch_size = batch_size
        try:
            self.model = AutoModel.from_pretrained(path, local_files_only=True).eval()
            config = self.model.config
            self.dim = int(config.hidden_size)
            self.side = int(getattr(config, "image_size", 0) or config.crop_size)
            self.frames = int(getattr(config, "num_frames", 0) or config.frames_per_clip)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            why = str(error).strip().splitlines()[0]
            raise _error(f"{path} holds no video model of transformers: {why}") from None
        self._input = self.model.main_input_name
        self._mean_311, self._deviation_311 = _normalisation(Path(path))

    @torch.inference_mode()
    def __call__(self, clips_NTHWC: Clips) -> Tensor:
        """Features [N,D]."""
        T = clips_NTHWC.shape[1]
        times = np.linspace(0, T - 1, self.frames).round().astype(int)
        found = []
        for start in range(0, len(clips_NTHWC), self.batch_size):
            clips = torch.from_numpy(clips_NTHWC[start : start + self.batch_size][:, times])
            x_BCTHW = _resized(clips.permute(0, 4, 1, 2, 3).float(), self.side) / 255
            x_BTCHW = (x_BCTHW.transpose(1, 2) - self._mean_311) / self._deviation_311
            found.append(self.model(**{self._input: x_BTCHW}).last_hidden_state.mean(1).float())
        return torch.cat(found)


def extractor(
    features: str, model: Classifier, batch_size: int, frames: int, size: int
) -> Features:
    """The extractor that `evaluate.features` asks for; `model` is the embedded one.

    Raises ConfigError where it cannot be had.
    """
    if features == EMBEDDED:
        return Embedded(model, batch_size)
    check(features)
    if Path(features).is_dir():
        return TransformersFeatures(features, batch_size)
    return TorchScriptFeatures(features, batch_size, frames, size)


def check(features: str) -> None:
    """Raises ConfigError where there is no such extractor: before the work, not after it."""
    if features != EMBEDDED and not Path(features).exists():
        raise _error(f"no {features}; give embedded, a TorchScript file or a folder of a model")


def frechet_name(features: Features, clips: int, frames: int) -> str:
    """What a Fréchet distance in these features may be called, `clips` on either side."""
    if features.name == EMBEDDED:
        return "embedded Fréchet distance (not FVD)"
    protocol = features.is_i3d and features.dim == I3D_DIM
    if protocol and (clips, frames) == (FVD_CLIPS, FVD_FRAMES):
        return f"FVD ({features.name})"
    return f"Fréchet distance in {features.name} (not FVD)"


def _resized(x_BCTHW: Tensor, side: int) -> Tensor:
    B, C, T = x_BCTHW.shape[:3]
    frames = x_BCTHW.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, (side, side), mode="bilinear", align_corners=False)
    return frames.view(B, T, C, side, side).transpose(1, 2)


def _normalisation(folder: Path) -> tuple[Tensor, Tensor]:
    path, said = folder / "preprocessor_config.json", {}
    if path.is_file():
        said = json.loads(path.read_text(encoding="utf-8"))
    mean, deviation = (
        torch.tensor(said.get(key, default)).view(3, 1, 1)
        for key, default in (("image_mean", _MEAN), ("image_std", _DEVIATION))
    )
    return mean, deviation


def _error(message: str) -> ConfigError:
    return ConfigError(f"evaluate.features: {message}", "evaluate.features")
