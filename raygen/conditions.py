"""What a clip is to show: conditions of any kind, in any mixture, and their one embedding.

    y_B = Condition.of(torch.tensor([2, 0]))              # classes alone
    e_BE = ConditionEmbedding(classes, 64, config.conditions, size=32)(y_B)

Pure torch. A kind that is not given, or dropped in training, is replaced by what is learned for
its absence, so that one network serves every mixture; the kinds' embeddings add up. Names carry
shapes: B clips, K kinds (as in KINDS), L words, V and E dimensions, C channels, T frames, H
height, W width.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.config import KINDS, ConditionsConfig
from raygen.sides import Size, sides

CLASS, TEXT, IMAGE, VECTOR = range(len(KINDS))
RGB = 3
ROWS = 4096  # of each of the two tables that a word's vector is made from
_WORD = re.compile(r"\w+|[^\w\s]")
_WIDTH = 64  # of the token encoder
_HEADS = 4
_LAYERS = 2
_GRID = 4  # of the shifts of a first frame
_FRAME_WIDTH = 16  # channels of the frame encoder's first layer


class Condition(NamedTuple):
    """What each of B clips is to show.

    given_BK: bool, which kinds it is given. labels_B: int64 class ids. text: token ids [B, L] of
    `tokens`, or a frozen encoder's vectors [B, V]. frame_BCHW: the first frame, in [-1, 1].
    vector_BV: the user's own. What is not given holds anything finite; a kind that the networks
    do not know may be None. embedded_BE: the generator's embedding itself, in place of all kinds
    but the frame that is kept, as interpolation makes it. low_BCTHW: the small clip that is to be
    enlarged, in [-1, 1] but for its noise, of standard deviation noise_B.
    """

    given_BK: Tensor
    labels_B: Tensor
    text: Tensor | None = None
    frame_BCHW: Tensor | None = None
    vector_BV: Tensor | None = None
    embedded_BE: Tensor | None = None
    low_BCTHW: Tensor | None = None
    noise_B: Tensor | None = None

    @classmethod
    def of(cls, y_B: Condition | Tensor) -> Condition:
        """A condition as it is; int64 class ids as conditions of nothing but a class."""
        if isinstance(y_B, Condition):
            return y_B
        given_BK = torch.zeros(len(y_B), len(KINDS), dtype=torch.bool, device=y_B.device)
        given_BK[:, CLASS] = True
        return cls(given_BK, y_B)

    def rows(self, rows: slice | Tensor) -> Condition:
        """Those of some of the clips."""
        return self._map(lambda part: part[rows])

    def repeat(self, times: int) -> Condition:
        """All of them, `times` times over."""
        return self._map(lambda part: part.repeat(times, *(1 for _ in part.shape[1:])))

    def each(self, times: int) -> Condition:
        """Each of them `times` times, as frames of one clip share a condition."""
        return self._map(lambda part: part.repeat_interleave(times, 0))

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Condition:
        """On another device; `dtype` is that of what is floating point."""
        return self._map(
            lambda part: part.to(device, dtype if part.is_floating_point() else part.dtype)
        )

    def without(self, dropped_BK: Tensor) -> Condition:
        """The kinds marked in bool `dropped_BK`, or what broadcasts to it, are given no longer."""
        return self._replace(given_BK=self.given_BK & ~dropped_BK.to(self.given_BK.device))

    def only(self, kind: str) -> Condition:
        """Nothing is given but this kind, where it was."""
        others_K = torch.tensor([k != kind for k in KINDS], device=self.given_BK.device)
        return self.without(others_K)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(*(None if part is None else change(part) for part in self))  # type: ignore[arg-type]


def tokens(text: str, length: int) -> list[int]:
    """The first `length` words and signs of `text`, any case, as ids; padded with 0.

    Ids are hashes of 24 bits: no vocabulary to build, to ship or to fall out of.
    """
    words = _WORD.findall(text.casefold())[:length]
    ids = [1 + zlib.crc32(word.encode()) % ROWS**2 for word in words]
    return ids + [0] * (length - len(ids))


def output_channels(config: ConditionsConfig) -> int:
    """Channels that a generator's last layer makes: RGB, and mask and shifts of `keep_frame`."""
    return RGB + 3 * ("image" in config.kinds)


def keep_frame(
    x_BCTHW: Tensor, y_B: Condition | Tensor, times: Sequence[float] | None = None
) -> Tensor:
    """A generator's output in [-1, 1] -> clips [B, 3, T, H, W] that begin with the given frame.

    With three more channels, a mask m = ((1 + x_4) / 2)^2 and shifts (x_5, x_6) in sides: each
    later frame is m f + (1 - m) w, where w shows the given frame as the shifts move it. VGAN's two
    streams (arXiv 1609.02612, eq. 2), their background given and not generated, and moved as
    Vondrick & Torralba transform pixels (CVPR 2017, section 3.1), though not each by itself: what
    moves keeps its look and its shape. At first little is drawn, so that moving is learnt. The
    frame at t = 0 is the given one to the bit; m is 1 throughout where there is none. With three
    channels: the output itself. `times` of the T frames are 0, 1, and so on unless given.
    """
    if x_BCTHW.shape[1] == RGB:
        return x_BCTHW
    y = Condition.of(y_B)
    clip_BCTHW, mask_B1THW = x_BCTHW[:, :RGB], ((1 + x_BCTHW[:, RGB : RGB + 1]) / 2).square()
    if y.frame_BCHW is None:
        return clip_BCTHW
    moved_BCTHW = _moved(y.frame_BCHW, x_BCTHW[:, RGB + 1 :]).to(clip_BCTHW.dtype)
    given_B1111 = y.given_BK[:, IMAGE, None, None, None, None]
    mask_B1THW = torch.where(given_B1111, mask_B1THW, 1.0)
    mixed_BCTHW = mask_B1THW * clip_BCTHW + (1 - mask_B1THW) * moved_BCTHW
    at_T = torch.tensor(range(x_BCTHW.shape[2]) if times is None else times, device=x_BCTHW.device)
    first_T11 = (at_T == 0)[:, None, None]
    frame_BC1HW = y.frame_BCHW[:, :, None].to(clip_BCTHW.dtype)
    return torch.where(given_B1111 & first_T11, frame_BC1HW, mixed_BCTHW)


def _moved(frame_BCHW: Tensor, shift_B2THW: Tensor) -> Tensor:
    """[B, 3, H, W] and shifts [B, 2, T, H, W] (right, down; in sides) -> [B, 3, T, H, W].

    The frame as seen at each pixel plus its shift, bilinearly. Shifts are means over a grid of
    _GRID x _GRID, and bilinear in between: drawn pixel by pixel they tear the shape of what moves.
    """
    batch, _, frames, height, width = shift_B2THW.shape
    # In fp32: bf16 has no place for the pixels of a large frame. Sides run from -1 to 1.
    coarse_BNHW = F.adaptive_avg_pool2d(shift_B2THW.float().flatten(1, 2), _GRID)
    smooth_BNHW = F.interpolate(coarse_BNHW, (height, width), mode="bilinear")
    shift_BLW2 = 2 * smooth_BNHW.view(shift_B2THW.shape).permute(0, 2, 3, 4, 1).flatten(1, 2)
    still = torch.eye(2, 3, device=frame_BCHW.device).expand(batch, 2, 3)
    grid_BHW2 = F.affine_grid(still, [batch, RGB, height, width], align_corners=False)
    at_BLW2 = grid_BHW2.repeat(1, frames, 1, 1) + shift_BLW2
    moved_BCLW = F.grid_sample(
        frame_BCHW.float(), at_BLW2, padding_mode="border", align_corners=False
    )
    return moved_BCLW.view(batch, -1, frames, height, width)


class ConditionEmbedding(nn.Module):
    """`forward(y_B) -> e_BE`: the sum over `config.kinds` of what each says, or of its absence.

    With classes alone and nothing dropped it is, and initialises as, `nn.Embedding(classes,
    dim)`; `weight` are the classes' vectors. `size`: height and width of the first frame, pixels;
    None leaves the frame out, as in a critic, which sees it in the clip itself.
    """

    def __init__(
        self, classes: int, dim: int, config: ConditionsConfig, size: Size | None = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.kinds = [k for k in KINDS if k in config.kinds and not (k == "image" and size is None)]
        if "class" in self.kinds:
            self.weight = nn.Parameter(torch.empty(classes, dim))
        if "text" in self.kinds:
            learned = config.encoder == "tokens"
            self.text = TokenEncoder(config, dim) if learned else _sentence_head(config, dim)
        if "image" in self.kinds and size is not None:
            self.image = FrameEncoder(size, dim)
        if "vector" in self.kinds:
            self.vector = _perceptron(config.vector_dim, dim)
        self.absent_KE = None
        if config.optional and self.kinds:
            self.absent_KE = nn.Parameter(torch.zeros(len(self.kinds), dim))
        self.reset(1.0)

    def reset(self, std: float) -> None:
        """Draws anew what decides how large the embeddings are: about `std` each dimension."""
        for kind in self.kinds:
            if kind == "class":
                nn.init.normal_(self.weight, std=std)
            else:
                last: nn.Linear = getattr(self, kind)[-1]
                nn.init.normal_(last.weight, std=std * last.in_features**-0.5)
                nn.init.zeros_(last.bias)

    def forward(self, y_B: Condition | Tensor) -> Tensor:
        """Conditions, or class ids (int64), of B clips -> [B, E]."""
        y = Condition.of(y_B)
        if y.embedded_BE is not None:
            return y.embedded_BE
        if not self.kinds:  # a critic's, where a first frame is all that is known
            return torch.zeros(len(y.labels_B), self.dim, device=y.labels_B.device)
        said = {"text": y.text, "image": y.frame_BCHW, "vector": y.vector_BV}
        e_KBE: list[Tensor] = [
            F.embedding(y.labels_B, self.weight)
            if kind == "class"
            else getattr(self, kind)(said[kind])
            for kind in self.kinds
        ]
        if self.absent_KE is not None:
            given_KB1 = [y.given_BK[:, KINDS.index(kind), None] for kind in self.kinds]
            e_KBE = [
                torch.where(given_B1, e_BE, absent_E)
                for given_B1, e_BE, absent_E in zip(given_KB1, e_KBE, self.absent_KE, strict=True)
            ]
        return torch.stack(e_KBE).sum(0) if len(e_KBE) > 1 else e_KBE[0]


class TokenEncoder(nn.Sequential):
    """Token ids [B, L] -> [B, E]: word vectors through a small transformer, their mean, a layer.

    Pre-norm (arXiv 2002.04745), blocks that begin as the identity (arXiv 2003.04887): at first a
    bag of words, in which a combination never read is as near as its parts. Attention is written
    out, for fused kernels have no double backward; padding is neither attended to nor averaged.
    """

    def __init__(self, config: ConditionsConfig, dim: int) -> None:
        super().__init__(_Words(config.text_length), nn.Linear(_WIDTH, dim))


class _Words(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.words = nn.Embedding(2 * ROWS, _WIDTH)
        self.places_LD = nn.Parameter(0.1 * torch.randn(length, _WIDTH))
        self.blocks = nn.ModuleList(_Attention() for _ in range(_LAYERS))

    def forward(self, tokens_BL: Tensor) -> Tensor:
        real_BL = tokens_BL > 0
        # Hash embeddings (arXiv 1709.03933): words that share one row seldom share the other.
        hash_BL = (tokens_BL - 1).clamp(min=0)
        word_BLD = self.words(hash_BL % ROWS) + self.words(ROWS + hash_BL // ROWS)
        x_BLD = 0.5**0.5 * word_BLD + self.places_LD
        for block in self.blocks:
            x_BLD = block(x_BLD, real_BL)
        real_BL1 = real_BL[:, :, None].to(x_BLD.dtype)
        mean_BD = (x_BLD * real_BL1).sum(1) / real_BL1.sum(1).clamp(min=1)
        return F.layer_norm(mean_BD, (_WIDTH,))


class _Attention(nn.Module):
    """Self-attention and a perceptron, each added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        # No bias: a key's cancels in the softmax, where Adam would make full steps of rounding.
        self.query_key_value = nn.Linear(_WIDTH, 3 * _WIDTH, bias=False)
        self.mix = nn.Linear(_WIDTH, _WIDTH, bias=False)
        self.widen = nn.Linear(_WIDTH, 2 * _WIDTH)
        self.narrow = nn.Linear(2 * _WIDTH, _WIDTH, bias=False)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x_BLD: Tensor, real_BL: Tensor) -> Tensor:
        parts = self.query_key_value(F.layer_norm(x_BLD, (_WIDTH,))).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in parts)
        score_BHLL = q @ k.transpose(2, 3) * (_WIDTH // _HEADS) ** -0.5
        # Finite: a text of no words at all must not become NaN.
        share_BHLL = score_BHLL.masked_fill(~real_BL[:, None, None], -1e4).softmax(-1)
        x_BLD = x_BLD + self.mix((share_BHLL @ v).transpose(1, 2).flatten(2))
        hidden = F.leaky_relu(self.widen(F.layer_norm(x_BLD, (_WIDTH,))), 0.2)
        narrowed: Tensor = self.narrow(hidden)
        return x_BLD + narrowed


class FrameEncoder(nn.Sequential):
    """Frames [B, 3, H, W] in [-1, 1] -> [B, E]: strided convolutions to 4 to 7 pixels, a layer."""

    def __init__(self, size: Size, dim: int) -> None:
        layers: list[nn.Module] = []
        inputs, outputs = RGB, _FRAME_WIDTH
        height, width = sides(size)
        while height % 2 == width % 2 == 0 and min(height, width) >= 8:
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
            nn.init.kaiming_normal_(layers[-2].weight, a=0.2)  # type: ignore[arg-type]
            inputs, outputs = outputs, min(2 * outputs, 128)
            height, width = height // 2, width // 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(inputs * height * width, dim))


class _UnitSize(nn.Module):
    """Vectors of length 1 -> of mean square 1."""

    def forward(self, x_BV: Tensor) -> Tensor:
        return x_BV * math.sqrt(x_BV.shape[1])


def _perceptron(inputs: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, dim), nn.LeakyReLU(0.2), nn.Linear(dim, dim))


def _sentence_head(config: ConditionsConfig, dim: int) -> nn.Sequential:
    return nn.Sequential(_UnitSize(), *_perceptron(config.text_dim, dim))
