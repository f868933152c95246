"""Credentials: one file that says who a node or an operator is, and proves it.

The coordinator's `partsum certs` and `partsum tokens` write it; nodes and operators show it.
"""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from partsum.shared.errors import ConfigError
from partsum.shared.files import open_to_others

log = logging.getLogger(__name__)

Role = Literal["node", "operator"]
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Secret = Annotated[_Text | None, Field(repr=False)]


class Credentials(BaseModel):
    """Who somebody is: a token, or a certificate with its key, or both; never logged."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    name: _Text
    role: Role
    expires: AwareDatetime
    authority: Annotated[_Text, Field(repr=False)]
    """PEM; the coordinator is known by a certificate that this one signed."""
    token: _Secret = None
    certificate: _Secret = None
    key: _Secret = None
    path: Path = Path()
    """The file that they came from."""

    @model_validator(mode="after")
    def _proves_something(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        if self.token is None and self.certificate is None:
            raise ValueError("there is neither a token nor a certificate")
        return self

    def text(self) -> str:
        """The file's text."""
        lines = [
            f"# The credentials of {self.role} {self.name}. Whoever has this file is {self.name}:",
            "# move it over a safe channel only, and keep it from others (mode 0600).",
            f'name = "{self.name}"',
            f'role = "{self.role}"',
            f"expires = {self.expires.isoformat(timespec='seconds')}",
        ]
        for what in ("token", "certificate", "key", "authority"):
            if value := getattr(self, what):
                lines.append(f'{what} = """\n{value}\n"""')
        return "\n".join(lines) + "\n"


def load_credentials(path: Path, role: Role) -> Credentials:
    """Read a credentials file that the user named, and warn where others can read it too.

    Raises:
        ConfigError: it cannot be read, is none, or is for another role.
    """
    credentials = read_credentials(path)
    if open_to_others(path):
        log.warning("others on this host can read %s; do: chmod 600 %s", path, path)
    if credentials.role != role:
        raise ConfigError(
            f"the credentials {path} give {credentials.name} the role {credentials.role}; the role "
            f"{role} is needed here (`partsum certs {role}`, `partsum tokens {role}`)"
        )
    return credentials


def read_credentials(path: Path) -> Credentials:
    """Read a credentials file. Raises ConfigError, which quotes nothing of it."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return Credentials.model_validate({**values, "path": path})
    except OSError as error:
        raise ConfigError(f"cannot read the credentials {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):  # their words might quote a secret
        raise ConfigError(f"{path} is not a credentials file: it is not TOML") from None
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        said = ": ".join([*map(str, problem["loc"]), problem["msg"]])
        raise ConfigError(f"{path} is not a credentials file: {said}") from None
