"""What the words of a command line mean: settings by dotted flag, a configuration, data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sacl.errors import ConfigError
from sacl.run.configure import is_config


def take_dotted_flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--a.b value` and `--a.b=value` from the rest; dashes may stand for underscores.

    Raises:
        ConfigError: the last flag has no value.
    """
    flags: dict[str, str] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--") or "." not in name:
            rest.append(word)
            continue
        if not equals and (value := next(words, "")) == "":
            raise ConfigError(f"--{name}: a value is missing")
        flags[name.replace("-", "_")] = value
    return flags, rest


def config_and_data(words: Sequence[str]) -> tuple[Path | None, str | None]:
    """Split what is given to read into the configuration and the data, as text of `ingest.data`.

    What ends in `.yaml` or `.yml` is the configuration, all else a folder or table of scans.

    Raises:
        ConfigError: there are two configurations.

    Example:
        >>> config_and_data(["run.yaml", "btcv", "flare"])
        (PosixPath('run.yaml'), '["btcv", "flare"]')
    """
    configs = [word for word in words if is_config(word)]
    data = [word for word in words if word not in configs]
    if len(configs) > 1:
        raise ConfigError(f"two configurations, {configs[0]} and {configs[1]}; give one")
    config = Path(configs[0]) if configs else None
    if not data:
        return config, None
    return config, data[0] if len(data) == 1 else json.dumps(data)
