"""The examples of docs/scale.md are valid: manifests, scripts, and options that `hyco train` has."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import hyco.pipeline.cli  # noqa: F401  registers the verbs
from hyco.pipeline.cli.app import app

TEXT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def train(words: list[str]) -> dict[str, Any]:
    """The values that `hyco train` reads from its arguments."""
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    return command.make_context("train", words).params


@pytest.mark.parametrize("script", [one for one in blocks("bash") if "#SBATCH" in one])
def test_the_slurm_script_is_bash_and_gives_known_options(script: str) -> None:
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    (command,) = re.findall(r"bash -c 'exec (hyco train [^']*)'", script)
    for name, value in {
        "SLURM_NNODES": "2",
        "SLURM_NODEID": "1",
        "MEET": "node0:29500",
        "SLURM_GPUS_ON_NODE": "8",
    }.items():
        command = command.replace(f"${name}", value)
    given = train(shlex.split(command.replace("\\\n", " "))[2:])
    assert (given["nodes"], given["node_rank"], given["rendezvous"], given["processes"]) == (
        2,
        1,
        "node0:29500",
        8,
    )


def test_the_kubernetes_job_is_an_indexed_one_whose_pods_find_node_0() -> None:
    service, job = (
        one for block in blocks("yaml") for one in yaml.safe_load_all(block)
        if one["metadata"]["name"] == "hyco-train"
    )  # fmt: skip
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service") and service["spec"][
        "clusterIP"
    ] == "None"
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job") and job["spec"][
        "completionMode"
    ] == "Indexed"
    pod = job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"] and pod["restartPolicy"] == "OnFailure"
    (container,) = pod["containers"]
    assert container["command"][:2] == ["hyco", "train"]
    given = train([word.replace("$(NODE_RANK)", "1") for word in container["command"][2:]])
    assert given["nodes"] == job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert given["processes"] == container["resources"]["limits"]["nvidia.com/gpu"]
    host, _, port = given["rendezvous"].partition(":")
    assert (
        host == f"{job['metadata']['name']}-0.{pod['subdomain']}"
        and int(port) == service["spec"]["ports"][0]["port"]
    )
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert next(one for one in container["env"] if one["name"] == "NODE_RANK")["valueFrom"]["fieldRef"][
        "fieldPath"
    ] == ("metadata.annotations['batch.kubernetes.io/job-completion-index']")
