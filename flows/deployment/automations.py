"""The automations: they mark dead runs, run the watch flow when something has changed, and send messages."""

from datetime import timedelta
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from hyco.flows.deployment.config import DeployConfig
from hyco.flows.reporting.events import (
    AWAY,
    DECIDED,
    GIVEN_UP,
    GROWN,
    PUBLISHED,
    QUARANTINED,
    RETURNED,
    SHELVED,
)
from hyco.storage.model_registry import REFUSED

TELLS = "hyco: tell of "
A_DAY = timedelta(days=1)
RUN = "prefect.flow-run."
ANY_RUN = ResourceSpecification({"prefect.resource.id": f"{RUN}*"})
# Events carry the name of the state, not its type, so every name that ends or suspends a run must be here.
ENDED = {"Completed", "NothingToDo", "Failed", "TimedOut", "Cancelled", "Crashed"}
RESTING = {"Paused", "Suspended", "AwaitingRetry", "AwaitingConcurrencySlot", "Scheduled", "Cancelling"}


def messages(block: UUID, look: UUID) -> list[AutomationCore]:
    """The automations that send messages through a block; of what repeats with every check, one a day.

    Args:
        block: the notification block.
        look: the deployment watch/watch.
    """
    reason = "{{ event.resource.name }}: {{ event.payload.reason }}"
    failed = "{{ flow_run.name }} of {{ deployment.name }}: {{ flow_run.state.message }}"
    refused, nothing = {DECIDED[REFUSED]}, timedelta(0)
    return [
        _tell(block, "a quarantined dataset version", {QUARANTINED}, reason, A_DAY),
        _tell(block, "a shard that is set aside", {SHELVED, AWAY}, reason, A_DAY),
        _tell(block, "a refused model", refused, reason, nothing),
        _tell(block, "a training that is given up", {GIVEN_UP}, reason, A_DAY),
        _tell(
            block, "a failed check of the source", {f"{RUN}Failed", f"{RUN}Crashed"}, failed, A_DAY, of=look
        ),
    ]


def automations(config: DeployConfig, ids: dict[str, UUID]) -> list[AutomationCore]:
    """The automations that keep the work going; `ids` maps full names of deployments to their ids."""
    look = ids["watch/watch"]
    later = timedelta(seconds=config.gathered_s)
    return [
        _absence(
            "hyco: a run without heartbeat is dead",
            "heartbeat",
            {"heartbeat"} | ENDED | RESTING,
            config.dead_after_s,
            "No heartbeat: the process, its worker or its machine died.",
        ),
        _absence(
            "hyco: a run that never began is dead",
            "Pending",
            {"Running", "Retrying"} | ENDED | RESTING,
            config.begin_within_s,
            "A worker took the run and did not start it.",
        ),
        _then_look("hyco: the source has grown", {GROWN, SHELVED, RETURNED}, look, later, later),
        _then_look("hyco: a dataset version was published", {PUBLISHED}, look, later, later),
        _then_look(
            "hyco: a training is over",
            {f"{RUN}{name}" for name in ENDED - {"Cancelled"}},
            look,
            timedelta(0),
            timedelta(seconds=10),
            of=ids["retrain/retrain"],
        ),
        _then_look(
            "hyco: a look has died",
            {f"{RUN}Crashed"},
            look,
            timedelta(seconds=60),
            timedelta(seconds=10),
            of=look,
        ),
    ]


def _absence(name: str, after: str, expect: set[str], within_s: float, message: str) -> AutomationCore:
    """Mark a run Crashed when no event of `expect` follows `after` in time."""
    return AutomationCore(
        name=name,
        description=f"Marks a flow run Crashed {within_s:.0f} s after its last {after}.",
        trigger=EventTrigger(
            match=ANY_RUN,
            for_each={"prefect.resource.id"},
            after={f"{RUN}{after}"},
            expect={f"{RUN}{event}" for event in expect},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=within_s),
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)],
    )


def _then_look(
    name: str, events: set[str], look: UUID, within: timedelta, after: timedelta, of: UUID | None = None
) -> AutomationCore:
    """Run the watch deployment `after` the first of some events; the others of the next `within` start no further run.

    `within` must not be longer than `after`: then the check is later than every event that it covers.
    """
    return AutomationCore(
        name=name,
        description="Runs watch/watch, which checks for new data and starts the work that is due.",
        trigger=_event(events, within, of, set()),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=look,
                parameters=None,
                job_variables=None,
                schedule_after=after,
            )
        ],
    )


def _tell(
    block: UUID, name: str, events: set[str], body: str, within: timedelta, of: UUID | None = None
) -> AutomationCore:
    """Send a message; of one resource (of one deployment where `of` is given) one `within` this time."""
    return AutomationCore(
        name=f"{TELLS}{name}",
        description="Sends a message through the block that `hyco deploy --set notify=TYPE/NAME` named.",
        trigger=_event(events, within, of, set() if of else {"prefect.resource.id"}),
        actions=[SendNotification(block_document_id=block, subject=f"Hyco: {name}", body=body)],
    )


def _event(events: set[str], within: timedelta, of: UUID | None, each: set[str]) -> EventTrigger:
    """Fires at the first event, of one deployment where `of` is given; for each value of the labels `each`."""
    related: dict[str, str | list[str]] = {"prefect.resource.id": f"prefect.deployment.{of}"} if of else {}
    return EventTrigger(
        expect=events,
        match_related=ResourceSpecification(related),
        for_each=each,
        posture=Posture.Reactive,
        threshold=1,
        within=within,
    )
