"""What is seen of a hand-off while nodes train it: their reports as one, on its curve and page."""

from __future__ import annotations

from partsum.coordinator.handoff import HandoffProgress
from partsum.coordinator.metrics import Metrics
from partsum.coordinator.records import RoundPlan, RoundResult
from partsum.coordinator.run import Run
from partsum.shared.messages import Progress

_NOTE_SECONDS = 0.5  # between two points of the curve


class HandoffMeter:
    """Follows one run's hand-off rounds; of other rounds it hears nothing."""

    def __init__(self, run: Run, metrics: Metrics) -> None:
        self._run = run
        self._metrics = metrics
        self._round = -1
        self._latest: dict[int, Progress] = {}  # by part
        self._noted = 0.0

    def hear(self, plan: RoundPlan, part: int, progress: Progress) -> None:
        """A node has come so far with its part."""
        steps = plan.handoff
        if steps is None:
            return
        if plan.round != self._round:
            self._round, self._latest = plan.round, {}
        gang = _gang_of(progress)  # what was said in one that broke says nothing of this one
        self._latest = {k: one for k, one in self._latest.items() if _gang_of(one) == gang}
        self._latest[part] = progress
        latest = list(self._latest.values())
        done = float(sum(one.samples_done for one in latest))
        speed = sum(one.samples_per_second for one in latest)
        if self._run.config.handoff.is_over("apart"):  # each counts its own samples
            done /= len(plan.parts)
        else:  # each counts the gang's
            done, speed = done / len(latest), speed / len(latest)
        self._show(
            HandoffProgress(
                step=steps.first + int(done / steps.batch),
                steps=steps.total,
                loss=sum(one.loss for one in latest) / len(latest),
                scores=None,
                samples_per_second=speed,
                peak_memory_bytes=0,
            )
        )
        now, progressed = self._run.clock.now(), self._run.handoff_progress
        # The ends of a round are points with scores, which a point of this step would replace.
        inside = progressed and 0 < progressed.step - steps.first < steps.count
        if progressed is not None and inside and now - self._noted >= _NOTE_SECONDS:
            self._noted = now
            self._run.store.note_curve(progressed.step, now, {"loss": progressed.loss})

    def committed(self, plan: RoundPlan, result: RoundResult) -> None:
        """A round of the hand-off is in the base, which was evaluated."""
        steps, before = plan.handoff, self._run.handoff_progress
        if steps is None:
            return
        step, loss = steps.first + steps.count, self._trained_loss(plan)
        shown = before.loss if before and loss is None else loss or 0.0
        self._show(HandoffProgress(step, steps.total, shown, None, 0.0, 0))
        body = {"loss": loss, "validation_loss": result.loss, "accuracy": result.accuracy}
        self._run.store.note_curve(step, self._run.clock.now(), body)

    def _trained_loss(self, plan: RoundPlan) -> float | None:
        """The round's mean training loss; of a gang rank 0 tells it for all."""
        updates = [item.update for item in self._run.store.updates(plan.round).values()]
        losses = [update.loss for update in updates if update.num_samples]
        return sum(losses) / len(losses) if losses else None

    def _show(self, progress: HandoffProgress) -> None:
        self._run.handoff_progress = progress
        self._metrics.show_handoff(progress)


def _gang_of(progress: Progress) -> str:
    """Which gang of its round an assignment is of; empty: none."""
    return progress.assignment_id.partition("-g")[2]
