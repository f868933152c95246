"""What a hand-off does, by plain PyTorch: the same job, samples, schedule and steps, no DeepSpeed.

    python benchmarks/plain_adamw.py JOB.json

Prints one JSON object: the median step's seconds, the validation loss at the end, and the peak
memory of this process, or on a GPU of its tensors there.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from partsum.coordinator.handoff import HandoffJob
from partsum.coordinator.handoff_model import build_model
from partsum.shared.memory import peak_memory_bytes
from partsum.shared.messages import TaskSpec
from partsum.shared.schedule import handoff_rate
from partsum.shared.task import evaluate, gather, load_samples, load_task, num_samples, walk


def train(job: HandoffJob, device: torch.device) -> dict[str, float]:
    """Train the base to the end of the hand-off."""
    task = load_task(TaskSpec(job.task.name, job.task.options))
    samples = load_samples(task.train, "training")
    model = build_model(job, task).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=job.training.learning_rate,
        betas=job.training.betas,
        weight_decay=job.training.weight_decay,
        fused=True,
    )
    batch, total = job.handoff.batch_size, num_samples(samples)
    steps = max(1, round(job.handoff.epochs * total / batch))
    seconds = []
    for step, indices in enumerate(walk(job.seed, torch.arange(total), 0, steps * batch, batch)):
        began = time.perf_counter()
        progress = job.share + (1 - job.share) * step / steps
        for group in optimizer.param_groups:
            factor = handoff_rate(progress, job.share, job.training.warmup)
            group["lr"] = job.training.learning_rate * factor
        inputs, targets = (tensor.to(device) for tensor in gather(samples, indices))
        torch.autograd.backward(task.loss(model(inputs), targets))
        if job.training.gradient_clip:
            nn.utils.clip_grad_norm_(model.parameters(), job.training.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    model.eval()
    scores = evaluate(model, task, load_samples(task.validation, "validation"), device)
    return {
        "step_seconds": statistics.median(seconds),
        "loss": scores.loss,
        "peak_bytes": float(peak_memory_bytes(device)),
    }


if __name__ == "__main__":
    there = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    instructions = Path(sys.argv[1]).read_text(encoding="utf-8")
    print(json.dumps(train(HandoffJob.model_validate_json(instructions), there)))
