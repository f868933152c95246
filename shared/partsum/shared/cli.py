"""The program ``partsum``: asks each installed house for its commands and runs one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from partsum.shared.errors import EXIT_STOPPED, PartsumError

_EPILOG = """\
exit codes: 0 done, 1 failed, 2 a flag or config that cannot be used,
3 no coordinator answers, 130 stopped by Ctrl-C.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with the commands of the houses that are installed here."""
    parser = argparse.ArgumentParser(
        prog="partsum",
        description="Train a model as complementary parts, merge them, hand the whole on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = metadata.version("partsum")
    parser.add_argument("--version", action="version", version=f"partsum {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for house in sorted(metadata.entry_points(group="partsum.commands"), key=lambda e: e.name):
        house.load()(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``partsum``; returns the exit code. A user's mistake ends in one message."""
    # Before gRPC is imported: a stranger's failed handshake is a line of its own log each time.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    options = build_parser().parse_args(arguments)
    sys.path.append(os.getcwd())  # a task's module may lie where the command is started
    try:
        return int(options.run(options))
    except PartsumError as error:
        print(f"partsum: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_STOPPED
    except BrokenPipeError:
        return 0
