"""What recorded or surrogate training runs cost and reach, as tables: search's two families.

`lcbench` is YAHPO's surrogate of LCBench (Zimmer et al., Auto-PyTorch, 2021; Pfisterer et al.,
YAHPO Gym, 2022): a table of 2,000 drawn configurations by 52 epochs a task. `algoperf` is the
recorded runs of MLCommons' AlgoPerf submissions (Dahl et al., 2023): a workload's pool holds each
submission's configurations once, its replicates (the same configuration, another seed) as ways
that it may turn out, of which each simulated search draws one a configuration.

Losses are the lower the better and the best so far, whatever the metric was.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "hpo"
LEVELS = 52
CONFIGS = 2_000
Floats = NDArray[np.float64]

# Every other one, in the order of the surrogate's own list, so that neither half is chosen.
LCBENCH_TUNED = (
    "3945 34539 126026 146212 167149 167161 167181 167185 167200 168329 168331 168868 168910 "
    "189862 189866 189905 189908"
).split()
LCBENCH_REPORTED = (
    "7593 126025 126029 167104 167152 167168 167184 167190 167201 168330 168335 168908 189354 "
    "189865 189873 189906 189909"
).split()
# A workload and its variant are on the same side, or the half that is reported would be known.
ALGOPERF_TUNED = (
    "criteo1tb criteo1tb_embed_init imagenet_resnet imagenet_resnet_large_bn_init "
    "librispeech_deepspeech ogbg ogbg_model_size"
).split()
ALGOPERF_REPORTED = (
    "fastmri fastmri_tanh imagenet_vit librispeech_conformer librispeech_conformer_layernorm "
    "wmt wmt_glu_tanh"
).split()
TASKS = {
    ("lcbench", "tuned"): LCBENCH_TUNED,
    ("lcbench", "reported"): LCBENCH_REPORTED,
    ("algoperf", "tuned"): ALGOPERF_TUNED,
    ("algoperf", "reported"): ALGOPERF_REPORTED,
}
# What each workload is judged by, and whether more is better.
METRICS = {
    "criteo1tb": ("loss", False),
    "fastmri": ("ssim", True),
    "imagenet": ("accuracy", True),
    "librispeech": ("wer", False),
    "ogbg": ("mean_average_precision", True),
    "wmt": ("bleu", True),
}
# Later runs of `shampoo_submission` with a third of its time, and runs without hyper-parameters.
LEFT_OUT = ("shampoo",)


@dataclass(frozen=True)
class Task:
    """A pool of N configurations, each R ways that it may turn out, over at most L levels."""

    name: str
    vector_ND: Floats  # in [0, 1]
    loss_RNL: Floats  # best so far
    seconds_RNL: Floats  # since the start of training, restarts apart
    levels_RN: NDArray[np.int64]  # where the run ends by itself: L, or earlier
    replicates_N: NDArray[np.int64]  # how many of the R are there

    @property
    def full(self) -> float:
        """Seconds of a whole run: the mean over the pool."""
        ends = enumerate(self.levels_RN[0])
        return float(np.mean([self.seconds_RNL[0, n, end - 1] for n, end in ends]))


@dataclass(frozen=True)
class World:
    """A task as one simulated search finds it."""

    vector_ND: Floats
    loss_NL: Floats
    seconds_NL: Floats
    levels_N: NDArray[np.int64]
    best: float  # the least loss that there is
    scale: float  # that of a middling configuration, less the best: a regret of 1
    full: float


def world(task: Task, rng: np.random.Generator) -> World:
    """One replicate a configuration."""
    n = np.arange(len(task.vector_ND))
    r = rng.integers(0, task.replicates_N)
    loss, levels = task.loss_RNL[r, n], task.levels_RN[r, n]
    final = loss[n, levels - 1]
    best = float(final.min())
    scale = max(float(np.quantile(final, 0.75)) - best, 1e-9)
    return World(task.vector_ND, loss, task.seconds_RNL[r, n], levels, best, scale, task.full)


def available() -> bool:
    """Whether the data is beside the checkout."""
    return (DATA / "lcbench" / "model.onnx").exists()


@cache
def load(family: str, name: str) -> Task:
    """A task of a family."""
    return _lcbench(name) if family == "lcbench" else _algoperf(name)


def cached(name: str) -> Path:
    """A file of the benchmark's in the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raygen" / "search"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


# LCBench's ranges (config_space.json): name, least, most, on a log scale, whole.
_LCBENCH_SPACE = (
    ("batch_size", 16, 512, True, True),
    ("learning_rate", 1e-4, 1e-1, True, False),
    ("momentum", 0.1, 0.99, False, False),
    ("weight_decay", 1e-5, 1e-1, False, False),
    ("num_layers", 1, 5, False, True),
    ("max_units", 64, 1024, True, True),
    ("max_dropout", 0.0, 1.0, False, False),
)


def _lcbench(name: str) -> Task:
    file = cached(f"lcbench_{name}_{CONFIGS}.npz")
    if not file.exists():
        _tabulate(name, file)
    with np.load(file) as table:
        vector, loss, seconds = table["vector"], table["loss"], table["seconds"]
    n = len(vector)
    return Task(
        name, vector, loss[None], seconds[None], np.full((1, n), LEVELS), np.ones(n, np.int64)
    )


def _tabulate(name: str, file: Path) -> None:
    """Ask the surrogate. Order in: epoch, then the space's; out: seconds, accuracy, ..."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = onnxruntime.InferenceSession(str(DATA / "lcbench" / "model.onnx"), options)
    codes = json.loads((DATA / "lcbench" / "encoding.json").read_text())["OpenML_task_id"]
    unit_ND = np.random.default_rng(int(name)).random((CONFIGS, len(_LCBENCH_SPACE)))
    value_ND = np.empty_like(unit_ND)
    for d, (_, low, high, log, whole) in enumerate(_LCBENCH_SPACE):
        least, most = (np.log(low), np.log(high)) if log else (low, high)
        value = least + unit_ND[:, d] * (most - least)
        value = np.exp(value) if log else value
        value_ND[:, d] = np.round(value) if whole else value
        seen = np.log(value_ND[:, d]) if log else value_ND[:, d]
        unit_ND[:, d] = np.clip((seen - least) / (most - least), 0, 1)
    epoch = np.tile(np.arange(1, LEVELS + 1), CONFIGS)[:, None]
    x = np.hstack([epoch, np.repeat(value_ND, LEVELS, axis=0)]).astype(np.float32)
    task = np.full((len(x), 1), codes[name], np.int32)
    out = model.run(None, {"x_cat": task, "x_cont": x})[0].reshape(CONFIGS, LEVELS, 6)
    loss = np.minimum.accumulate(100.0 - out[..., 1].astype(np.float64), axis=1)
    seconds = np.maximum.accumulate(np.maximum(out[..., 0].astype(np.float64), 1e-3), axis=1)
    partial = file.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, vector=unit_ND, loss=loss, seconds=seconds)
    partial.rename(file)


@cache
def _runs() -> dict[str, list[dict[str, object]]]:
    by: dict[str, list[dict[str, object]]] = defaultdict(list)
    with gzip.open(DATA / "algoperf_pytorch.jsonl.gz", "rt") as lines:
        for line in lines:
            run = json.loads(line)
            if run["ruleset"] == "external_tuning" and run["submission"] not in LEFT_OUT:
                by[run["workload"].removesuffix("_pytorch")].append(run)
    return by


# Shared by most submissions: name, least and most on a log scale.
_ALGOPERF_SPACE = (
    ("learning_rate", 1e-4, 5.0),
    ("one_minus_beta1", 1e-2, 0.2),
    ("beta2", 0.9, 1.0),
    ("weight_decay", 1e-4, 1.0),
    ("dropout_rate", None, None),
    ("label_smoothing", None, None),
    ("warmup_factor", None, None),
)


def _algoperf(name: str) -> Task:
    groups: dict[tuple[str, str], list[dict[str, object]]] = defaultdict(list)
    for run in _runs()[name]:
        groups[str(run["submission"]), json.dumps(run["hp"], sort_keys=True)].append(run)
    metric, more = METRICS[name.split("_")[0]]
    pool = [runs for _, runs in sorted(groups.items())]
    submissions = sorted({s for s, _ in groups})
    limit = float(np.quantile([run["seconds"][-1] for runs in pool for run in runs], 0.95))  # type: ignore[index]
    most = max(map(len, pool))
    shape = (most, len(pool), LEVELS)
    loss, seconds = np.empty(shape), np.empty(shape)
    levels = np.full(shape[:2], LEVELS)
    for n, runs in enumerate(pool):
        for r, run in enumerate(runs):
            loss[r, n], seconds[r, n], levels[r, n] = _curve(run, metric, more, limit)
    vector = np.stack([_features(json.loads(hp), s, submissions) for s, hp in sorted(groups)])
    return Task(name, vector, loss, seconds, levels, np.array([len(runs) for runs in pool]))


def _curve(
    run: dict[str, object], metric: str, more: bool, limit: float
) -> tuple[Floats, Floats, int]:
    """A recorded run, read at equal steps of time: the best evaluation until then."""
    t = np.array(run["seconds"], np.float64)
    y = np.array(run["metrics"][metric], np.float64)  # type: ignore[index]
    y = np.nan_to_num(-y if more else y, nan=np.inf, posinf=np.inf)
    y = np.minimum.accumulate(np.where(np.isfinite(y), y, 1e9))
    at = limit * np.arange(1, LEVELS + 1) / LEVELS
    loss = y[np.maximum(np.searchsorted(t, at, "right") - 1, 0)]
    end = min(int(np.searchsorted(at, t[-1])) + 1, LEVELS)
    loss[end - 1 :] = y[t <= limit][-1]
    return loss, np.minimum(at, max(t[-1], at[0])), end


def _features(hp: dict[str, float], submission: str, submissions: list[str]) -> Floats:
    """One-hot submission, then its shared hyper-parameters; what it has not is in the middle."""
    kind = [float(submission == s) for s in submissions]
    rest = []
    for name, least, most in _ALGOPERF_SPACE:
        value = hp.get(name)
        if name == "beta2" and value is None and "one_minus_beta2" in hp:
            value = 1 - hp["one_minus_beta2"]
        if value is None:
            rest.append(0.5)
        elif name == "beta2":
            rest.append(float(np.clip(-np.log10(1 - value + 1e-9) / 4, 0, 1)))
        elif least is None or most is None:
            rest.append(float(np.clip(value / 0.3, 0, 1)))
        else:
            rest.append(float(np.clip(np.log(value / least) / np.log(most / least), 0, 1)))
    return np.array(kind + rest)
