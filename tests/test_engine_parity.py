"""The pair under ZeRO equals a plain PyTorch loop, parameter by parameter.

The cases of one number of ranks train in one launch, one after the other; a test looks at what
its case ended with.
"""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from raygen import reshard
from raygen.config import Config
from tests.parity_worker import Case

TOLERANCE = 1e-6
STAGES = range(4)
HANDOVER = tempfile.TemporaryDirectory(prefix="raygen-handover-")

Result = dict[str, Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(cases: Iterable[Case], ranks: int, device: str = "cpu") -> dict[Case, Result]:
    cases = list(dict.fromkeys(cases))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cases.pkl").write_bytes(pickle.dumps(cases))
        common = {
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "DS_ACCELERATOR": device,
            "DEVICE": device,
            "HANDOVER": HANDOVER.name,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, "-m", "tests.parity_worker", f"{folder}/cases.pkl", folder]
        workers = [
            subprocess.Popen(
                command,
                env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=(Path(folder) / f"{rank}.log").open("wb"),
                stderr=subprocess.STDOUT,
            )
            for rank in range(ranks)
        ]
        for rank, worker in enumerate(workers):
            code = worker.wait(timeout=500)
            assert code == 0, (Path(folder) / f"{rank}.log").read_text()[-3000:]
        return {case: torch.load(f"{folder}/{n}.pt") for n, case in enumerate(cases)}


def results(ranks: int) -> dict[Case, Result]:
    """By case of `CASES`; a launch that failed is not tried again for every test."""
    outcome = outcome_of(ranks)
    if isinstance(outcome, AssertionError):
        raise outcome
    return outcome


@functools.cache
def outcome_of(ranks: int) -> dict[Case, Result] | AssertionError:
    try:
        return launch(CASES[ranks], ranks)
    except AssertionError as error:
        return error


def plain(case: Case) -> Case:
    """The plain loop's counterpart, to which it is all one how the work is spread."""
    kept = [o for o in case.overrides if not o.startswith("train.") or "batch_size" in o]
    form = () if case.config.exact_penalty else ("loss.penalty=finite",)
    return Case((*kept, *form), "plain", stop=case.stop, steps=case.steps)


def furthest(ended: Result, expected: Result, networks: tuple[str, ...] = ()) -> tuple[float, str]:
    """The largest difference of two results, and where it is."""
    return max(
        ((ended[network][name] - tensor).abs().max().item(), f"{network}.{name}")
        for network in networks or ("generator", "critic", "ema")
        for name, tensor in expected[network].items()
        if tensor.is_floating_point()
    )


def close(ended: Result, expected: Result, tolerance: float = TOLERANCE) -> None:
    difference, where = furthest(ended, expected)
    assert difference <= tolerance, f"{where} is off by {difference:.2e}"


OBJECTIVES = {"relativistic": (), "bce": ("loss.kind=bce", "loss.gamma=0")}
CONV3D = ("model.kind=conv3d", *OBJECTIVES["bce"])
# A larger step than the default's keeps the difference of two logits above their rounding.
FINITE = ("loss.penalty_sigma=0.3", "train.zero_stage=3", "train.critic_stage=3")
BOTH_FORMS = {
    **{f"{stage}": (f"train.zero_stage={stage}",) for stage in STAGES},
    "3 and 3": FINITE,
}


def case_of(objective: str, stage: int, ranks: int, accumulated: int) -> Case:
    batch_size = 6 if ranks == 3 else 8
    # With six clips of seed 0 a hidden unit of the critic's head is on for all of them. Its bias
    # then cancels in the relativistic loss, and Adam makes full steps of what rounding leaves.
    seed = 2 if ranks == 3 else 0
    return Case(
        (
            *OBJECTIVES[objective],
            f"seed={seed}",
            f"train.zero_stage={stage}",
            f"train.batch_size={batch_size}",
            f"train.micro_batch={batch_size // ranks // accumulated}",
        )
    )


def matrix(ranks: int) -> Iterator[Case]:
    for objective, stage, accumulated in itertools.product(OBJECTIVES, STAGES, (1, 2)):
        yield case_of(objective, stage, ranks, accumulated)


VARIANTS = {
    "finite differences": FINITE,
    "finite differences, accumulated": (*FINITE, "train.micro_batch=2"),
    "finite differences where they need not be": ("loss.penalty=finite", *FINITE[:1]),
    "generator 0, critic 2": ("train.zero_stage=0", "train.critic_stage=2"),
    "generator 1, critic 3": (*FINITE, "train.zero_stage=1"),
    **{
        f"offload, {stage}": (f"train.zero_stage={stage}", "train.offload=true") for stage in (1, 3)
    },
    "offload, finite differences": (*FINITE, "train.offload=true"),
    **{f"recompute, {n}": (f"train.zero_stage={n}", "train.recompute=true") for n in (0, 3)},
    # Their rounding is twice the strided family's, and so the learning rate half as large.
    **{
        f"recompute, {kind}": (
            *(f"train.zero_stage={stage}", "train.recompute=true", f"model.kind={kind}", "seed=3"),
            *("optim.generator.lr=2e-5", "optim.critic.lr=2e-5"),
        )
        for kind, stage in (("upsampling", 1), ("twostream", 3))
    },
    "recompute, finite differences": (*FINITE, "train.recompute=true"),
    "two critic steps, 1": ("loss.critic_steps=2", "train.zero_stage=1"),
    "two critic steps, 3, accumulated": (
        *("loss.critic_steps=2", "loss.penalty_every=3"),
        *("train.zero_stage=3", "train.micro_batch=2"),
    ),
    **{
        f"every kind of condition, dropped at random, {stage}": (
            *("conditions.kinds=[class,text,image,vector]", "conditions.drop=0.4"),
            *("conditions.vector_dim=3", "conditions.text_length=4", "seed=1"),
            # The frame's encoder and layers that begin at zero have gradients near rounding, and
            # with other seeds so has a bias of the critic's head, which cancels.
            *("optim.generator.lr=1e-5", "optim.critic.lr=1e-5"),
            *(f"train.zero_stage={stage}", "train.micro_batch=2"),
        )
        for stage in (1, 3)
    },
    **{
        f"told from other conditions, texts crossed, {name}": (
            *("conditions.kinds=[class,text,image,vector]", "conditions.drop=0.3"),
            *("loss.contrast=0.7", "conditions.crossed=0.5"),
            *("conditions.vector_dim=3", "conditions.text_length=4"),
            *("optim.generator.lr=1e-5", "optim.critic.lr=1e-5", "seed=1", *form),
        )
        for name, form in {
            "1": ("train.zero_stage=1", "train.micro_batch=2"),
            "3": ("train.zero_stage=3", "loss.critic_steps=2"),
            "3 and 3": FINITE,
        }.items()
    },
    **{
        f"super-resolution, {stage}": (
            *("model.kind=superres", "model.factor=2", "model.blocks=1", "data.size=32x64"),
            *("loss.pixels=0.5", "augment.translate=0.2", f"train.zero_stage={stage}", "seed=7"),
            *("train.micro_batch=2", "optim.generator.lr=1e-5", "optim.critic.lr=1e-5"),
        )
        for stage in (1, 3)
    },
    "channels last": ("train.zero_stage=1", "train.channels_last=true"),
    **{
        f"clipped, {stage}": ("optim.clip_norm=0.5", f"train.zero_stage={stage}")
        for stage in STAGES
    },
}
# Everything that looks at a batch as a whole, and every schedule.
EVERYTHING = (
    *("loss.kind=hinge", "loss.r2=0.5", "loss.lecam=0.3", "loss.features=0.5", "loss.contrast=0.4"),
    *("loss.roughness=2", "loss.patches=0.5", "augment.saturation=0.5", "augment.cutout=0.3"),
    *("augment.adaptive=true", "augment.span=40", "augment.target=-0.5"),
    *("augment.probability=0.5", "augment.probability_end=0.3", "optim.burn_in=0.8"),
    *("optim.ema_halflife_end=1", "optim.generator.beta2_end=0.999"),
)
EVERYTHING_AT = {
    "0": (*EVERYTHING, "train.zero_stage=0"),
    "3, accumulated": (*EVERYTHING, "train.zero_stage=3", "train.micro_batch=2"),
    "3 and 3": (*EVERYTHING, *FINITE),
    "2, relativistic": (
        *(*EVERYTHING[1:], "loss.critic_steps=2"),
        *("train.zero_stage=2", "train.micro_batch=4"),
    ),
}
STEEP = ("optim.generator.lr=1e-3", "optim.critic.lr=1e-3")
BF16 = {name: (*STEEP, *form, "train.precision=bf16") for name, form in BOTH_FORMS.items()}
SLOWER = Case(("train.zero_stage=1",), lr_scale=0.5)
WRONG = [
    ("engine", 0, "relativistic"),
    ("engine", 3, "bce"),
    *(("unfrozen", stage, "relativistic") for stage in (0, 1, 2)),
    *(("penalty", stage, "relativistic") for stage in (0, 1, 2)),
    *(("clipping", stage, "bce") for stage in STAGES),
    ("none", 3, "relativistic"),  # that is a double backward through stage 3
]
RIGHT = [*(("none", stage, "relativistic") for stage in (0, 1, 2)), ("none", 3, "bce")]


def by_hand(mistake: str, stage: int, objective: str) -> Case:
    return Case((*OBJECTIVES[objective], f"train.zero_stage={stage}"), "wrong", mistake=mistake)


def part(form: str, start: int, stop: int, source: str = "", handover: str = "") -> Case:
    """A part of twenty steps; the folders handed over are told apart by `form`."""
    return Case(
        BOTH_FORMS[form],
        start=start,
        stop=stop,
        steps=20,
        source=source and f"{source} {form}",
        handover=handover and f"{handover} {form}",
    )


CASES = {
    1: [
        *matrix(1),
        *(Case(overrides) for overrides in (*VARIANTS.values(), *EVERYTHING_AT.values())),
        *(Case((*CONV3D, f"train.zero_stage={stage}")) for stage in STAGES),
        *(Case(overrides) for overrides in BF16.values()),
        *(Case(BOTH_FORMS[form], "misuse") for form in ("1", "3 and 3")),
        SLOWER,
        # Last: what goes wrong in DeepSpeed's hooks may stay wrong.
        *(by_hand(*how) for how in RIGHT + WRONG),
    ],
    2: [
        *matrix(2),
        *(Case(overrides) for overrides in (*VARIANTS.values(), *EVERYTHING_AT.values())),
        *(Case(form, resume_at=at) for form in BOTH_FORMS.values() for at in (-1, 3)),
        *(Case(EVERYTHING_AT["3 and 3"], resume_at=at) for at in (-1, 3)),
        *(Case(BF16["1"], resume_at=at) for at in (-1, 3)),
        *(part(form, 0, 20) for form in BOTH_FORMS),
        *(part(form, 0, 7, handover="first") for form in BOTH_FORMS),
    ],
    3: list(matrix(3)),
}
CASES[1] += [plain(c) for cases in list(CASES.values()) for c in cases if c.kind != "misuse"]
CASES[1] += [
    Case(("optim.generator.lr=2.5e-5", "optim.critic.lr=2.5e-5"), "plain"),
    Case(STEEP, "plain", stop=0),
]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_five_steps_equal_plain_pytorch(
    ranks: int, stage: int, objective: str, accumulated: int
) -> None:
    case = case_of(objective, stage, ranks, accumulated)
    close(results(ranks)[case], results(1)[plain(case)])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_variants_equal_plain_pytorch(ranks: int, variant: str) -> None:
    case = Case(VARIANTS[variant])
    close(results(ranks)[case], results(1)[plain(case)])


@pytest.mark.parametrize("form", EVERYTHING_AT)
@pytest.mark.parametrize("ranks", [1, 2])
def test_with_every_term_on_it_equals_plain_pytorch(ranks: int, form: str) -> None:
    case = Case(EVERYTHING_AT[form])
    ended, expected = results(ranks)[case], results(1)[plain(case)]
    close(ended, expected)
    # Alike in what the terms remember, too; the probability has moved.
    remembered = ended["objective"]
    assert remembered["probability"] == pytest.approx(expected["objective"]["probability"])
    assert 0 < remembered["probability"] < 0.5
    for name, (_, mean_K) in remembered["averages"].items():
        assert mean_K == pytest.approx(expected["objective"]["averages"][name], abs=1e-5), name


@pytest.mark.parametrize("stage", STAGES)
def test_batch_norm_sees_fakes_in_the_same_company_in_both_half_steps(stage: int) -> None:
    case = Case((*CONV3D, f"train.zero_stage={stage}"))
    close(results(1)[case], results(1)[plain(case)])


def test_the_learning_rates_can_be_scaled() -> None:
    halved = Case(("optim.generator.lr=2.5e-5", "optim.critic.lr=2.5e-5"), "plain")
    close(results(1)[SLOWER], results(1)[halved])


@pytest.mark.parametrize("form", BF16)
def test_bf16_goes_where_fp32_goes(form: str) -> None:
    """After five steps, nearer to where fp32 went than a fixed part of the way there."""
    case = Case(BF16[form])
    ended, expected = results(1)[case], results(1)[plain(case)]
    began = results(1)[Case(STEEP, "plain", stop=0)]
    # Finite differences of bf16 logits are noisier than their derivatives.
    part_of_way = 0.7 if form == "3 and 3" else 0.5
    for network in ("generator", "critic", "ema"):
        way = distance(began[network], expected[network])
        assert distance(ended[network], expected[network]) < part_of_way * way


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_is_the_same_at_every_stage(stage: int) -> None:
    ended, whole = (results(1)[Case(BF16[form])] for form in (f"{stage}", "0"))
    began = results(1)[Case(STEEP, "plain", stop=0)]
    for network in ("generator", "critic", "ema"):
        # Weights that round the other way now and then.
        assert distance(ended[network], whole[network]) < 0.02 * distance(
            began[network], whole[network]
        )


def distance(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    squares = [(ones[name] - tensor).square().sum() for name, tensor in others.items()]
    return torch.stack(squares).sum().sqrt().item()


@pytest.mark.parametrize("form", [*BOTH_FORMS, "bf16", "everything"])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(form: str) -> None:
    named = {**BOTH_FORMS, "bf16": BF16["1"], "everything": EVERYTHING_AT["3 and 3"]}
    overrides = named[form]
    through, resumed = (results(2)[Case(overrides, resume_at=at)] for at in (-1, 3))
    for network in ("generator", "critic", "ema"):
        for name, expected in through[network].items():
            assert torch.equal(resumed[network][name], expected), f"{network}.{name}"
    assert resumed["objective"] == through["objective"]


@functools.cache
def elsewhere() -> dict[Case, Result]:
    """Steps 13 to 20 on two ranks, after 7 to 13 on one, after the first seven on two."""
    results(2)
    convert("first")
    launch([part(form, 7, 13, "first", "second") for form in BOTH_FORMS], 1)
    convert("second")
    return launch([part(form, 13, 20, "second") for form in BOTH_FORMS], 2)


def convert(stop: str) -> None:
    folders = [f"{HANDOVER.name}/{stop} {form}" for form in BOTH_FORMS if form != "0"]
    with ThreadPoolExecutor(2) as threads:
        list(
            threads.map(lambda folder: reshard.to_universal(folder, f"{folder}/universal"), folders)
        )


@pytest.mark.parametrize("form", BOTH_FORMS)
def test_twenty_steps_on_two_ranks_and_one_and_two_are_twenty_steps_on_two(form: str) -> None:
    close(elsewhere()[part(form, 13, 20, "second")], results(2)[part(form, 0, 20)], 1e-5)


@pytest.mark.parametrize(("mistake", "stage", "objective"), RIGHT)
def test_engines_driven_by_hand_can_be_right(mistake: str, stage: int, objective: str) -> None:
    case = by_hand(mistake, stage, objective)
    difference, where = furthest(results(1)[case], results(1)[plain(case)], ("generator", "critic"))
    assert difference <= TOLERANCE, f"{where} is off by {difference:.2e}"


@pytest.mark.parametrize(("mistake", "stage", "objective"), WRONG)
def test_the_comparison_notices_each_mistake(mistake: str, stage: int, objective: str) -> None:
    case = by_hand(mistake, stage, objective)
    ended = results(1)[case]
    if "error" not in ended:
        difference, _ = furthest(ended, results(1)[plain(case)], ("generator", "critic"))
        assert difference > 10 * TOLERANCE


@pytest.mark.parametrize("form", ["1", "3 and 3"])
def test_a_turn_cannot_be_misused(form: str) -> None:
    found = results(1)[Case(BOTH_FORMS[form], "misuse")]
    wrong = "is wrong" if form == "3 and 3" else "nothing"
    assert wrong in found["a double backward at stage 3"]
    assert found["training the opponent"] != "nothing"
    assert "turn is over" in found["the critic's engine in the generator's turn"]
    assert "turn is over" in found["a critic that is frozen no more"]
    assert all(gradient is None for gradient in found["gradients of the critic"])
    assert not found["frozen for good"]
    assert found["finite"]
    assert not found["finite with a nan"]


def test_what_is_decided_for_the_user_is_said() -> None:
    alone, accumulated = (case_of("relativistic", 1, 1, times) for times in (1, 2))
    by_default, split, finite = (
        results(1)[case]["notes"] for case in (alone, accumulated, Case(FINITE))
    )
    assert by_default == []
    assert [note.partition(":")[0] for note in split] == ["train.micro_batch=4"]
    assert [note.partition(",")[0] for note in finite] == ["loss.penalty=finite"]


def test_gradient_norms_are_those_of_the_whole_batch() -> None:
    alone, together = (results(ranks)[case_of("bce", 1, ranks, 2)]["figures"] for ranks in (1, 2))
    for name in ("grad/generator", "grad/critic"):
        assert alone[name].item() > 0
        torch.testing.assert_close(alone[name], together[name], rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("share", "micro_batch", "batches"), [(8, None, 1), (8, 8, 1), (8, 9, 1), (8, 7, 2), (7, 3, 7)]
)
def test_accumulation_is_the_least_that_fits(
    share: int, micro_batch: int | None, batches: int
) -> None:
    config = Config.load("tiny", {"train.micro_batch": micro_batch})
    assert config.train.accumulation(share) == batches


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_compiled_generator_is_the_same(stage: int) -> None:
    case = Case((f"train.zero_stage={stage}", "train.compile=true"))
    close(launch([case], 1)[case], results(1)[plain(case)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_five_steps_on_a_gpu_equal_plain_pytorch_there() -> None:
    cases = [Case(form) for form in BOTH_FORMS.values()]
    ended = launch([*cases, *map(plain, cases)], 1, device="cuda")
    for case in cases:
        # Convolutions' algorithms differ in rounding on a GPU, and Adam magnifies it.
        close(ended[case], ended[plain(case)], 10 * TOLERANCE)
