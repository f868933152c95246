"""Messages that nobody honest would send, drawn from a seeded generator."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import DecodeError, Message

INTS = [0, 1, -1, 2, 7, 2**15, 2**31 - 1, -(2**31), 2**48, 2**62, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, -1e300, math.inf, -math.inf, math.nan]
TEXTS = [
    "", "a", "\n", "\x00", "\x1b[2J", "é", "\U0001f980", "../../etc/passwd", "{}", "x" * 300,
    '{"widths": [12, 12]}', "partsum.shared.tasks:digits", "os:system",
    "0" * 32, "f" * 32, "g" * 32, "r0-p0", "r0-p1",
]  # fmt: skip
LONG_TEXTS = ["x" * 70_000, "x" * 3_000_000, "[" * 100_000, '{"a":' * 50_000]
_WHOLE = {
    Field.TYPE_INT32: 32, Field.TYPE_SINT32: 32, Field.TYPE_SFIXED32: 32, Field.TYPE_ENUM: 32,
    Field.TYPE_INT64: 64, Field.TYPE_SINT64: 64, Field.TYPE_SFIXED64: 64,
}  # fmt: skip
_NATURAL = {Field.TYPE_UINT32: 32, Field.TYPE_FIXED32: 32} | {
    Field.TYPE_UINT64: 64,
    Field.TYPE_FIXED64: 64,
}


class Wild:
    """Draws wild values. ``words`` are texts that mean something to whom they are sent."""

    def __init__(self, rng: random.Random, words: Sequence[str] = ()) -> None:
        self.rng = rng
        self.words = list(words)

    def noise(self) -> bytes:
        """Bytes that are most likely no message at all."""
        return self.rng.randbytes(self.rng.choice([0, 1, 2, 5, 20, 100, 3000]))

    def message(self, kind: type[Message], depth: int = 0) -> Any:
        """A message of that kind which protobuf takes, with fields as they come."""
        made: Any = kind()
        for field in made.DESCRIPTOR.fields:
            if self.rng.random() < 0.3 + 0.1 * depth:
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._fill_map(getattr(made, field.name), field, depth)
            elif field.is_repeated:
                values = [self._value(field, depth) for _ in range(self.rng.choice([0, 1, 2, 50]))]
                getattr(made, field.name).extend(values)
            elif field.message_type is not None:
                getattr(made, field.name).CopyFrom(self._value(field, depth))
            else:
                setattr(made, field.name, self._value(field, depth))
        return made

    def _fill_map(self, target: Any, field: Any, depth: int) -> None:
        entry = field.message_type.fields_by_name
        for _ in range(self.rng.choice([0, 1, 3, 50])):
            key, value = (self._value(entry[name], depth) for name in ("key", "value"))
            if entry["value"].message_type is not None:
                target[key].CopyFrom(value)
            else:
                target[key] = value

    def _value(self, field: Any, depth: int) -> Any:
        if field.message_type is not None:
            return self.message(field.message_type._concrete_class, depth + 1)
        if field.type in _WHOLE:
            return self.whole(_WHOLE[field.type])
        if field.type in _NATURAL:
            return self.whole(_NATURAL[field.type] + 1) & (2 ** _NATURAL[field.type] - 1)
        if field.type in {Field.TYPE_DOUBLE, Field.TYPE_FLOAT}:
            return self.rng.choice([*FLOATS, self.rng.uniform(0, 1), self.rng.uniform(-9, 9)])
        if field.type == Field.TYPE_BOOL:
            return self.rng.random() < 0.5
        if field.type == Field.TYPE_BYTES:
            return self.rng.choice([b"", b"\0", self.rng.randbytes(32), self.rng.randbytes(5000)])
        return self.text()

    def whole(self, bits: int) -> int:
        """A signed integer of so many bits: small, or at an edge."""
        edge = 2 ** (bits - 1)
        fits = [value for value in INTS if -edge <= value < edge]
        return self.rng.choice([*fits, self.rng.randrange(0, 9), self.rng.randrange(-edge, edge)])

    def text(self) -> str:
        """A word that means something, one that should not, or, rarely, a very long one."""
        if self.rng.random() < 0.003:
            return self.rng.choice(LONG_TEXTS)
        return self.rng.choice(self.words if self.words and self.rng.random() < 0.5 else TEXTS)

    def mutated(self, data: bytes) -> bytes:
        """The bytes with a few changes: flipped, cut out, doubled, put in."""
        found = bytearray(data)
        for _ in range(self.rng.randrange(1, 5)):
            place = self.rng.randrange(len(found) + 1)
            end = min(len(found), place + self.rng.randrange(1, 9))
            match self.rng.randrange(4):
                case 0:
                    found[place:end] = self.rng.randbytes(end - place)
                case 1:
                    del found[place:end]
                case 2:
                    found[place:place] = found[place:end]
                case _:
                    found[place:place] = self.rng.randbytes(self.rng.randrange(1, 5))
        return bytes(found)

    def almost(self, message: Message) -> Any:
        """A message with a few of its bytes or fields changed; itself, where that is none."""
        try:
            if self.rng.random() < 0.5:
                return type(message).FromString(self.mutated(message.SerializeToString()))
        except DecodeError:
            pass
        changed = type(message)()
        changed.CopyFrom(message)
        other = self.message(type(message))
        for field, value in other.ListFields():
            if self.rng.random() < 0.25 and not field.is_repeated and field.message_type is None:
                setattr(changed, field.name, value)
        return changed

    def some(self, make: Callable[[], Any], most: int = 12) -> list[Any]:
        """A few of them."""
        return [make() for _ in range(self.rng.randrange(1, most + 1))]
