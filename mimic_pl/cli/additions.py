"""Overlays that extend a dictionary: ``units+`` and ``losses+`` in a YAML file.

In a file, jsonargparse replaces a dictionary as a whole, but the command line can set single entries. So additions are
converted to options.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mimic_pl.construction import MODEL_DEFAULTS
from mimic_pl.errors import ConfigError

_EXTENDED = ("units", "losses")


def with_additions(args: Sequence[str]) -> Iterator[str]:
    """Replace each ``--config FILE`` that adds units or losses by equivalent options, in place.

    Args:
        args: The command line.

    Raises:
        ConfigError: An addition is not a dictionary.
    """
    from mimic_pl.yaml_file import read_yaml

    given: set[str] = set()
    rest = iter(args)
    for arg in rest:
        option, equals, value = arg.partition("=")
        given |= {name for name in _EXTENDED if option == f"--model.{name}" or option.startswith(f"--model.{name}.")}
        if option not in ("-c", "--config"):
            yield arg
            continue
        text = value if equals else next(rest, "")
        if not Path(text).is_file():
            yield f"{option}={text}"  # JSON, or an error that the parser reports
            continue
        config = read_yaml(Path(text))
        arguments = (config.get("model") or {}).get("init_args") if isinstance(config.get("model"), dict) else None
        arguments = arguments if isinstance(arguments, dict) else {}
        given |= {name for name in _EXTENDED if arguments.get(name) is not None}
        added = {name: arguments.pop(f"{name}+") for name in _EXTENDED if f"{name}+" in arguments}
        if not added:
            yield f"{option}={text}"
            continue
        yield f"{option}={json.dumps(config)}"
        for name, entries in added.items():
            if not isinstance(entries, dict):
                raise ConfigError(f"{text}: '{name}+' is {type(entries).__name__}; it must map names to classes.")
            if name not in given:
                yield f"--model.{name}={json.dumps(MODEL_DEFAULTS[name])}"
                given.add(name)
            for key, entry in entries.items():
                yield f"--model.{name}.{key}={json.dumps(entry)}"
