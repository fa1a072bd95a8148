"""The whole path on this machine alone, in about five minutes: `make demo`, or `raygen demo`.

S3 on loopback, clips that raygen renders itself, a local Ray with two workers, a judge, an export,
Serve, and one clip fetched over HTTP. What it makes is left in demo/. Run it from a checkout: the
server is the checkout's `serve`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import ray
import yaml

from raygen import video
from raygen.config import Config
from raygen.cost.prices import price as price_of
from raygen.cost.prices import table_date
from raygen.data import synthetic
from raygen.data.scan import scan
from raygen.display import console, judgement, training_line
from raygen.errors import ConfigError, RaygenError
from raygen.evaluate import evaluate_run
from raygen.export import Generator, export_run, load_generator
from raygen.runs import Run
from raygen.train import fit

BUCKET = "raygen-demo"
CLASSES = 4
CLIPS_PER_CLASS = 60
START_S = 90
SEED = 7


def run_demo(folder: Path, minutes: float) -> None:
    """Every stage in turn; `folder` is emptied first. Raises RaygenError."""
    started = time.monotonic()
    if importlib.util.find_spec("moto") is None:
        raise ConfigError("the demo needs its extra: pip install 'raygen[demo]'")
    if not Path("serve/config.yaml").is_file():
        raise ConfigError("run the demo from a checkout of raygen, where serve/ lies")
    for name in ("runs", "export", "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    logs = folder / "logs"
    logs.mkdir(parents=True)
    _stage("S3 on loopback")
    with loopback_s3(logs / "s3.log"):
        run = _train(folder, minutes)
        ray.shutdown()
        _stage("judging what it generates against the real clips")
        console.print(judgement(evaluate_run(run)))
    export_run(run, str(folder / "export"))
    generator = load_generator(str(folder / "export"))
    _pictures(generator, folder)
    _stage("serving it over HTTP")
    with _server(folder / "export", logs / "serve.log") as url:
        name = generator.classes[0]
        path = f"/v1/models/best/clips/{SEED}?class={urllib.parse.quote(name)}&scale=8"
        clip = _get(url + path)
        (folder / "fetched.mp4").write_bytes(clip)
        console.print(f"  GET {url}{path}: {len(clip):,} bytes of mp4")
    _last_screen(folder, run, generator.classes, time.monotonic() - started)


def _stage(what: str) -> None:
    console.print(f"[bold]» {what}[/bold]")


def _train(folder: Path, minutes: float) -> Run:
    clips = f"s3://{BUCKET}/clips"
    names = synthetic.class_names(CLASSES)
    _stage(f"rendering {CLASSES * CLIPS_PER_CLASS} clips of moving shapes into {clips}")
    synthetic.synthesize(clips, names, CLIPS_PER_CLASS, seed=0)
    _stage("listing and probing them into a catalogue")
    found = scan(clips)
    found.write(f"s3://{BUCKET}/catalogue.parquet")
    console.print(f"  {len(found.usable(0))} of {len(found)} usable: {', '.join(found.classes)}")
    _stage("training: Ray Train, two workers, ZeRO-1")
    overrides = {
        "name": "demo",
        "storage": str(folder / "runs"),
        "data.uri": f"s3://{BUCKET}/catalogue.parquet",
        "train.workers": 2,
        "train.cpus_per_worker": min(1.0, (os.cpu_count() or 1) / 2),
        "budget.minutes": minutes,
    }
    with training_line() as on_status:
        return fit(Config.load("demo", overrides), on_status=on_status)


def _pictures(generator: Generator, folder: Path) -> None:
    labels = [label for label in range(len(generator.classes)) for _ in range(4)]
    names = [generator.classes[label] for label in labels]
    clips = generator.generate(range(len(labels)), labels)
    video.save(folder / "clips.mp4", clips, generator.fps, names, scale=4)
    video.save(folder / "contact-sheet.png", clips[::2], generator.fps, names[::2])


@contextmanager
def loopback_s3(log: Path) -> Iterator[None]:
    """S3 on loopback with an empty BUCKET; until it ends, the environment leads clients there."""
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    with _process(command, log) as process:
        _wait(f"http://127.0.0.1:{port}/moto-api/", process, log)
        os.environ.update(settings)
        try:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextmanager
def _server(export: Path, log: Path) -> Iterator[str]:
    """`serve run` of the checkout's config with this export, on a free port; yields its URL."""
    port = _free_port()
    config = yaml.safe_load(Path("serve/config.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["export"] = str(export.resolve())
    written = log.with_name("serve.yaml")
    written.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("serve")), "run", str(written)]
    url = f"http://127.0.0.1:{port}"
    with _process(command, log) as process:
        _wait(f"{url}/healthz", process, log)
        yield url


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            _get(url)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
        else:
            return
    raise RaygenError(f"{url} did not come up within {START_S} s; see {log}")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        body: bytes = answer.read()
        return body


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_screen(folder: Path, run: Run, classes: list[str], seconds: float) -> None:
    status = run.status
    price = price_of(run.config.train.node)
    console.print(
        f"""
[bold]Done[/bold] in {seconds / 60:.1f} minutes: {status["step"]} steps on \
{status["clips_seen"]:,} clips.

  {folder}/clips.mp4           generated clips, {", ".join(classes)}
  {folder}/contact-sheet.png   the same, frame by frame
  {folder}/fetched.mp4         one clip, as the HTTP endpoint gave it
  {folder}/export/             the generator: safetensors, config, model card

On a rented machine of this size ({price.hardware}, ${price.on_demand:.4f} an hour on demand, \
{table_date()}):
  [bold]${price.dollars(seconds):.4f}[/bold] for all of this, ${run.dollars:.4f} of it \
training

Next:
  raygen generate {folder}/export --class {classes[0]} --seed 7 --n 4 -o out.mp4
  serve run serve.app:app export={folder}/export      # a page at /, the API at /docs
  tensorboard --logdir {folder}/runs
  raygen train tiny data.uri=s3://YOUR_BUCKET/clips train.workers=2
""",
        highlight=False,
        soft_wrap=True,
    )
