"""When a coordinator starts: is everything whole that the journal speaks of?

    the journal           its backup takes its place (see `journal`)
    base 0, clusters      made again from the seed, and compared with the journal's digests
    a later base          merged again from its parts where mode block kept them, and compared
    anything else         the run goes back to the newest round of which all is whole

Whatever was damaged, the run goes on from the last good state by itself, and never silently: each
finding is in the log, and an incident in the journal and the report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from partsum.coordinator.cutter import base_name, write_clusters
from partsum.coordinator.phases import handoff_rounds
from partsum.coordinator.store import Store
from partsum.coordinator.workshop import Workshop
from partsum.shared.errors import PartsumError, StateError
from partsum.shared.files import file_digest

log = logging.getLogger(__name__)


class Recovery:
    """Looks after one run's folder before its rounds go on; ``at`` is the second of the run.

    ``workshop_of`` is who works on a round.
    """

    def __init__(self, store: Store, workshop_of: Callable[[int], Workshop], at: float) -> None:
        self.store = store
        self.workshop_of = workshop_of
        self.workshop = workshop_of(0)
        self.at = at

    def recover_rounds(self) -> None:
        """The journal speaks only of bases, and what goes on from them, that are whole.

        Raises StateError where not even the first base can be had again.
        """
        if self.store.journal.restored:
            self._tell(
                "journal_restored",
                f"the journal was damaged ({self.store.journal.restored}); its last backup took "
                "its place, and what came after that is done again",
            )
        rounds, why = self._newest_whole()
        committed = len(self.store.results())
        if rounds < committed:
            text = f"went back from base {committed} to base {rounds}: {why}"
            log.error("%s", text)
            self.store.roll_back(rounds, self.at, text)
            if rounds <= handoff_rounds(self.workshop.config).start:
                self.store.note(handoff_start=None, handoff_began=None)
        self.store.drop_bases(after=rounds)
        if rounds == 0:
            self._provide_first_base()

    def recover_clusters(self, make: Callable[[], Sequence[np.ndarray]]) -> None:
        """Each part's cluster is there, and the one that the run began with.

        Raises StateError where ``make`` makes others now.
        """
        paths, known = self.workshop.cutter.cluster_paths(), self.store.fact("clusters")
        for path in (self.store.folder / "clusters").glob("s*"):
            path.unlink()  # the samples: they can be gathered again
        if known is not None:
            damaged = _damaged(zip(paths, known, strict=True))
            if not damaged:
                return
            self._tell("damaged", f"{damaged}; the clusters are made again from the seed")
        write_clusters(self.store.folder / "clusters", make())
        digests = [file_digest(path) for path in paths]
        if known not in (None, digests):
            raise self._not_again("its clusters")
        self.store.note(clusters=digests)

    def _newest_whole(self) -> tuple[int, str]:
        """How many rounds there are of which all is whole, and what is wrong with the next."""
        why = ""
        for round, (result, _, _) in reversed(self.store.results().items()):
            base = self.store.base_path(result.base)
            workshop = self.workshop_of(round)
            files = workshop.files_of(round)
            damaged = _damaged(files.items())
            if workshop.block and not files:
                damaged = f"{base} was committed by a partsum that did not note its parts"
            if not damaged:
                damaged = _damaged([(base, result.digest)])
                if not damaged or self._rebuilt(round, damaged):
                    return round + 1, why
            why = why or damaged
        return 0, why

    def _rebuilt(self, round: int, damaged: str) -> bool:
        """Whether a damaged base could be merged again, to the very bytes."""
        result, workshop = self.store.results()[round][0], self.workshop_of(round)
        if not workshop.block:
            return False
        try:
            digest = workshop.rebuild_base(round)
        except (PartsumError, OSError, LookupError) as error:
            log.error("%s, and cannot be merged again: %s", damaged, error)
            return False
        if digest == result.digest:
            self._tell("rebuilt", f"{damaged}; it was merged again from the parts, to the byte")
        return digest == result.digest

    def _provide_first_base(self) -> None:
        path, known = self.store.base_path(base_name(0)), self.store.fact("first_base")
        if path.exists() and known and (damaged := _damaged([(path, known)])):
            self._tell("rebuilt", f"{damaged}; it is made again from the seed")
            path.unlink()
        self.workshop.first_base.write()
        digest = file_digest(path)
        if known not in (None, digest):
            raise self._not_again("its first base")
        self.store.note(first_base=digest)

    def _not_again(self, what: str) -> StateError:
        return StateError(
            f"{what} in {self.store.folder} was damaged or is missing, and comes out different "
            "when it is made again, as it can after an update of torch or scikit-learn; put the "
            "old version back to resume, or start a new run with --new"
        )

    def _tell(self, kind: str, text: str) -> None:
        log.error("%s", text)
        self.store.note_event(self.at, kind, text)


def _damaged(files: Iterable[tuple[Path, str]]) -> str:
    """What is wrong with the first file that has not the digest given; empty: all have."""
    for path, digest in files:
        try:
            found = file_digest(path)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if found != digest:
            return f"{path} is damaged (digest {found[:8]}, expected {digest[:8]})"
    return ""
