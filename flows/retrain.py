"""Retrain: a challenger trained on the newest data, compared with the champion, promoted or refused."""

from typing import Any, cast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from hyco.flows.assess import assess
from hyco.flows.reporting import artifacts
from hyco.flows.runtime.concurrency import slot
from hyco.flows.runtime.progress import ProgressArtifact
from hyco.flows.runtime.runs import NOTHING, done, inside, named
from hyco.flows.train import train
from hyco.pipeline import end_to_end as journeys
from hyco.pipeline.evaluation.config import EvaluationSpec
from hyco.pipeline.registry.promotion import challenge
from hyco.pipeline.registry.retraining import RetrainConfig, RetrainDecision, check, recipe_for
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision


@flow(
    name="retrain",
    flow_run_name=named(lambda given: f"retrain on {inside(given, 'config', 'journey', 'mine', 'source')}"),
    persist_result=True,
    result_serializer="json",
)
def retrain(config: RetrainConfig, home: str = "var", force: bool = False) -> dict[str, Any]:
    """Train, assess and judge a model on the newest version if enough samples are new; else do nothing.

    Killed at any point and started again, it resumes: training from its checkpoint, and never a second decision.

    Args:
        config: the training, how many samples must be new, and the metrics by which the challenger is judged.
        home: where Hyco stores everything.
        force: train even if too few samples are new. A version that was judged already is not trained on again.
    """
    opened = Home(home)
    decision = check(config, opened)
    if decision is None or not (decision.due or force):
        reason = decision.reason if decision else "there is no dataset version yet"
        return done(f"nothing to do: {reason}", None, NOTHING)
    get_run_logger().info("training is due: %s", decision.reason)
    recipe = recipe_for(config, opened)
    trained = train(recipe, home, decision.version, None, config.journey.processes)
    spec = journeys.evaluation_of(config.journey, decision.version)
    mining = _mining(config, opened, decision, journeys.held_out(config.journey))
    # Prefect's overloads cannot see that the fields of the spec have no return_state.
    metrics = cast("dict[str, Any]", assess(trained["run_dir"], home, mining=mining, **dict(spec)))
    with slot(gpu_only=True):  # the champion is evaluated
        row = judge(trained["run_dir"], opened, spec, config, metrics, decision.key)
    artifacts.decided(row, opened)
    result = {
        "decision": row.kind,
        "reason": row.reason,
        "model": row.model,
        "run_dir": row.run,
        "version": row.version,
    }
    return done(f"{row.kind} {row.model}: {row.reason}", result)


@task(name="judge", task_run_name="compare with the champion", cache_policy=NO_CACHE, persist_result=False)
def judge(
    run_dir: str, home: Home, spec: EvaluationSpec, config: RetrainConfig, metrics: dict[str, Any], key: str
) -> Decision:
    """Evaluate the champion on the same images and write the decision into the registry."""
    return challenge(
        run_dir,
        home,
        spec,
        config.gate,
        metrics,
        key=key,
        listener=ProgressArtifact("champion-progress", "assess the champion"),
    )


def _mining(config: RetrainConfig, home: Home, decision: RetrainDecision, held: Any) -> dict[str, Any] | str:
    """The mining section of the report; the reason where the held-out source is not mined or does not exist."""
    version = home.versions.load(decision.version)
    try:
        return journeys.mining_report(config.journey.mine, config.journey.pack, home, version, held)
    except (ValueError, OSError) as error:
        get_run_logger().warning("mining is left out of the report: %s", error)
        return f"mining is left out of the report: {error}"
