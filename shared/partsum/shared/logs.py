"""Logging, set up once by each command and never at import."""

from __future__ import annotations

import logging
import sys

from google.protobuf.message import DecodeError


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
    handler.addFilter(_without_noise)


def _without_noise(record: logging.LogRecord) -> bool:
    """What a stranger can cause is no error of ours.

    Bytes that are no message are worth a line, but not a traceback; that a caller had hung up
    before it could be told of its error is worth nothing.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, DecodeError):
        record.exc_info = None
    return type(error).__name__ != "ExecuteBatchError"  # gRPC's, and private
