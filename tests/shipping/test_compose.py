"""compose.yaml has the form of the compose specification, and fits the files around it."""

import os
import re
import subprocess
import sys

import pytest
from compose_site import REPOSITORY, compose, servers
from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of the compose specification, as far as this project uses it."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Build(Part):
    context: str
    dockerfile: str
    target: str


class Condition(Part):
    condition: str
    restart: bool = False


class Service(Part):
    image: str
    build: Build
    restart: str
    read_only: bool
    tmpfs: list[str]
    cap_drop: list[str]
    security_opt: list[str]
    networks: list[str]
    command: list[str] = []
    environment: dict[str, str] = {}
    secrets: list[str] = []
    volumes: list[str] = []
    ports: list[str] = []
    depends_on: dict[str, Condition] = {}


class Secret(Part):
    file: str


class Network(Part):
    internal: bool = False


class Compose(Part):
    name: str
    services: dict[str, Service]
    networks: dict[str, Network]
    volumes: dict[str, Part]
    secrets: dict[str, Secret]


@pytest.fixture(scope="module")
def parsed():
    content = {name: part for name, part in compose().items() if not name.startswith("x-")}
    return Compose.model_validate(content)


@pytest.fixture(scope="module")
def schema_check(tmp_path_factory):
    """check-jsonschema, which has the schema of the compose specification, as a function.

    It is installed aside: it needs a newer jsonschema than MONAI Label allows.
    """
    folder = tmp_path_factory.mktemp("check-jsonschema")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    if subprocess.run([*pip, "check-jsonschema>=0.33"], capture_output=True).returncode:
        pytest.skip("check-jsonschema could not be installed; there is no network")

    def faults(path):
        command = [sys.executable, "-m", "check_jsonschema"]
        command += ["--builtin-schema", "vendor.compose-spec", str(path)]
        env = {**os.environ, "PYTHONPATH": str(folder)}
        result = subprocess.run(command, capture_output=True, text=True, env=env)
        return result.stdout + result.stderr if result.returncode else ""

    return faults


@pytest.mark.slow
def test_compose_yaml_follows_the_compose_specification(schema_check, tmp_path):
    assert schema_check(REPOSITORY / "compose.yaml") == ""
    wrong = tmp_path / "compose.yaml"
    text = (REPOSITORY / "compose.yaml").read_text()
    wrong.write_text(text.replace("cap_drop:", "drop_capabilities:"))
    assert "drop_capabilities" in schema_check(wrong)


def test_the_parts_that_are_named_exist(parsed):
    containerfile = (REPOSITORY / "Containerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", containerfile, flags=re.MULTILINE))
    for service in parsed.services.values():
        assert service.build.target in targets
        assert set(service.secrets) <= set(parsed.secrets)
        assert set(service.networks) <= set(parsed.networks)
        assert {volume.partition(":")[0] for volume in service.volumes} <= set(parsed.volumes)
        assert set(service.depends_on) <= set(parsed.services)
    for port in (8042, 4242, 8080, 8443, 8000):
        assert re.search(rf"^EXPOSE .*\b{port}\b", containerfile, flags=re.MULTILINE)


def test_every_service_is_hardened(parsed):
    for service in parsed.services.values():
        assert service.read_only
        assert service.cap_drop == ["ALL"]
        assert "no-new-privileges:true" in service.security_opt


def test_only_the_proxy_is_reached_from_other_machines(parsed):
    assert parsed.networks["inside"].internal
    for name, service in parsed.services.items():
        open_ports = [port for port in service.ports if not port.startswith("127.0.0.1:")]
        assert bool(open_ports) == (name == "proxy")


def test_the_proxy_passes_headers_with_the_names_of_many_structures():
    """With nginx's 4 KB, a label of a hundred structures is an HTTP 502."""
    config = (REPOSITORY / "deploy" / "nginx.conf").read_text()
    assert "proxy_buffer_size 64k;" in config and "proxy_buffers 8 64k;" in config


def test_the_proxy_knows_all_servers(parsed):
    config = (REPOSITORY / "deploy" / "nginx.conf").read_text()
    assert re.findall(r"^ +server (server-\d+):8000 ", config, flags=re.M) == servers()
    assert set(parsed.services["proxy"].depends_on) == set(servers())
