"""The README's Dockerfile, compose file and systemd unit: their commands are ones that `mimic-pl serve` accepts."""

import configparser
import json
import shlex
import shutil
import subprocess
import urllib.parse

import pytest
import yaml
from jsonargparse import ArgumentParser

from tests.readme import readme_block

pytest.importorskip("fastapi_offline")

from mimic_pl.cli.serve import add_arguments

DOCKERFILE, COMPOSE, UNIT = "FROM python", "services:", "[Unit]"


def served_with(words):
    """The options of a command line."""
    assert words[0].rpartition("/")[2] == "mimic-pl" and words[1] == "serve"
    parser = ArgumentParser(exit_on_error=False)
    add_arguments(parser, complete=True)
    return parser.parse_args(words[2:])


def container():
    lines = [line.partition(" ") for line in readme_block(DOCKERFILE).splitlines()]
    (command,) = (json.loads(rest) for instruction, _, rest in lines if instruction == "CMD")
    (port,) = (rest for instruction, _, rest in lines if instruction == "EXPOSE")
    return served_with(command), int(port)


def test_the_container():
    options, exposed = container()
    assert options.port == exposed and options.host == "0.0.0.0"
    (service,) = yaml.safe_load(readme_block(COMPOSE))["services"].values()
    assert service["ports"] == [f"127.0.0.1:{exposed}:{exposed}"]
    mounted = [volume.split(":")[1] for volume in service["volumes"]]
    assert mounted == [options.kb, options.model]
    kind, *check = service["healthcheck"]["test"]
    assert kind == "CMD"
    code = compile(check[-1], "healthcheck", "exec")
    (address,) = (text for text in code.co_consts if isinstance(text, str))
    assert urllib.parse.urlsplit(address)[1:3] == (f"127.0.0.1:{exposed}", "/ready")


def test_the_systemd_unit(tmp_path):
    unit = configparser.ConfigParser()
    unit.optionxform = str
    unit.read_string(readme_block(UNIT))
    service = unit["Service"]
    options = served_with(shlex.split(service["ExecStart"]))
    assert options.writable and service["EnvironmentFile"]
    assert all(path.startswith(service["ReadWritePaths"] + "/") for path in (options.kb, options.model))
    if shutil.which("systemd-analyze"):
        there = readme_block(UNIT).replace("/opt/mimic-pl/bin/mimic-pl", shutil.which("true"))
        (tmp_path / "mimic-pl.service").write_text(there)
        command = ["systemd-analyze", "verify", str(tmp_path / "mimic-pl.service")]
        found = subprocess.run(command, capture_output=True, text=True)
        about = [line for line in (found.stdout + found.stderr).splitlines() if "mimic-pl" in line]
        assert not about, about
