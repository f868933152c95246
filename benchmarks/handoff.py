"""The hand-off's ZeRO-Offload against plain AdamW: memory, seconds a step, the loss at the end.

    python benchmarks/handoff.py [--quick] [--json FILE] [--plot FILE]

The product's own DeepSpeed job (stage 2, optimizer in host memory, DeepSpeedCPUAdam) and a plain
PyTorch loop, one after the other, each in a process of its own: the same base, samples, schedule
and steps, for an MLP of three hidden layers on scikit-learn's digits, in float32. Where there is a
GPU both train on it, and memory is that of its tensors (torch.cuda.max_memory_allocated): what
offloading saves. Without one, device and host share their memory: ZeRO-Offload has nowhere to put
the optimizer and costs MORE than plain AdamW, so no saving can be read from such figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import parser, wide_console, write_figures
from benchmarks.picture import bars, picture

from partsum.coordinator.handoff import HandoffJob, HandoffProgress, run_handoff
from partsum.shared.config import HandoffConfig, TaskConfig, TrainingConfig
from partsum.shared.errors import PartsumError
from partsum.shared.messages import TaskSpec
from partsum.shared.task import load_task
from partsum.shared.tensors import save_tensors

WIDTHS = (512, 1024, 2048, 4096)
OFFLOAD, PLAIN = "ZeRO-Offload", "plain AdamW"
Found = Mapping[tuple[int, str], Mapping[str, float]]
"""Figures by width and way."""


def prepare(width: int, epochs: float, folder: Path) -> tuple[HandoffJob, int]:
    """The job of a model of that width, with its base on disk, and the number of parameters."""
    task = TaskConfig(name="partsum.shared.tasks:digits", options={"widths": [width] * 3})
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = load_task(TaskSpec(task.name, task.options)).model()
    save_tensors(folder / "base.safetensors", model.state_dict())
    job = HandoffJob(
        task=task,
        base=folder / "base.safetensors",
        folder=folder / "handoff",
        seed=0,
        deterministic=False,
        handoff=HandoffConfig(epochs=epochs, evaluations=0, checkpoint_every_steps=1_000_000),
        training=TrainingConfig(learning_rate=1e-3),
        share=0.25,
        norm_parts=[],
    )
    return job, sum(parameter.numel() for parameter in model.parameters())


def offloaded(job: HandoffJob) -> dict[str, float]:
    """Run the product's job. Raises HandoffError where it fails."""
    seen: list[HandoffProgress] = []
    result = asyncio.run(run_handoff(job, seen.append))
    speeds = [report.samples_per_second for report in seen if report.samples_per_second]
    return {
        "step_seconds": job.handoff.batch_size / statistics.median(speeds),
        "loss": result.scores.loss,
        "peak_bytes": float(result.peak_memory_bytes),
    }


def plain(job: HandoffJob) -> dict[str, float]:
    """Run the same job by plain PyTorch. Raises CalledProcessError where it fails."""
    script = str(Path(__file__).with_name("plain_adamw.py"))
    done = subprocess.run(
        [sys.executable, script, str(job.folder / "job.json")], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(found: Found) -> Table:
    """Two rows for each width."""
    made = Table(box=None, header_style="dim")
    for column in ("width", "parameters", "", "a step", "peak memory", "loss at the end"):
        made.add_column(column, justify="right")
    for (width, way), seen in found.items():
        made.add_row(
            str(width),
            f"{seen['parameters'] / 1e6:.2f} M",
            way,
            f"{1e3 * seen['step_seconds']:.1f} ms",
            f"{seen['peak_bytes'] / 1e6:,.0f} MB",
            f"{seen['loss']:.5f}",
        )
    return made


def draw(found: Found, device: str, path: Path) -> None:
    """Memory and seconds a step by width."""
    widths = sorted({width for width, _ in found})
    shown = (
        ("peak_bytes", 1e6, f"peak memory, MB of {device}"),
        ("step_seconds", 1e-3, "ms a step"),
    )
    with picture(path, columns=2) as axes:
        for axis, (figure, unit, label) in zip(axes, shown, strict=True):
            series = {
                way: [found[w, way][figure] / unit for w in widths] for way in (PLAIN, OFFLOAD)
            }
            bars(axis, [f"width {width}" for width in widths], series)
            axis.set_ylabel(label)


def main() -> int:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--widths", type=int, nargs="+", help=f"default: {WIDTHS}")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    epochs = 2.0 if options.quick else 6.0
    console = wide_console()
    found: dict[tuple[int, str], dict[str, float]] = {}
    folder = options.folder.resolve() / "handoff"
    try:
        for width in options.widths or WIDTHS[: 2 if options.quick else None]:
            job, size = prepare(width, epochs, folder / f"{width}-{time.time_ns()}")
            for way, run in ((OFFLOAD, offloaded), (PLAIN, plain)):
                found[width, way] = {**run(job), "parameters": float(size)}
                console.print(f"width {width}, {way}: done")
    except PartsumError as error:
        print(f"handoff: {error}", file=sys.stderr)
        return error.exit_code
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the process, on CPU"
    console.print(table(found), f"memory is {device}'s", sep="\n")
    if options.json:
        names = {key: f"{key[0]}/{'offload' if key[1] == OFFLOAD else 'plain'}" for key in found}
        figures = {f"{names[k]}/{name}": v for k, seen in found.items() for name, v in seen.items()}
        write_figures(options.json, figures)
    if options.plot:
        draw(found, device, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
