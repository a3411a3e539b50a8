"""Overlays that add to a dictionary: ``units+`` and ``losses+`` in a YAML.

jsonargparse replaces a dictionary as a whole, and takes single entries on the command line. So an addition becomes
options in the place of its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mimic_pl.errors import ConfigError

_DEFAULTS: dict[str, dict[str, Any]] = {
    "units": {
        "text": {"class_path": "mimic_pl.units.TGLU"},
        "vision": {"class_path": "mimic_pl.units.VDLU"},
        "cross_modal": {"class_path": "mimic_pl.units.CMFU"},
    },
    "losses": {"contrastive": {"class_path": "mimic_pl.losses.UnitConsistentLoss"}},
}
"""What a model has that says nothing else: what an addition is added to."""


def with_additions(args: Sequence[str]) -> Iterator[str]:
    """Replace each ``--config FILE`` that adds units or losses by options that do, in its place.

    Args:
        args: The command line.

    Raises:
        ConfigError: A file adds what is no dictionary.
    """
    from mimic_pl.runs import read_yaml

    given: set[str] = set()
    rest = iter(args)
    for arg in rest:
        option, equals, value = arg.partition("=")
        given |= {name for name in _DEFAULTS if option == f"--model.{name}" or option.startswith(f"--model.{name}.")}
        if option not in ("-c", "--config"):
            yield arg
            continue
        text = value if equals else next(rest, "")
        if not Path(text).is_file():
            yield f"{option}={text}"  # JSON, or a mistake that the parser names
            continue
        config = read_yaml(Path(text))
        arguments = (config.get("model") or {}).get("init_args") if isinstance(config.get("model"), dict) else None
        arguments = arguments if isinstance(arguments, dict) else {}
        given |= {name for name in _DEFAULTS if arguments.get(name) is not None}
        added = {name: arguments.pop(f"{name}+") for name in _DEFAULTS if f"{name}+" in arguments}
        if not added:
            yield f"{option}={text}"
            continue
        yield f"{option}={json.dumps(config)}"
        for name, entries in added.items():
            if not isinstance(entries, dict):
                raise ConfigError(f"{text}: '{name}+' adds {type(entries).__name__}; it must be names with classes.")
            if name not in given:
                yield f"--model.{name}={json.dumps(_DEFAULTS[name])}"
                given.add(name)
            for key, entry in entries.items():
                yield f"--model.{name}.{key}={json.dumps(entry)}"
