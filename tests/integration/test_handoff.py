"""The hand-off with real DeepSpeed jobs on this host's CPU."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from partsum.coordinator.handoff import HandoffJob, HandoffProgress, HandoffResult, run_handoff
from partsum.shared.config import HandoffConfig, TaskConfig, TrainingConfig
from partsum.shared.errors import ConfigError, HandoffError
from partsum.shared.messages import TaskSpec
from partsum.shared.task import gather, load_task
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors

pytestmark = [pytest.mark.timeout(300)]

MakeJob = Callable[..., HandoffJob]


@pytest.fixture(autouse=True)
def _around_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # so that they find handoff_task
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads on a busy machine spin: 250 ms a step


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    def make(
        options: dict[str, int | float | str | bool | list[int]], **handoff: Any
    ) -> HandoffJob:
        torch.manual_seed(0)
        base = tmp_path / "base.safetensors"
        save_tensors(base, load_task(TaskSpec("handoff_task:make")).model().state_dict())
        defaults = {
            "epochs": 4.0,
            "batch_size": 32,
            "checkpoint_every_steps": 10,
            "learning_rate": 0.01,
        }
        return HandoffJob(
            task=TaskConfig(name="handoff_task:make", options=options),
            base=base,
            folder=tmp_path / "handoff",
            seed=3,
            deterministic=True,
            handoff=HandoffConfig(**{**defaults, **handoff}),
            training=TrainingConfig(),
            share=0.25,
            norm_parts=[],
        )

    return make


def run(job: HandoffJob) -> tuple[HandoffResult, list[HandoffProgress]]:
    seen: list[HandoffProgress] = []
    return asyncio.run(run_handoff(job, seen.append)), seen


def ranks_of(job: HandoffJob) -> list[psutil.Process]:
    """The processes that work on the job, found by their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if str(job.folder / "job.json") in line and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_handoff_lowers_the_loss_and_its_result_loads_with_plain_torch(make_job: MakeJob) -> None:
    job = make_job({})
    result, seen = run(job)
    assert result.scores.loss < 0.8 * result.start_scores.loss
    assert result.scores.accuracy > result.start_scores.accuracy
    assert (seen[0].step, seen[0].scores) == (0, result.start_scores)
    assert (seen[-1].step, seen[-1].scores) == (seen[-1].steps, result.scores)
    assert sum(progress.scores is not None for progress in seen) == 1 + 4 + 1
    assert result.peak_memory_bytes > 50 << 20
    task = load_task(TaskSpec("handoff_task:make"))
    model, template = task.model(), task.model().state_dict()
    tensors = load_tensors(result.final)
    assert {n: t.dtype for n, t in tensors.items()} == {n: t.dtype for n, t in template.items()}
    model.load_state_dict(tensors, strict=True)
    assert torch.equal(tensors["middle.weight"], tensors["again.weight"])
    assert int(tensors["steps"]) == int(tensors["norm.num_batches_tracked"]) == seen[-1].steps
    model.eval()
    inputs, targets = gather(task.validation(), torch.arange(256))
    assert task.loss(model(inputs), targets).item() == pytest.approx(result.scores.loss, rel=1e-4)
    with TensorFile(result.final) as file:
        assert file.metadata == {"task": "handoff_task:make", "seed": "3", "norms": "plain"}


def test_zero_3_gives_the_same_names_and_a_lower_loss(make_job: MakeJob) -> None:
    result, _ = run(make_job({}, zero_stage=3, evaluations=0))
    assert result.scores.loss < 0.8 * result.start_scores.loss
    model = load_task(TaskSpec("handoff_task:make")).model()
    model.load_state_dict(load_tensors(result.final), strict=True)


def start_and_reach_a_checkpoint(job: HandoffJob) -> subprocess.Popen[bytes]:
    """A coordinator of its own that hands off; returns once step 10 is safe."""
    job.folder.mkdir(exist_ok=True)
    (job.folder / "start.json").write_text(job.model_dump_json())
    program = (
        "import asyncio, pathlib, sys\n"
        "from partsum.coordinator.handoff import HandoffJob, run_handoff\n"
        "job = HandoffJob.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
        "asyncio.run(run_handoff(job, lambda progress: None))\n"
    )
    coordinator = subprocess.Popen(
        [sys.executable, "-c", program, str(job.folder / "start.json")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    wait_until((job.folder / "checkpoints/10/whole.json").exists)
    return coordinator


def without_delay(job: HandoffJob) -> HandoffJob:
    return job.model_copy(update={"task": TaskConfig(name=job.task.name)})


def test_a_job_killed_with_its_ranks_goes_on_from_its_checkpoint(make_job: MakeJob) -> None:
    job = make_job({"slow_seconds": 0.2})
    coordinator = start_and_reach_a_checkpoint(job)
    (rank,) = ranks_of(job)
    os.killpg(os.getpgid(rank.pid), signal.SIGKILL)
    assert coordinator.wait(30) != 0
    result, seen = run(without_delay(job))
    assert seen[0].step >= 10
    assert result.scores.loss < 0.8 * result.start_scores.loss
    assert result.start_scores.accuracy < 0.4, "the start's scores are the base's own"


def test_two_ranks_end_when_their_coordinator_is_killed_and_the_next_one_goes_on(
    make_job: MakeJob,
) -> None:
    job = make_job({"slow_seconds": 0.2}, local_world_size=2, evaluations=0)
    coordinator = start_and_reach_a_checkpoint(job)
    assert len(ranks_of(job)) == 2
    coordinator.kill()
    coordinator.wait()
    result, seen = run(without_delay(job))  # it waits for the lock, which the old ranks hold
    assert seen[0].step >= 10
    assert (seen[-1].step, seen[-1].steps) == (64, 64)
    assert result.scores.loss < 0.8 * result.start_scores.loss
    assert ranks_of(job) == []


def test_a_cancelled_handoff_leaves_a_checkpoint_and_no_process(make_job: MakeJob) -> None:
    job = make_job({"slow_seconds": 0.1}, checkpoint_every_steps=1000)

    async def cancel_after_a_step() -> None:
        reached = asyncio.Event()
        task = asyncio.create_task(
            run_handoff(job, lambda progress: reached.set() if progress.step >= 3 else None)
        )
        await reached.wait()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel_after_a_step())
    assert ranks_of(job) == []
    (whole,) = (job.folder / "checkpoints").glob("*/whole.json")
    assert int(whole.parent.name) >= 3


def test_a_resumed_handoff_ends_with_the_weights_of_an_undisturbed_one(
    make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job({})
    undisturbed = load_tensors(run(job)[0].final)
    (job.folder / "final.safetensors").unlink()
    newest = job.folder / "checkpoints/60/mp_rank_00_model_states.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])  # a damaged one: the one before it counts
    result, seen = run(job)
    assert seen[0].step == 50
    assert "step 60 is damaged" in (job.folder / "handoff.log").read_text()
    assert "step 60 is damaged" in caplog.text  # where the run's user looks
    resumed = load_tensors(result.final)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in undisturbed.items())
    with pytest.raises(HandoffError, match=r"batch size was 32 and is 64.*remove .*checkpoints"):
        run(make_job({}, batch_size=64))


def test_a_loss_that_is_not_a_number_ends_the_handoff_at_that_step(make_job: MakeJob) -> None:
    job = make_job({"spoiled_step": 12})
    with pytest.raises(HandoffError, match=r"the loss became nan at step 12 of 64") as caught:
        run(job)
    assert "Traceback" not in str(caught.value)
    assert not (job.folder / "final.safetensors").exists()
    assert [f.name for f in (job.folder / "checkpoints").iterdir() if f.name.isdigit()] == ["10"]


def test_an_error_in_the_task_is_told_with_the_log(make_job: MakeJob) -> None:
    job = make_job({"broken": True})
    with pytest.raises(HandoffError, match=r"ValueError: the loss is broken") as caught:
        run(job)
    assert str(job.folder / "handoff.log") in str(caught.value)


def test_a_deepspeed_json_of_the_users_is_taken_as_it_is(make_job: MakeJob, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    own = {
        "train_batch_size": 64,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.02, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}},
    }
    path.write_text(json.dumps(own))
    job = make_job({}, deepspeed_config=str(path), epochs=2.5, evaluations=0)
    result, seen = run(job)
    assert seen[-1].steps == round(2.5 * 512 / 64)
    assert result.scores.loss < result.start_scores.loss
    log = (job.folder / "handoff.log").read_text()
    assert "mine.json is taken as it is; ignored: handoff.batch_size" in log


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds list, not a JSON object"),
        ('{"optimizer": {}}', "neither train_batch_size nor train_micro_batch"),
        ('{"train_batch_size": 8}', 'has no "optimizer"'),
        ('{"train_batch_size": 0}', "train_batch_size is 0"),
        (
            '{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 3, "optimizer": {}}',
            "train_batch_size is 8, but 3 samples a rank",
        ),
    ],
)
def test_a_deepspeed_json_that_cannot_be_used_is_refused_by_name(
    make_job: MakeJob, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        run(make_job({}, deepspeed_config=str(path)))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_batch_that_does_not_split_over_the_ranks_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 32 .*local_world_size = 3 ranks; 33"):
        run(make_job({}, local_world_size=3))
