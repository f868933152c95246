"""Whom a run listens to, and how far it believes what they send."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from partsum.shared.config.section import NotNegative, Positive, Section

Rule = Literal["mean", "median", "trimmed_mean", "norm_clip", "krum", "multi_krum"]
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class MergeConfig(Section):
    """How updates are checked against each other, and merged where parts overlap."""

    rule: Rule = "mean"
    """mean: by samples; median and trimmed_mean: element by element; norm_clip: mean of updates
    whose change is shortened to `clip_norm`; krum, multi_krum: only the updates that lie closest to
    each other. All but mean need planner = "full" or mode = "residual"; all but mean and norm_clip
    ignore samples, which are a node's own claim."""
    hostile: Positive = 1
    """How many of a round's updates may lie: what trimmed_mean cuts off at each end (needs 2 x
    hostile + 1 parts), and Krum's f (2 x hostile + 3). A node with two parts counts twice."""
    clip_norm: NotNegative = 0.0
    """norm_clip's longest change of an update; 0 takes the median of the round's updates."""
    norm_bound: NotNegative = 10.0
    """An update whose weights change (root mean square) more than this many times as much as the
    median of the round's others (and, while fewer than three are in, of the last three rounds') is
    refused when the round is merged; 0 refuses none. Not with differential privacy, which bounds
    every update."""


class PrivacyConfig(Section):
    """What protects a node's data, beside staying where it is; from whom: docs/security.md."""

    noise_multiplier: NotNegative = 0.0
    """Central differential privacy for each part's cluster of data: Gaussian noise of this many
    times `clip_norm` over the number of parts is added to the mean change of each round; 0 adds
    none. Needs planner = "full" and no hand-off."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """The longest change of one update that differential privacy lets through (L2, all weights)."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta of the (epsilon, delta) that the accountant reports."""
    secure_aggregation: bool = False
    """Nodes mask their updates, so that the coordinator sees nothing but their sum. Needs
    parts.planner = "full", three nodes or more and one for each part; updates have twice the bytes,
    and cannot be compared with each other: `norm_bound` is not applied."""


class ServerConfig(Section):
    """Where the coordinator listens, and who gets in."""

    host: str = "127.0.0.1"
    """Address to listen on. Other than loopback needs `auth`, or `insecure = true`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 50061
    """gRPC port for nodes and operators; 0 takes a free one."""
    auth: Literal["none", "tokens", "certificates"] = "none"
    """tokens: TLS, and each node shows a token of its own; certificates: mutual TLS, each node has
    a certificate of its own (`partsum certs`, `partsum tokens`)."""
    access: str = "access"
    """The folder that `partsum certs init` made; relative to where the coordinator starts."""
    allow: Annotated[list[str] | None, Field(min_length=1)] = None
    """Names of the nodes that may join, of all with credentials; by default every one."""
    calls_per_second: Annotated[float, Field(gt=0)] = 200.0
    """How many calls and control messages one peer may make a second, in the long run."""
    metrics_host: str = "127.0.0.1"
    """Address of /metrics and /healthz, which ask for no credentials and tell no weights, and of
    the live page, which beyond loopback asks for an operator's token."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """HTTP port of all three; 0 takes a free one."""
    insecure: bool = False
    """Listen beyond loopback without any authentication. Only on a network you trust."""

    @model_validator(mode="after")
    def _nobody_unknown(self) -> ServerConfig:
        if self.host not in LOOPBACK and self.auth == "none" and not self.insecure:
            raise ValueError(
                f"host = {self.host!r} can be reached by others, who could then fetch the model. "
                'Set auth = "tokens" or "certificates" (`partsum certs init` makes what they '
                "need), or keep 127.0.0.1, or say insecure = true on a network that you trust"
            )
        if self.allow and self.auth == "none":
            raise ValueError(
                'allow needs auth = "tokens" or "certificates": without, a node may call itself '
                "whatever it likes"
            )
        return self
