"""python -m hyco.flows.engine: one flow run in a process that ends with its worker and with its run.

Work pools start this instead of `prefect.engine`. A killed `prefect worker` would leave its flow runs running, and a
run that the server has marked dead (heartbeats lost, or cancelled by a person) would continue next to its successor.
"""

import contextlib
import os
import runpy
import threading
import time

from hyco.pipeline.runtime.parent_death import bind

LOOK_EVERY_S = 15.0
STALE = 75  # exit code: the server had ended the run


def main() -> None:
    """Bind this process to its parent, watch the run's state, and run the flow."""
    bind(os.getppid())
    import prefect.client.orchestration  # noqa: F401  first: two threads that import Prefect at once deadlock

    if run := os.environ.get("PREFECT__FLOW_RUN_ID"):
        threading.Thread(target=_end_with, args=(run,), daemon=True).start()
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _end_with(run: str) -> None:
    """End this process when the server has reported twice, LOOK_EVERY_S apart, that the run is over."""
    from uuid import UUID

    from prefect.client.orchestration import get_client

    times_over = 0
    while times_over < 2:
        time.sleep(LOOK_EVERY_S)
        with contextlib.suppress(Exception):  # no answer of the server is no statement about the run
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(UUID(run)).state
            times_over = times_over + 1 if state is not None and state.is_final() else 0
    os._exit(STALE)


if __name__ == "__main__":
    main()
