"""Run all units of a stage on an executor."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from hyco.pipeline.runtime.calls import WorkerDiedError
from hyco.pipeline.sources.source import UnitGoneError


def run_units(
    submit: Callable[[Any], Future[Any]], units: Sequence[Any], on_record: Callable[[Any], None]
) -> list[Any]:
    """Submit every unit, hand each record to `on_record`, and raise the first error when all have ended.

    A unit whose worker was killed is tried once more; a unit that fails otherwise does not stop the others. One whose
    file was removed or changed meanwhile is no error.

    Returns:
        The units whose files were removed or changed.
    """
    errors: list[Exception] = []
    gone: list[Any] = []
    pending = list(units)
    for last_try in (False, True):
        futures = [(unit, submit(unit)) for unit in pending]
        pending = []
        for unit, future in futures:
            try:
                on_record(future.result())
            except WorkerDiedError as error:
                if last_try:
                    errors.append(error)
                else:
                    pending.append(unit)
            except UnitGoneError:
                gone.append(unit)
            except Exception as error:
                errors.append(error)
    if errors:
        raise errors[0]
    return gone
