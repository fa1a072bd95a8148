"""The generator's exponential moving average, in fp32, sharded where the weights are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

# The half-life grows with what was seen, up to its setting (StyleGAN2-ADA's ramp-up), or the
# random initial weights would still be in the average of a short run.
RAMP_UP = 0.05


class ParameterEma:
    """Follows the parameters and buffers of `module`; `sharded` means ZeRO stage 3.

    Sharded, a rank keeps the average of its own shards only: an update costs no communication.
    """

    def __init__(self, module: nn.Module, *, sharded: bool) -> None:
        self.module = module
        self.sharded = sharded
        self._average = {name: t.detach().float().clone() for name, t in self._own().items()}

    @torch.no_grad()
    def update(self, *, clips: int, seen: int, halflife: float) -> None:
        """After a step on `clips` clips, with `seen` in all; `halflife` in clips."""
        halflife = min(halflife, seen * RAMP_UP)
        weight = 1.0 if halflife == 0 else 1 - 0.5 ** (clips / halflife)
        for name, tensor in self._own().items():
            self._average[name].lerp_(tensor.float(), weight)

    @torch.no_grad()
    def gather(self) -> dict[str, Tensor]:
        """A copy of the whole average on the CPU, by name; a collective call when sharded."""
        whole = {}
        parameters = dict(self.module.named_parameters())
        for name, average in self._average.items():
            if self.sharded and name in parameters:
                whole[name] = _unshard(average, parameters[name]).cpu()
            else:
                whole[name] = average.to("cpu", copy=True)
        return {name: tensor.contiguous() for name, tensor in whole.items()}

    @torch.no_grad()
    def load(self, whole: dict[str, Tensor]) -> None:
        """Takes up what `gather` gave, at any world size."""
        parameters = dict(self.module.named_parameters())
        for name, average in self._average.items():
            tensor = whole[name].to(average.device)
            if self.sharded and name in parameters:
                tensor = _shard(tensor, average.numel())
            average.copy_(tensor)

    def _own(self) -> dict[str, Tensor]:
        def held(parameter: Any) -> Tensor:
            tensor: Tensor = parameter.ds_tensor if self.sharded else parameter.data
            return tensor

        return {
            **{name: held(p) for name, p in self.module.named_parameters()},
            **{name: b for name, b in self.module.named_buffers() if b.is_floating_point()},
        }


def _unshard(shard: Tensor, parameter: Any) -> Tensor:
    shards = [torch.empty_like(shard) for _ in range(distributed.get_world_size())]
    distributed.all_gather(shards, shard)
    flat = torch.cat([s.flatten() for s in shards])
    return flat[: parameter.ds_numel].view(parameter.ds_shape)


def _shard(whole: Tensor, length: int) -> Tensor:
    flat = whole.flatten()
    padded = flat.new_zeros(length * distributed.get_world_size())
    padded[: flat.numel()] = flat
    return padded.view(-1, length)[distributed.get_rank()]
