"""Logging, set up once by each command and never at import."""

from __future__ import annotations

import logging
import sys


def set_up_logging(verbose: bool = False) -> None:
    """Log to stderr: time, level, logger's last name, the event with its ids."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    )
    root = logging.getLogger("partsum")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = False
