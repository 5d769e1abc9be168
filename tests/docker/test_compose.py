"""What can be said of docker/ without an engine: the secrets, the ports, the users, the pins, the settings' names.

tests/services runs the same topology as processes and the Dockerfile's steps in a clean Debian.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.settings import Settings
from prefect.settings.legacy import Setting, _get_settings_fields

from hyco.flows.runtime.server import environment
from hyco.pipeline.training.recipes import by_name

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker/compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
ONE_SHOT = {"migrate", "deploy"}
STAGES = re.split(r"^FROM ", (ROOT / "docker/Dockerfile").read_text(), flags=re.MULTILINE)[1:]
SETTINGS: dict[str, Setting] = {k: s for k, s in _get_settings_fields(Settings).items() if k.isupper()}
# Settings of packages that Prefect's own table does not list.
REDIS = {"PREFECT_REDIS_MESSAGING_URL", "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL"}


def test_every_secret_comes_from_the_environment() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", TEXT))
    told = set(re.findall(r"^#? ?([A-Z_]+)=", (ROOT / "docker/.env.example").read_text(), re.MULTILINE))
    assert asked == told
    for name in ("HYCO_AUTH", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "HYCO_GROUNDER", "HYCO_RECIPE"):
        assert f"${{{name}:?" in TEXT, f"{name} must be refused when it is not set"
    assert not re.search(r"PASSWORD: (?!\$)|AUTH(_STRING)?: (?!\$)", TEXT)


def test_only_the_loopback_is_open() -> None:
    own = {name: service for name, service in SERVICES.items() if "profiles" not in service}
    published = [port for service in own.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:4200:4200", "127.0.0.1:8300:8300"]


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_what_stays_up_is_watched_and_restarted(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"]["max-size"], "a log without a limit fills the disk"
    if name != "server":  # its image brings one
        assert service["healthcheck"]["test"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_the_settings_exist(name: str) -> None:
    known = set(SETTINGS) | REDIS
    used = {key for key in SERVICES[name].get("environment", {}) if key.startswith("PREFECT_")}
    assert used <= known


@pytest.mark.parametrize("name", ["server", "services", "migrate"])
def test_nothing_that_two_processes_share_stays_in_memory(name: str) -> None:
    """The server runs as two processes: what Prefect keeps in memory by default must be in Redis or PostgreSQL."""
    environment = SERVICES[name]["environment"]
    kept = [
        k for k, s in SETTINGS.items() if k.startswith("PREFECT_SERVER_") and "memory" in str(s.default())
    ]
    assert len(kept) >= 5
    for key in kept:
        assert "redis" in environment.get(key, "memory"), f"{key} is kept in memory"
    assert environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")


@pytest.mark.parametrize("name", ["server", "services", "migrate"])
def test_logs_and_artifacts_of_deleted_runs_are_removed(name: str) -> None:
    wanted = environment(4200)["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"]
    assert SERVICES[name]["environment"]["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] == wanted


def test_the_folder_that_is_mounted_is_watched_by_the_pool_that_is_chosen() -> None:
    command = SERVICES["deploy"]["command"]
    assert "--set=heavy_pool=${HYCO_HEAVY_POOL:-cpu}" in command
    (place,) = [mount.split(":")[-2] for mount in SERVICES["deploy"]["volumes"] if "HYCO_SOURCES" in mount]
    assert f"--source={place}" in command


def test_grounder_and_recipe_are_those_of_the_environment(tmp_path: Path) -> None:
    """Nobody mines photographs with the grounder of the drawings because a line was left out."""
    told = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / "docker/.env.example").read_text(), re.MULTILINE))
    assert told["HYCO_GROUNDER"].startswith("transformers:/weights/")
    mounts = SERVICES["cpu-worker"]["volumes"]
    assert any(mount.endswith(":/weights:ro") for mount in mounts)
    assert by_name(told["HYCO_RECIPE"])
    out = tmp_path / "prefect.yaml"
    (tmp_path / "sources").mkdir()
    shutil.copytree(ROOT / "demo/weights/grounder", tmp_path / "weights/grounding-dino-tiny")
    words = [
        re.sub(
            "([=:])/",
            rf"\g<1>{tmp_path}/",
            re.sub(r"\$\{(\w+)[^}]*\}", lambda m: told.get(m[1], "gpu"), word),
        )
        for word in SERVICES["deploy"]["command"][1:]
    ]
    command = [sys.executable, "-m", "hyco.flows", *words, "--home", str(tmp_path), "--yaml", str(out)]
    subprocess.run(command, check=True, timeout=120, cwd=ROOT)
    text = out.read_text()
    assert f"{tmp_path}/weights/grounding-dino-tiny" in text and f"{tmp_path}/sources" in text


def test_an_index_of_torch_alone_is_asked_for_torch_alone() -> None:
    """PyTorch's index has torch's dependencies in versions of its own, not always in those of constraints.txt."""
    lines = [
        line for stage in STAGES for line in re.findall(r"pip install .*", stage) if "--index-url" in line
    ]
    assert lines and all(" torch --no-deps " in line for line in lines)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.split()[2])
def test_images_run_as_nobody_in_particular_and_install_what_is_pinned(stage: str) -> None:
    if "\nCMD " in stage:
        assert stage.index("\nUSER 10001:10001\n") < stage.index("\nCMD ")
    for line in re.findall(r"pip install .*", stage):
        assert "-c constraints.txt" in line
    for source in re.findall(r"^COPY (.*) \S+$", stage, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists()
