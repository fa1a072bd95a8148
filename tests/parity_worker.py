"""One rank of the parity test: trains what a list of cases says, and saves what each ends with.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 \
        python -m tests.parity_worker CASES.pkl OUT_FOLDER

All cases in one process, since importing DeepSpeed takes longer than training any of them.
DEVICE=cuda trains on a GPU, without TF32; HANDOVER is the folder of what is handed over.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, distributed

from raygen import packing
from raygen.conditioning import Conditioner
from raygen.conditions import Condition
from raygen.config import Config
from raygen.draws import Draws
from raygen.ema import ParameterEma
from tests.plain_pair import PlainPair

CLASSES = 3
BASE = {
    "data.frames": 4,
    "data.size": 16,
    "model.latent_dim": 8,
    "model.class_dim": 8,
    # Wider than its eight groups: a bias before a group of one channel has no gradient but
    # rounding, and Adam without momentum makes full steps of that.
    "model.generator_width": 16,
    "model.critic_width": 8,
    "model.kind": "strided",
    "train.batch_size": 8,
    "loss.gamma": 4.0,
    "loss.gamma_decay": 0.1,
    "loss.roughness": 0.0,
    "loss.contrast": 0.0,
    "loss.penalty_every": 2,
    "augment.colour": 0.5,
    "augment.cutout": 0.0,
    # Adam turns a gradient's relative error into a share of the learning rate, and where terms
    # cancel that error is large: the order in which ranks add up must stay below the tolerance.
    "optim.generator.lr": 5e-5,
    "optim.critic.lr": 5e-5,
    "optim.ema_halflife": 20,
}
DEVICE = torch.device(os.environ.get("DEVICE", "cpu"))
HANDOVER = Path(os.environ.get("HANDOVER", ""))


@dataclass(frozen=True)
class Case:
    """A training from step `start` to `stop`, on a schedule of `steps`.

    `plain` is the PyTorch loop, over whole batches; `wrong` are tests.wrong_pair's engines with
    `mistake`; `misuse` trains nothing and says what came of each attempt to misuse a turn. Before
    `resume_at` the engines are saved and new ones go on. `handover` names the folder, below
    HANDOVER, in which they are left for another number of ranks to go on from as its `source`.
    """

    overrides: tuple[str, ...] = ()
    kind: Literal["pair", "plain", "wrong", "misuse"] = "pair"
    mistake: str = "none"
    lr_scale: float = 1.0
    start: int = 0
    stop: int = 5
    steps: int = 5
    resume_at: int = -1
    source: str = ""
    handover: str = ""

    @property
    def config(self) -> Config:
        """The small configuration that all cases share, with this case's overrides."""
        return Config.load("tiny", [*(f"{k}={v}" for k, v in BASE.items()), *self.overrides])


def batches(config: Config, step: int, rows: slice) -> list[tuple[Tensor, Any]]:
    """The `rows` of a step's global batches of noise clips, the same in every process.

    With class ids, or with conditions where the config knows other kinds.
    """
    made: list[tuple[Tensor, Any]] = []
    data, count = config.data, config.train.batch_size
    for number in range(config.loss.critic_steps):
        rng = torch.Generator().manual_seed(100 + step + 1000 * number)
        shape = (count, 3, data.frames, data.height, data.width)
        x_BCTHW = torch.rand(shape, generator=rng) * 2 - 1
        y_B = torch.randint(CLASSES, (count,), generator=rng)
        if config.conditions.kinds == ("class",):
            made.append((x_BCTHW[rows].to(DEVICE), y_B[rows].to(DEVICE)))
        else:
            given_B = every_kind(config, x_BCTHW, y_B, rng)
            made.append((x_BCTHW[rows].to(DEVICE), given_B.rows(rows).to(DEVICE)))
    return made


def every_kind(config: Config, x_BCTHW: Tensor, y_B: Tensor, rng: torch.Generator) -> Condition:
    """Texts of one to three words, some of none, first frames and vectors beside the classes."""
    count, words = len(y_B), ["red", "circle", "up"]
    make = Conditioner(config.conditions, config.data.size)
    lengths = torch.randint(4, (count,), generator=rng).tolist()
    vectors = torch.randn(count, config.conditions.vector_dim, generator=rng).tolist()
    return make(
        y_B.tolist(),
        texts=[" ".join(words[:length]) for length in lengths],
        frames=list(x_BCTHW[:, :, 0]),
        vectors=vectors,
    )


def train_pair(case: Case) -> dict[str, Any]:
    """The engines under test; the state of both networks at the end."""
    from raygen.engine import Pair

    config = case.config
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    if case.source:
        pair = taken_over(HANDOVER / case.source, config)
    else:
        pair = Pair(config, CLASSES, device=DEVICE, world_size=world_size, lr_scale=case.lr_scale)
    share = config.train.batch_size // world_size
    rows = slice(rank * share, (rank + 1) * share)
    figures: dict[str, Tensor] = {}
    for step in range(case.start, case.stop):
        if step == case.resume_at:
            pair = restarted(pair, config)
        figures = pair.step(
            batches(config, step, rows),
            Draws.at(config, step, rows),
            step=step,
            progress=step / case.steps,
        )
    ema = pair.ema.gather()
    if case.handover:
        leave(pair, HANDOVER / case.handover)
        if rank == 0:
            beside = {"ema": ema, "objective": pair.objective.state()}
            torch.save(beside, HANDOVER / case.handover / "beside.pt")
    return {
        "generator": whole(pair.generator.module, pair.generator.stage),
        "critic": whole(pair.critic.module, pair.critic.stage),
        "ema": ema,
        "figures": figures,
        "notes": pair.notes,
        "objective": pair.objective.state(),
    }


def whole(module: torch.nn.Module, stage: int) -> dict[str, Tensor]:
    """A network's parameters and buffers in fp32; collective at stage 3."""
    # DeepSpeed's own GatheredParameters refuses layers whose inputs took no gradient.
    return ParameterEma(module, sharded=stage == 3).gather()


def leave(pair: Any, folder: Path) -> None:
    """Writes this rank's part of a checkpoint, as a training does."""
    for name, data in packing.serialize(pair.states()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def restarted(pair: Any, config: Config) -> Any:
    """A new pair, of other initial weights, that takes up a checkpoint of this one."""
    from raygen.engine import Pair

    average = pair.ema.gather()
    folder = [tempfile.mkdtemp()]
    distributed.broadcast_object_list(folder)
    leave(pair, Path(folder[0]))
    distributed.barrier()
    other = Config.parse(config.dump(), {"seed": config.seed + 1})
    new = Pair(other, CLASSES, device=DEVICE, world_size=distributed.get_world_size())
    new.load(folder[0], average, pair.objective.state())
    distributed.barrier()
    shutil.rmtree(folder[0], ignore_errors=True)
    return new


def taken_over(folder: Path, config: Config) -> Any:
    """A new pair that goes on from what another number of ranks left in `folder`.

    `folder`/universal, where it is there, is what raygen.reshard made of it.
    """
    from raygen.engine import Pair

    universal = folder / "universal"
    other = Config.parse(config.dump(), {"seed": config.seed + 1})
    new = Pair(
        other,
        CLASSES,
        device=DEVICE,
        world_size=distributed.get_world_size(),
        universal=universal.is_dir(),
    )
    beside = torch.load(folder / "beside.pt")
    new.load(str(folder), beside["ema"], beside["objective"], str(universal))
    return new


def train_plain(case: Case) -> dict[str, Any]:
    """The same training in a plain loop."""
    config, rows = case.config, slice(0, case.config.train.batch_size)
    plain = PlainPair(config, CLASSES, DEVICE)
    for step in range(case.start, case.stop):
        draws = Draws.at(config, step, rows)
        plain.step(batches(config, step, rows), draws, step=step, progress=step / case.steps)
    generator, critic = plain.generator.state_dict(), plain.critic.state_dict()
    averages = {name: mean.flatten().tolist() for name, mean in plain.means.items()}
    objective = {"probability": plain.probability, "averages": averages}
    return {"generator": generator, "critic": critic, "ema": plain.average, "objective": objective}


def train_wrong(case: Case) -> dict[str, Any]:
    """Engines driven by hand; what they end with, or the `error` that stopped them."""
    from tests.wrong_pair import WrongPair

    config, rows = case.config, slice(0, case.config.train.batch_size)
    wrong = WrongPair(config, CLASSES, config.train.zero_stage, case.mistake)
    try:
        for step in range(case.start, case.stop):
            ((x_BCTHW, y_B),) = batches(config, step, rows)
            draws = Draws.at(config, step, rows)
            wrong.step(x_BCTHW, y_B, draws, step=step, progress=step / case.steps)
    except (RuntimeError, AssertionError, IndexError) as error:
        return {"error": str(error)}
    stage = config.train.zero_stage
    generator, critic = wrong.generator.module, wrong.critic.module
    return {"generator": whole(generator, stage), "critic": whole(critic, stage)}


def misuse(case: Case) -> dict[str, Any]:
    """What came of each attempt to misuse a pair's turns: the error, or a finding."""
    from raygen.engine import Pair
    from raygen.network import turn

    config, rows = case.config, slice(0, case.config.train.batch_size)
    pair = Pair(config, CLASSES, device=DEVICE, world_size=1)
    ((x_BCTHW, y_B),) = batches(config, 0, rows)
    z_BD = Draws.at(config, 0, rows).generator.z_BD
    found: dict[str, Any] = {}

    def attempt(name: str, act: Callable[[], object]) -> None:
        try:
            act()
            found[name] = "nothing"
        except (RuntimeError, AssertionError) as error:
            found[name] = str(error)

    with turn(pair.critic, against=pair.generator) as (critic, generate):
        frozen = generate(z_BD, y_B)
        attempt("a double backward at stage 3", lambda: critic.gradient_penalty(x_BCTHW, y_B))
        attempt("training the opponent", lambda: critic.minimise(frozen.mean()))
    with turn(pair.generator, against=pair.critic) as (generator, judge):
        attempt("the critic's engine in the generator's turn", lambda: critic(x_BCTHW, y_B))
        generator.minimise(judge(generator(z_BD, y_B), y_B).mean())
        found["gradients of the critic"] = [p.grad for p in pair.critic.module.parameters()]
    attempt("a critic that is frozen no more", lambda: judge(x_BCTHW, y_B))
    found["frozen for good"] = [
        name
        for network in (pair.generator, pair.critic)
        for name, p in network.module.named_parameters()
        if not p.requires_grad
    ]
    found["finite"] = pair.finite()
    last: Any = list(pair.critic.module.parameters())[-1]
    held = last.ds_tensor if pair.critic.stage == 3 else last.data
    held.view(-1)[-1] = torch.nan
    found["finite with a nan"] = pair.finite()
    return found


def on_cpu(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: on_cpu(branch) for name, branch in tree.items()}
    return tree.cpu() if isinstance(tree, Tensor) else tree


def main() -> None:
    from raygen import ranks

    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    cases: list[Case] = pickle.loads(Path(sys.argv[1]).read_bytes())
    ranks.join(DEVICE)
    train = {"pair": train_pair, "plain": train_plain, "wrong": train_wrong, "misuse": misuse}
    for number, case in enumerate(cases):
        result = train[case.kind](case)
        if distributed.get_rank() == 0:
            torch.save(on_cpu(result), Path(sys.argv[2]) / f"{number}.pt")
    # Left to the interpreter's exit, gloo's threads now and then abort it.
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
