"""The one check that settings make of themselves."""

from __future__ import annotations

from sacl.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Refuse a setting.

    Raises:
        ConfigError: with the message, where the condition does not hold.
    """
    if not condition:
        raise ConfigError(message)
