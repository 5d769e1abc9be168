"""Coverage: how many listed images of a data set an evaluation used, n of N, and the refusal below a minimum fraction.

Recall at k rises when images are missing, since a smaller gallery is easier: metrics on part of a set are not those of
the set. Every evaluation that joins two sources (a list and the files it names) counts both here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIN_COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Coverage:
    """Counts of one unit ("images", "kinds") of a data set.

    Attributes:
        unit: the counted unit, in the plural.
        asked: number that the evaluation should use.
        missing: number of them that do not exist.
        unusable: number of them that exist and cannot be decoded or parsed.
        listed: number in the set, where `asked` are drawn from them.
        first: the first missing one, for the message.
    """

    unit: str
    asked: int
    missing: int = 0
    unusable: int = 0
    listed: int | None = None
    first: str = ""

    @property
    def used(self) -> int:
        """Number of used ones."""
        return self.asked - self.missing - self.unusable

    @property
    def fraction(self) -> float:
        """Used divided by asked; 1 where nothing was asked."""
        return self.used / self.asked if self.asked else 1.0

    def numbers(self) -> dict[str, int]:
        """The counts in the form of metrics.json."""
        found = {"used": self.used, "of": self.asked}
        found |= {"missing": self.missing, "unusable": self.unusable}
        if self.listed is not None and self.listed > self.asked:
            found["listed"] = self.listed
        return found

    def require(self, least: float) -> None:
        """ValueError, naming the counts and the remedy, when the fraction is below `least`."""
        if self.fraction >= least:
            return
        first = f", the first of them {self.first}" if self.first else ""
        raise ValueError(
            f"{told(self.unit, self.numbers())}{first}: below min_coverage {least:g}, and a part of it is another, "
            "easier set; fetch the rest, or evaluate on the present part: --set min_coverage=0"
        )


def told(unit: str, counts: dict[str, int]) -> str:
    """The counts in words: 43 of 283 images (240 missing)."""
    gaps = [f"{counts[name]:,} {name}" for name in ("missing", "unusable") if counts.get(name)]
    text = f"{counts['used']:,} of {counts['of']:,} {unit}" + (f" ({', '.join(gaps)})" if gaps else "")
    return text + (f", drawn from {counts['listed']:,}" if counts.get("listed") else "")


def complete(counts: dict[str, int]) -> bool:
    """Whether the entire set was used."""
    return counts["used"] >= counts["of"] and not counts.get("listed")


def as_numbers(coverages: Sequence[Coverage]) -> dict[str, dict[str, int]]:
    """By unit, in the form of "coverage" in a section of metrics.json."""
    return {coverage.unit: coverage.numbers() for coverage in coverages}


def incomplete(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(section, words) of each section of metrics.json that used only part of its set.

    Metrics written before coverage was recorded have none.
    """
    sections = {"held_out": metrics.get("coverage") or {}, "mining": _mined(metrics.get("mining"))}
    for name, found in (metrics.get("suite") or {}).items():
        sections[f"suite.{name}"] = found.get("coverage") or {} if isinstance(found, dict) else {}
    for section, units in sections.items():
        gaps = [told(unit, counts) for unit, counts in units.items() if not complete(counts)]
        if gaps:
            yield section, "; ".join(gaps)


def _mined(mining: dict[str, Any] | None) -> dict[str, dict[str, int]]:
    """Coverage of the images whose labels measure recall and precision of mining: those with detections are used."""
    quality = (mining or {}).get("quality") or {}
    if "labelled_images" not in quality:
        return {}
    listed, used = int(quality["labelled_images"]), int(quality["images"])
    return {"labelled images": {"used": used, "of": listed, "missing": listed - used}}


def absent(paths: Sequence[Path]) -> list[Path]:
    """The files that do not exist."""
    return [path for path in paths if not path.is_file()]
