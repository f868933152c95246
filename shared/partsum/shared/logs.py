"""Logging, set up once by each command and never at import."""

from __future__ import annotations

import logging
import math
import sys

from google.protobuf.message import DecodeError

_TELL_SECONDS = 60.0


def set_up_logging(verbose: bool = False) -> None:
    """Log to stderr: time, level, logger's last name, the event with its ids.

    gRPC's errors come too: what goes wrong in our own calls is told nowhere else.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    )
    root = logging.getLogger("partsum")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = False
    calls = logging.getLogger("grpc")
    calls.handlers[:] = [handler]
    calls.setLevel(logging.ERROR)
    calls.propagate = False
    handler.addFilter(_Noise())


class _Noise(logging.Filter):
    """What a stranger can cause is no error of ours.

    Bytes that are no message are worth a line a minute, and no traceback: gRPC reads them before
    anybody is asked who is there, and thousands a second would fill the disk. That a caller had
    hung up before it could be told of its error is worth nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is logged."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, DecodeError):
            record.exc_info = None
            if 0 <= record.created - self._told < _TELL_SECONDS:
                return False
            self._told = record.created
        return type(error).__name__ != "ExecuteBatchError"  # gRPC's, and private
