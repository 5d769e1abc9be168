"""Maintain: delete unreferenced files, old flow runs with their logs, and old result files."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from pydantic import Field

from hyco.flows.runtime.runs import done, inside, named
from hyco.pipeline.config import Config
from hyco.pipeline.curation.delete import settle
from hyco.storage.gc import collect
from hyco.storage.home import Home

_PAGE = 100


class MaintainConfig(Config):
    """Ages after which files and flow runs are deleted."""

    runs_days: float = Field(default=30, gt=0)
    """Days after which ended flow runs are deleted, with their task runs; the server's own vacuum deletes
    their logs and artifacts.
    """
    results_days: float = Field(default=30, gt=0)
    """Days after which result files of flow runs on this machine are deleted."""
    files_hours: float = Field(default=24, gt=0)
    """Hours after which files of the home that no record and no version names are deleted."""
    most_runs: int = Field(default=2000, ge=1)
    """Maximum number of flow runs deleted per run of this flow, so that the server stays responsive."""


@flow(
    name="maintain",
    flow_run_name=named(lambda given: f"maintain {inside(given.get('home', 'var'))}"),
    persist_result=True,
    result_serializer="json",
    timeout_seconds=3600,
)
def maintain(config: MaintainConfig | None = None, home: str = "var") -> dict[str, Any]:
    """Delete old and unreferenced files and runs, and report their number.

    Args:
        config: ages after which files and flow runs are deleted.
        home: where Hyco stores everything.
    """
    config = config or MaintainConfig()
    gone = {
        "files of the home": clean_home(Home(home), config.files_hours),
        "flow runs": delete_runs(config.runs_days, config.most_runs),
        "result files": delete_results(config.results_days),
    }
    rows = [{"deleted": name, "count": str(count)} for name, count in gone.items()]
    create_table_artifact(
        table=rows, key="maintenance", description=f"{home}, {datetime.now(UTC):%Y-%m-%d %H:%M}"
    )
    return done("deleted " + ", ".join(f"{count} {name}" for name, count in gone.items()), gone)


@task(name="files of the home", cache_policy=NO_CACHE, persist_result=False)
def clean_home(home: Home, hours: float) -> int:
    """Finish deletions, and delete unreferenced files older than this; return how many files."""
    settle(home)
    return len(collect(home.store, hours * 3600))


@task(name="old flow runs", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=10)
def delete_runs(days: float, most: int) -> int:
    """Delete flow runs that ended longer ago than this, in order of their start; return how many."""
    before = datetime.now(UTC) - timedelta(days=days)
    chosen = FlowRunFilter(
        end_time=FlowRunFilterEndTime(before_=before),  # type: ignore[arg-type]
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES))),
    )
    count = 0
    with get_client(sync_client=True) as client:
        while count < most:
            page = client.read_flow_runs(
                flow_run_filter=chosen, sort=FlowRunSort.START_TIME_ASC, limit=min(_PAGE, most - count)
            )
            if not page:
                break
            for run in page:
                try:
                    client.delete_flow_run(run.id)
                    count += 1
                except ObjectNotFound:
                    get_run_logger().info("%s was deleted with its parent", run.name)
    return count


@task(name="old result files", cache_policy=NO_CACHE, persist_result=False)
def delete_results(days: float) -> int:
    """Delete result files of this machine older than this; return how many."""
    folder = Path(get_current_settings().results.local_storage_path)
    old = time.time() - days * 86400
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    gone = [path for path in files if path.stat().st_mtime < old]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)
