"""Channel and server options, and the process settings that make gRPC fast."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import grpc
import grpc.aio

from partsum.shared.credentials import Credentials
from partsum.shared.errors import ConfigError

SERVER_NAME = "partsum-coordinator"
"""What a coordinator's certificate is for, whatever its address: each has an authority of its own,
so it may move, or sit behind a NAT or a tunnel, and needs no new certificate."""

MESSAGE_LIMIT_BYTES = 4 << 20

_KEEPALIVE: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

_BOUNDED: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    # Without these two a slow receiver buffers hundreds of MB (measured: 711 MB against 157 MB).
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
]

# A silent peer is noticed within seconds, so that a cut cable is not a long training step.
_PROMPT = ("grpc.keepalive_timeout_ms", 5_000)
# Where bulk data goes, a ping waits behind what the kernel has taken already: 32 s for its 4 MB at
# 1 Mbit/s. The coordinator, to which both kinds of connection come, goes by heartbeats besides.
_PATIENT = ("grpc.keepalive_timeout_ms", 60_000)

_DIALLING: list[tuple[str, int]] = [
    *_KEEPALIVE,
    *_BOUNDED,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A dial into a dead network would hang for 20 s, and the network be back long before.
    ("grpc.min_reconnect_backoff_ms", 3_000),
]

CHANNEL_OPTIONS: list[tuple[str, int]] = [*_DIALLING, _PROMPT]

BULK_OPTIONS: list[tuple[str, int]] = [*_DIALLING, _PATIENT]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_KEEPALIVE,
    _PATIENT,
    *_BOUNDED,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # a port in use must be an error, not a silent share
    # What one connection may take before anybody is asked who is there; a node needs four streams.
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.server_handshake_timeout_ms", 10_000),
]


def open_channel(
    address: str,
    credentials: Credentials | None,
    options: Sequence[tuple[str, int | str]] = CHANNEL_OPTIONS,
) -> grpc.aio.Channel:
    """A channel to a coordinator: over TLS with credentials, in the clear without."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    chain, key = credentials.certificate, credentials.key
    secure = grpc.ssl_channel_credentials(
        credentials.authority.encode(),
        key.encode() if key else None,
        chain.encode() if chain else None,
    )
    if credentials.token:
        shown = grpc.access_token_call_credentials(credentials.token)
        secure = grpc.composite_channel_credentials(secure, shown)
    named = [*options, ("grpc.ssl_target_name_override", SERVER_NAME)]
    return grpc.aio.secure_channel(address, secure, options=named)


def tune_malloc() -> None:
    """Keep freed megabyte buffers instead of returning them to the kernel each time.

    Page faults from malloc's mmap threshold are the main cost of moving tensors over gRPC: 2-4
    times fewer bytes a second without this (measured on loopback). Call at process start, before
    threads. A C library without mallopt is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 64 << 20)  # M_MMAP_THRESHOLD
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD
        mallopt(-8, 1)  # M_ARENA_MAX: the heaps of other threads are small, and given back at once


def release_memory() -> None:
    """Give freed memory back to the kernel, where the C library can; a few milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT taken apart. Raises ConfigError where it is not one."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is not HOST:PORT, for example 192.0.2.10:50061")
    return host, int(port)


def in_address(host: str) -> str:
    """A host as it is written before a colon and a port: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
