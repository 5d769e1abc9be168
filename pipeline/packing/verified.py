"""Boxes that a second grounder confirms (hyco pack --verify): a filter of packing over two tables of detections.

The verifier's boxes are mined like any others, for the same phrases, and are kept in HOME/detections under their own
digest: another threshold asks no detector again.
"""

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationInfo, field_validator

from hyco.models.grounding.boxes import iou
from hyco.pipeline.config import Config, ConfigError

UNVERIFIED = "unverified"
"""Name of the count of boxes that reach the threshold and are not confirmed, one for each caption with the phrase."""
_SOURCE = "source:"  # begins the detector of boxes that the source had


class VerifyConfig(Config):
    """The second grounder that must confirm a box; no grounder confirms everything."""

    incidental: ClassVar[frozenset[str]] = frozenset({"grounder"})
    derived: ClassVar[frozenset[str]] = frozenset({"weights"})

    grounder: str = ""
    """BACKEND:PLACE or a short name, as mine.grounder; "" verifies nothing."""
    weights: str = Field(default="", validate_default=True)
    """Digest of its files. Set wherever the files are; elsewhere a stored value is kept."""
    threshold: float = Field(default=0.2, ge=0, le=1)
    """Minimum score that the verifier gives the same phrase on the same box."""
    min_iou: float = Field(default=0.5, gt=0, le=1)
    """IoU from which a box of the verifier is the same box."""

    @field_validator("weights")
    @classmethod
    def _weights(cls, given: str, info: ValidationInfo) -> str:
        spec = info.data.get("grounder", "")
        if not spec:
            return ""
        from hyco.pipeline.mining import (
            grounder as ground,  # here, because packing without it needs no grounder
        )

        if spec == ground.SOURCE:
            raise ConfigError("verify.grounder 'source' is no detector: give BACKEND:PLACE or a short name")
        try:
            return ground.grounder_digest(spec)
        except (FileNotFoundError, ValueError) as error:
            if given:
                return given
            raise error if isinstance(error, OSError) else ConfigError(str(error)) from None


def verifying(mine: Any, config: VerifyConfig) -> Any:
    """Return the MineConfig of the verifier's boxes: the same phrases of the same source.

    Raises:
        ValueError: only boxes that the source has were mined; they are not verified.
    """
    if mine.grounder == "source":
        raise ValueError(
            f"verify.grounder {config.grounder!r}: boxes that the source has are taken as they are, none is verified; "
            "leave --verify out, or mine with --grounder too"
        )
    return mine.replace(grounder=config.grounder, weights=config.weights, absent=type(mine.absent)())


def confirmed(table: pa.Table, other: pa.Table, config: VerifyConfig, threshold: float) -> pa.Table:
    """Return a detections table in which the score of every box that is not confirmed is null.

    Boxes below the threshold and boxes that the source had are left as they are.

    Args:
        table: columns as in storage.detections.SCHEMA.
        other: the same images by the verifier.
        config: what confirms a box.
        threshold: minimum score of a box at packing.
    """
    found = {group: _boxes(other)[rows] for group, rows in _groups(other, config.threshold).items()}
    boxes, refused = _boxes(table), np.zeros(table.num_rows, bool)
    for group, rows in _groups(table, threshold).items():
        theirs = found.get(group, np.zeros((0, 4)))
        best = iou(boxes[rows][:, None], theirs[None]).max(axis=1, initial=0.0)
        refused[rows] = best < config.min_iou
    place = table.column_names.index("score")
    scores = pa.array(
        table["score"].to_numpy(), pa.float32(), mask=refused | table["score"].is_null().to_numpy()
    )
    return table.set_column(place, table.schema.field("score"), scores)


def refusals(before: pa.Table, after: pa.Table) -> int:
    """Return the number of boxes whose score `confirmed` has removed."""
    return after["score"].null_count - before["score"].null_count


def _groups(table: pa.Table, threshold: float) -> dict[tuple[str, str], list[int]]:
    """Rows of detected boxes of at least this score, by key and phrase."""
    with np.errstate(invalid="ignore"):  # NaN means "no box"
        rows = np.flatnonzero(table["score"].to_numpy() >= np.float32(threshold))
    chosen = table.select(["key", "phrase", "detector"]).take(rows)
    groups: dict[tuple[str, str], list[int]] = {}
    columns = (chosen[name].to_pylist() for name in chosen.column_names)
    for row, key, phrase, detector in zip(rows.tolist(), *columns, strict=True):
        if phrase is not None and not detector.startswith(_SOURCE):
            groups.setdefault((key, phrase.lower()), []).append(row)
    return groups


def _boxes(table: pa.Table) -> np.ndarray:
    """Boxes of all rows, float64 [N, 4]; NaN where there is none."""
    return np.stack([table[name].to_numpy() for name in ("x0", "y0", "x1", "y1")], axis=1).astype(np.float64)


def with_verifier(record: dict[str, Any], other: dict[str, Any] | None) -> dict[str, Any]:
    """Return a mining record with the path of the verifier's detections of the same unit."""
    return record if other is None else {**record, "verify": other["detections"]["path"]}


def unverified(spec: str, missing: list[str], total: int) -> ValueError:
    """Return the error for units that the verifier has not mined; `spec` is the verifier, as BACKEND:PLACE."""
    return ValueError(
        f"{len(missing)} of {total} units are not mined by the verifier ({missing[0]} ...): run `hyco pack "
        f"--verify {spec}`, or `hyco mine --grounder {spec}` with the other options of mining the same"
    )
