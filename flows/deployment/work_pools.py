"""Base job templates of the work pools: the job that a worker of each type starts for a flow run."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from hyco.flows.runtime.settings import HEARTBEAT_S

PoolType = Literal["process", "docker", "kubernetes"]

CLAIMED_AT = "/data"  # mount point of a claim; the same path as in compose.yaml and the images
_GROUP = 10001  # of the images' user, who must be able to write there
_ENV = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
_TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
_NAMED = ("command", "env", "labels", "name")


def template(
    kind: PoolType,
    gpu: bool,
    image: str,
    directory: str,
    volumes: tuple[str, ...] = (),
    networks: tuple[str, ...] = (),
    claim: str | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The base job template of a pool.

    Args:
        kind: type of the pool.
        gpu: whether its runs request a GPU.
        image: container image with Hyco in it, for docker and kubernetes.
        directory: working directory of a process pool, so that relative paths mean the same as in a terminal.
        volumes: of docker containers, NAME_OR_FOLDER:PLACE.
        networks: of docker containers.
        claim: PersistentVolumeClaim of kubernetes pods, mounted at CLAIMED_AT.
        env: further variables of process runs.
    """
    if kind == "process":
        return _filled(
            {name: f"{{{{ {name} }}}}" for name in (*_NAMED, "stream_output", "working_dir")},
            command=f"{_python()} -m hyco.flows.engine",
            stream_output=True,
            working_dir=directory,
            env={**_ENV, **env},
        )
    if kind == "docker":
        names = (*_NAMED, "image", "image_pull_policy", "networks", "auto_remove", "volumes", "mem_limit")
        job: dict[str, Any] = {name: f"{{{{ {name} }}}}" for name in names}
        asked = [{"driver": "nvidia", "count": 1, "capabilities": [["gpu"]]}] if gpu else []
        job["container_create_kwargs"] = {"shm_size": "8g", "device_requests": asked}
        return _filled(
            job,
            command="python -m hyco.flows.engine",
            image=image,
            image_pull_policy="IfNotPresent",
            networks=list(networks),
            auto_remove=True,
            volumes=list(volumes),
        )
    return _filled(
        {name: f"{{{{ {name} }}}}" for name in (*_NAMED, "namespace")}
        | {"job_manifest": _manifest(gpu, claim)},
        command="python -m hyco.flows.engine",
        namespace="default",
        image=image,
        image_pull_policy="IfNotPresent",
        finished_job_ttl=3600,
        service_account_name=None,
    )


def _python() -> str:
    """This interpreter by its plain name: python and python3.11 of one environment are not a difference."""
    plain = Path(sys.executable).with_name("python")
    return str(plain) if plain.exists() else sys.executable


def _manifest(gpu: bool, claim: str | None) -> dict[str, Any]:
    needs: dict[str, Any] = {
        "limits": {"memory": "{{ memory_limit }}"},
        "requests": {"cpu": "{{ cpu_request }}", "memory": "{{ memory_request }}"},
    }
    if gpu:
        needs["limits"]["nvidia.com/gpu"] = 1
    # Dataloaders use shared memory; a pod has 64 MB of it by default.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": CLAIMED_AT})
    container = {
        "name": "prefect-job",
        "env": "{{ env }}",
        "image": "{{ image }}",
        "imagePullPolicy": "{{ image_pull_policy }}",
        "args": "{{ command }}",
        "resources": needs,
        "volumeMounts": mounts,
    }
    pod = {
        "parallelism": 1,
        "completions": 1,
        "restartPolicy": "Never",
        "serviceAccountName": "{{ service_account_name }}",
        "securityContext": {"fsGroup": _GROUP},
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "labels": "{{ labels }}",
            "namespace": "{{ namespace }}",
            "generateName": "{{ name }}-",
        },
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": "{{ finished_job_ttl }}",
            "template": {"spec": pod},
        },
    }


def _filled(job: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """A template of a job whose placeholders are variables, with these defaults."""
    properties: dict[str, Any] = {}
    for name in sorted(_placeholders(job)):
        properties[name] = {"title": name.replace("_", " ").capitalize(), **_type(defaults.get(name))}
        if defaults.get(name) is not None:
            properties[name]["default"] = defaults[name]
    properties["env"] = {"title": "Environment variables", **_TEXTS, "default": defaults.get("env", _ENV)}
    properties["labels"] = {"title": "Labels", **_TEXTS}
    return {"job_configuration": job, "variables": {"type": "object", "properties": properties}}


def _type(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer"}
    return {"type": "array", "items": {"type": "string"}} if isinstance(value, list) else {"type": "string"}


def _placeholders(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*map(_placeholders, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(_placeholders, value)) if value else set()
    return {value[3:-3]} if isinstance(value, str) and value.startswith("{{ ") else set()
