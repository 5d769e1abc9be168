"""docker/ without an engine: hadolint, the compose schema, and the Dockerfile's steps executed in a clean Debian.

The clean Debian is a chroot made by debootstrap with the same release as the base image and its own python3.11 in front
of PATH. COPY, ENV, ARG, RUN and USER are carried out as they stand; only the CPU index of torch is replaced, by the
machine's own package index (a build argument), and no GPU library is fetched for the gpu image.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker/Dockerfile"
BIN = Path(sys.executable).parent
SUITE = "bookworm"  # of python:3.11-slim-bookworm
HOST_PIP = (
    "PIP_CERT",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "SSL_CERT_FILE",
    "HTTPS_PROXY",
)

pytestmark = [pytest.mark.services, pytest.mark.timeout(1800)]


def test_hadolint_has_nothing_to_say() -> None:
    subprocess.run([BIN / "hadolint", DOCKERFILE], check=True)


def test_the_compose_file_fits_the_schema(tmp_path: Path) -> None:
    compose = ROOT / "docker/compose.yaml"
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*check, compose], check=True)
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(compose.read_text().replace("interval: 5s", "intervall: 5s"))
    assert subprocess.run([*check, wrong], capture_output=True).returncode != 0


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        pytest.skip("needs root and debootstrap")
    root = tmp_path_factory.mktemp("debian") / "root"
    made = ["debootstrap", "--variant=minbase", SUITE, root, "http://deb.debian.org/debian"]
    subprocess.run(made, check=True, capture_output=True)
    for name in ("etc/resolv.conf", "etc/hosts"):
        shutil.copyfile(Path("/") / name, root / name)
    for folder in filter(None, os.environ.get("PIP_FIND_LINKS", "").split()):
        if Path(folder).is_dir():
            shutil.copytree(folder, root / folder.lstrip("/"))
    in_root(root, {}, "apt-get update && apt-get install -y --no-install-recommends python3.11-venv")
    certificates = "etc/ssl/certs/ca-certificates.crt"  # this machine's, which may hold a proxy's
    (root / certificates).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(f"/{certificates}", root / certificates)
    in_root(root, {}, "python3.11 -m venv /usr/local/python")
    yield root
    shutil.rmtree(root)


def in_root(root: Path, environment: dict[str, str], command: str, user: str | None = None) -> str:
    """Run a shell command in the chroot; its output. AssertionError with the end of it when it fails."""
    path = "/usr/local/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    pip = {key: os.environ[key] for key in HOST_PIP if key in os.environ}
    home = {"HOME": "/home/hyco" if user else "/root", "LANG": "C.UTF-8"}
    into = ["chroot", *([f"--userspec={user}"] if user else []), str(root)]
    done = subprocess.run(
        [*into, "/bin/sh", "-c", f"cd {environment.get('WORKDIR', '/')} && {command}"],
        env={"PATH": path} | pip | home | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}"
    return done.stdout


def stages() -> dict[str, list[dict[str, str]]]:
    """The instructions of each stage of the Dockerfile, those of the stages below it first."""
    from dockerfile_parse import DockerfileParser

    found: dict[str, list[dict[str, str]]] = {}
    own: list[dict[str, str]] = []
    for step in DockerfileParser(path=str(DOCKERFILE)).structure:
        if step["instruction"] == "FROM":
            base, _, name = step["value"].split()
            own = found[name] = list(found.get(base, []))
        elif step["instruction"] != "COMMENT":
            own.append(step)
    return found


def build(root: Path, steps: list[dict[str, str]]) -> tuple[dict[str, str], str | None]:
    """Carry out a stage; its environment and user."""
    environment: dict[str, str] = {}
    user = None
    for step in steps:
        kind, value = step["instruction"], step["value"]
        if kind == "ENV":
            environment |= dict(word.split("=", 1) for word in shlex.split(value))
        elif kind == "ARG":
            name = value.split("=")[0]
            assert name == "TORCH_INDEX"
            environment[name] = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
        elif kind == "WORKDIR":
            environment["WORKDIR"] = value
            (root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif kind == "COPY":
            *sources, target = value.split()
            place = root / environment["WORKDIR"].lstrip("/") / target
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True
                    )
                else:
                    shutil.copy2(ROOT / source, place)
        elif kind == "RUN":
            in_root(root, environment, value)
        elif kind == "USER":
            user = value
    return environment, user


# What each image must be able to do, as the user it runs as. The gpu image is not asked to import transformers: here it
# has a CPU torch, beside which its torchvision cannot be imported.
DOES = {
    "server": ["prefect version", "python -c 'import prefect_redis.messaging, asyncpg'"],
    "cpu": ["hyco --help", "python -c 'import onnxruntime, torch, hyco.flows.mine'", "touch /data/written"],
    "gpu": ["hyco --help", "python -c 'import cv2, torch'", "touch /data/written"],
}


@pytest.mark.parametrize("name", sorted(DOES))
def test_the_steps_of_an_image(name: str, debian: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", debian, root], check=True)
    try:
        environment, user = build(root, stages()[name])
        assert user
        for command in DOES[name]:
            in_root(root, environment, command, user)
        with pytest.raises(AssertionError):
            in_root(root, environment, "touch /app/hyco-was-here", user)
    finally:
        shutil.rmtree(root, ignore_errors=True)
