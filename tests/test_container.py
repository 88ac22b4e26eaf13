"""The container's files, as far as they can be tried without one."""

import json
import re
from pathlib import Path

import yaml

from sacl.commands import parsed

ROOT = Path(__file__).parents[1]


def test_compose_starts_a_node_with_flags_that_there_are():
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    values = {"ORTHANC_PASSWORD": "secret", "MODEL": "/m/model.sacl", "ORTHANC_IMAGE": "orthanc"}
    filled = re.sub(r"\$\{(\w+)[^}]*\}", lambda match: values[match[1]], text)
    services = yaml.safe_load(filled)["services"]
    known, settings = parsed(services["sacl"]["command"])
    assert (known.command, settings) == ("serve", {})
    assert known.orthanc == "http://sacl:secret@orthanc:8042"
    assert json.loads(services["orthanc"]["environment"]["ORTHANC__REGISTERED_USERS"]) == {
        "sacl": "secret"
    }
    mounted = [volume.split(":")[1] for volume in services["sacl"]["volumes"]]
    assert [str(path) for path in known.model] == [mounted[0]]
    assert str(known.store) == mounted[1]


def test_the_image_is_built_from_files_that_docker_is_given():
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    given = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (.*)", docker, re.MULTILINE):
        *copied, _to = line.split()
        for name in copied:
            assert (ROOT / name).exists()
            assert f"!{name}" in given
