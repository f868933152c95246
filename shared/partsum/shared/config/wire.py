"""How many bytes a number has on its way."""

from __future__ import annotations

from partsum.shared.config.section import Section
from partsum.shared.messages import Encoding


class WireConfig(Section):
    """How weights travel; which to choose: docs/wire.md."""

    up: Encoding = "float32"
    """What nodes send. float32: the weights; bfloat16, int8: their change since the round's start
    in half, or a quarter, of the bytes; what that loses is added to the node's next change (error
    feedback). A part that starts fresh is sent once as bfloat16 instead of int8."""
    down: Encoding = "float32"
    """What nodes fetch, where they start from the base. bfloat16: the base, rounded; int8: the
    change since the last round's start (needs planner = "full"; who has not got that one fetches
    the whole). The base itself stays float32."""
