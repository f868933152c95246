"""The coordinator's daemon: carries out what the round machine decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine

from partsum.coordinator import events as e
from partsum.coordinator.desk import NodeDesk, OpenRound
from partsum.coordinator.handover import begin_round, hand_over
from partsum.coordinator.intake import Intake
from partsum.coordinator.jobs import alive
from partsum.coordinator.metrics import Metrics
from partsum.coordinator.phases import phase_of, total_rounds
from partsum.coordinator.reasons import why_failed, why_partial
from partsum.coordinator.registry import Registry
from partsum.coordinator.rounds import RoundMachine
from partsum.coordinator.run import Run
from partsum.coordinator.secure_rounds import Opening, SecureRounds
from partsum.coordinator.terms import round_settings
from partsum.coordinator.unmask import LapsedError
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.errors import PartsumError
from partsum.shared.messages import RunStatus

log = logging.getLogger(__name__)

_STATUS_SECONDS = 0.2  # an operator's screen needs no more
_CLOCK_SECONDS = 1.0
_REMIND_SECONDS = 30.0  # while it waits it says for what, this often


class CoordinatorDaemon:
    """One run's daemon; lives in one event loop, and all of its methods are called there.

    ``outcome`` is set to (state, reason) when the run has ended, one way or another.
    """

    def __init__(self, run: Run, address: str) -> None:
        self.run = run
        registry = Registry(run.store.nodes())
        self.metrics = Metrics(registry, run)
        self.outcome: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        self._machine = RoundMachine(
            round_settings(run.config), run.next_round, time.monotonic(), registry.benched()
        )
        machine, metrics = self._machine, self.metrics
        self.desk = NodeDesk(run, registry, machine, metrics, self._decide, self._publish)
        self.intake = Intake(self.desk, run, machine, metrics, self._decide)
        secrecy = self.desk.secrecy
        self._secure = SecureRounds(run, secrecy) if secrecy else None
        self._address = address
        self._reason = ""
        self._reminded = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._telling: asyncio.TimerHandle | None = None

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to decide; call once the door is open."""
        self.metrics.rounds.set(total_rounds(self.run.config))
        self.metrics.show_scores(self.run.loss, self.run.accuracy)
        self.metrics.got_further()
        self._decide(e.Tick())
        self._spawn(self.desk.watch_heartbeats())

    async def close(self) -> None:
        """Stop side tasks and let nodes go; where the run is finished, they are told."""
        for timer in filter(None, (self._timer, self._telling)):
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for node in self.desk.registry:
            if node.session:
                if self._phase() == "finished":
                    goodbye = pb.Finished(reason="the run is done")
                    node.session.send(pb.ControlResponse(finished=goodbye))
                node.session.close()

    def stop(self, reason: str) -> None:
        """End this coordinator; the run can be resumed."""
        self._end("stopped", reason)

    def _end(self, state: str, reason: str) -> None:
        if not self.outcome.done():
            self.outcome.set_result((state, reason))
            self.run.leave()
            self._tell()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        """A side task that fails ends the run in words; what is committed stays."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, PartsumError | OSError):
            log.error("an error inside partsum; please report it", exc_info=error)
        self._end("failed", why_failed(error, str(self.run.folder)))

    # -- decisions --------------------------------------------------------------------------------

    def _decide(self, event: e.Event) -> None:
        if self.outcome.done():
            return
        now = time.monotonic()
        decision = self._machine.handle(event, now)
        try:
            for action in decision.actions:
                self._act(action)
        except (PartsumError, OSError) as error:  # half done would be waited for, and for ever
            self._end("failed", why_failed(error, str(self.run.folder)))
            return
        if decision.reason != self._reason:
            self._reason, self._reminded = decision.reason, now
            log.info("%s", self._said())
        if self._timer:
            self._timer.cancel()
        wake = min(decision.wake_at or now + _REMIND_SECONDS, now + _REMIND_SECONDS)
        self._timer = asyncio.get_running_loop().call_later(wake - now, self._remind)
        self._publish()

    def _remind(self) -> None:
        now = time.monotonic()
        waits = self._machine.phase in {"waiting", "training"}
        if waits and now - self._reminded >= _REMIND_SECONDS - 1:
            self._reminded = now
            log.info("still %s", self._said())
        self._decide(e.Tick())

    def _said(self) -> str:
        """The reason, and what to type where nodes are what is missing."""
        connected = (node.session is not None for node in self.desk.registry)
        wanted = self._machine.settings.min_nodes
        few = self._machine.phase == "waiting" and sum(connected) < wanted
        if not few and "no node is connected" not in self._reason:
            return self._reason
        host, _, port = self._address.rpartition(":")
        address = f"HOST:{port}" if host in {"0.0.0.0", "[::]"} else self._address
        shown = "" if self.run.config.server.auth == "none" else " --credentials FILE"
        return f"{self._reason}; start each with: partsum node --coordinator {address}{shown}"

    def _act(self, action: e.Action) -> None:
        match action:
            case e.Plan(round):
                self._spawn(self._plan_round(round))
            case e.Assign(node, part):
                self.desk.assign(node, part)
                self._spawn(self.desk.deliver(node, part))
            case e.Cancel(node, part, reason):
                self.desk.cancel(node, part, reason)
            case e.Form(gang):
                self.desk.form(gang)
            case e.Forget(part):
                self.run.drop_update(self.run.next_round, part)
            case e.Merge(missing):
                self._spawn(self._merge(missing, self._reason))
            case e.Handoff():
                self._spawn(self._hand_off())
            case e.Finish():
                self._end("finished", "the run is done")
            case e.Fail(reason):
                self._end("failed", reason)

    async def _plan_round(self, round: int) -> None:
        await begin_round(self.run, round, self.desk.registry.totals())
        live = [node for node in self.desk.registry if node.session]
        profiles = {node.name: node.profile for node in live if node.profile}
        plan, holders, done = await self.run.open_round(round, profiles)
        opening = Opening(holders, done, plan.needed)
        if self._secure is not None:
            here = {node.name for node in live} & set(alive(self._machine.members))
            try:
                opening = await self._secure.open(plan, holders, done, here)
            except LapsedError as error:
                self._lapse(error)
                return
        works = self.run.workshop_of(round)
        self.desk.round = OpenRound(
            plan,
            works.cutter.blob_paths(plan),
            works.largest_update(plan),
            pushes=self.run.store.pushes(),
            masking=opening.masking,
        )
        gang = self.desk.restore_gang()
        self._decide(e.Planned(opening.holders, opening.done, opening.needed, gang))

    def _lapse(self, error: LapsedError) -> None:
        assert self._secure is not None
        self._secure.lapsed(error)
        self._decide(e.Lapsed(str(error)))

    async def _merge(self, missing: tuple[int, ...], why: str) -> None:
        open_round = self.desk.round
        assert open_round is not None
        if self.intake.withdraw_outliers(missing):
            return  # back to training, or the round closes anew without them
        self.run.stages.note("send", open_round.send_seconds)
        try:
            if self._secure is not None:
                await self._secure.unmask(open_round.plan)
            result = await self.run.close_round(open_round.plan, missing)
        except LapsedError as error:
            self._lapse(error)
            return
        self.desk.meter.committed(open_round.plan, result)
        if missing:
            text = why_partial(open_round.plan, missing, why)
            log.warning("%s", text)
            self.run.store.note_event(self.run.clock.now(), "partial", text)
            self.metrics.partial.inc()
        if (spent := self.run.epsilon()) is not None:
            log.info("privacy: epsilon %.3g at delta %g", spent, self.run.config.privacy.delta)
            self.metrics.epsilon.set(spent)
        self._show_scores(f"base {self.run.next_round}", result.loss, result.accuracy)
        self.metrics.closed_round(result, self.run.clock.now() - self.run.opened)
        self.run.store.note_nodes(self.desk.registry.memories())
        self._decide(e.Merged())

    async def _hand_off(self) -> None:
        self.metrics.got_further()
        await hand_over(self.run, self.desk.registry.totals(), self._show_handoff)
        self._show_scores("the final model", self.run.loss, self.run.accuracy)
        self._decide(e.HandoffDone())

    def _show_scores(self, of: str, loss: float | None, accuracy: float | None) -> None:
        if loss is None:
            return
        shown = float("nan") if accuracy is None else accuracy
        log.info("%s: loss %.4f, accuracy %.4f", of, loss, shown)
        self.metrics.show_scores(loss, shown)

    def _show_handoff(self) -> None:
        progress = self.run.handoff_progress
        if progress is not None:
            self.metrics.show_handoff(progress)
        self._publish()

    # -- what operators see -----------------------------------------------------------------------

    def _publish(self) -> None:
        """Something has changed: tell it soon, together with what else does."""
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_STATUS_SECONDS, self._tell)

    def _tell(self) -> None:
        """Bring metrics up to date and wake those who watch."""
        self._telling = None
        self.metrics.set_phase(self._phase())
        self.metrics.round.set(self.run.next_round)
        self.metrics.parts_in.set(self._machine.parts_in())
        self.metrics.show_search(self.run.board)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _phase(self) -> str:
        if self.outcome.done():
            return self.outcome.result()[0]
        phase, at_work = self._machine.phase, {"planning", "training", "merging"}
        return phase_of(self.run.config, self._machine.round) if phase in at_work else phase

    def status(self) -> RunStatus:
        """The run as an operator sees it."""
        return self.run.status(
            phase=self._phase(),
            reason=self.outcome.result()[1] if self.outcome.done() else self._said(),
            parts=(self._machine.parts_in(), len(self._machine.jobs)),
            bytes_moved=self.desk.registry.totals(),
            nodes=tuple(
                node.status() for node in sorted(self.desk.registry, key=lambda node: node.name)
            ),
        )

    async def statuses(self) -> AsyncIterator[RunStatus]:
        """The run's status now, and again on every change; ends with the run."""
        while True:
            changed = self._changed
            yield self.status()
            if self.outcome.done():
                return
            with contextlib.suppress(TimeoutError):  # without news, the clock still goes on
                await asyncio.wait_for(changed.wait(), _CLOCK_SECONDS)

    def health(self) -> tuple[bool, str]:
        """For /healthz."""
        return not self.outcome.done(), f"{self._phase()}: {self._reason}"
