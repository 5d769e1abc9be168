"""Peak memory of mining in one worker, by the size of the photographs and by the size of the shards.

Photographs of 24 megapixels stand beside the bound that docs/performance.md states; shards of 1,000 and 10,000 small
images show what the results of a shard take, which a worker holds until the shard is done.

Each number is the peak resident memory of a process of its own, libraries, parser and grounder included, that mines one
shard with the embedded grounder. "Unbounded" decodes all photographs of the shard at once, as chunks did that were
bounded by number alone; there are just enough of them here to tell the two apart.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from hyco.pipeline.imaging.decode import encode_jpeg
from tests.factories.files import named, tarred
from tests.perf.runner import Case

BOUND_MB = 1500.0
PHOTOGRAPHS, WIDTH, HEIGHT = 24, 6000, 4000
UNBOUNDED = PHOTOGRAPHS * WIDTH * HEIGHT
SMALL, LARGE = 1_000, 10_000  # images of a shard
CAPTION = "a brown dog beside a red ball on the grass"
GROUNDER = "transformers:demo/weights/grounder"

_MINE = """
import hashlib, json, sys
from pathlib import Path
from hyco.pipeline.mining.mine import MineConfig, mine_shard, plan
from hyco.storage.detections import read_detections
from hyco.storage.store import Store
source, home, grounder, pixels = sys.argv[1:]
config = MineConfig(source=source, grounder=grounder, device="cpu", **({"chunk_pixels": int(pixels)} if pixels else {}))
record = mine_shard(config, home, plan(config, home).pending[0])
with Store(home).open(record["detections"]["path"]) as file:
    rows = read_detections(file).to_pylist()
# Of this program alone: getrusage would also know the peak of the process that started it.
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"mb": peak * 1024 / 1e6, "images": record["images"], "boxes": [
    [row["key"], row["phrase"], row["x0"], row["y0"], row["x1"], row["y1"], row["score"]] for row in rows]}))
"""

_HOLD = """
import json, sys
from pathlib import Path
import numpy as np
from hyco.models.grounding.detector import Detection
from hyco.pipeline.mining import mine
source, home, grounder = sys.argv[1:]

class Finder:
    digest = mine.ground.grounder_digest(grounder)
    def __call__(self, images, phrases):
        sizes = [16 * len(texts) for texts in phrases]
        return [Detection(np.tile(np.float32([0.1, 0.1, 0.9, 0.9]), (n, 1)), np.full(n, 0.5, np.float32),
                          np.repeat(np.arange(n // 16), 16)) for n in sizes]

mine._open_detector = lambda *_: Finder()
config = mine.MineConfig(source=source, grounder=grounder, device="cpu")
record = mine.mine_shard(config, mine.Home(home), mine.plan(config, mine.Home(home)).pending[0])
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"mb": peak * 1024 / 1e6, "images": record["images"], "boxes": record["boxes"]}))
"""


def cases() -> Iterator[Case]:
    """The bound, and what it saves."""
    name = "mining 24 megapixels, peak"
    yield Case(
        name, "1,500 MB a worker", "MB", lambda: mined("")["mb"], lambda: BOUND_MB, lambda: "n/a", floor=1.0
    )
    yield Case(
        name, "unbounded", "MB", lambda: mined("")["mb"], lambda: mined(str(UNBOUNDED))["mb"], same_boxes, 1.5
    )
    yield Case(
        f"mining a shard of {LARGE}",
        f"a shard of {SMALL}",
        "MB",
        lambda: held(LARGE)["mb"],
        lambda: held(SMALL)["mb"],
        lambda: f"{held(LARGE)['boxes']} and {held(SMALL)['boxes']} boxes",
    )


@cache
def held(images: int) -> dict:
    """Mine one shard of small images with five captions each; a stand-in finds 16 boxes for each phrase."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        tarred(source / "00000.tar", _small(images))
        done = subprocess.run(
            [sys.executable, "-c", _HOLD, str(source), str(Path(folder) / "home"), GROUNDER],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def _small(images: int) -> Iterator[tuple[str, bytes | str]]:
    pixels = np.zeros((64, 64, 3), np.uint8)
    for number in range(images):
        pixels[:8, :8], pixels[8:16, :8] = number % 256, number // 256
        captions = [
            f"{CAPTION} near {number} {word} trees" for word in ("tall", "old", "green", "big", "bare")
        ]
        yield from named(
            f"{number:05d}", {"jpg": encode_jpeg(pixels), "json": json.dumps({"captions": captions})}
        ).items()


@cache
def mined(pixels: str) -> dict:
    """Mine the photographs with that `chunk_pixels` ("" is the default) in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        write_photographs(source)
        arguments = [str(source), str(Path(folder) / "home"), GROUNDER, pixels]
        done = subprocess.run(
            [sys.executable, "-c", _MINE, *arguments], check=True, stdout=subprocess.PIPE, text=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def same_boxes() -> str:
    """Assert that the chunks change no detection beyond the rounding of other batches."""
    ours, theirs = mined(""), mined(str(UNBOUNDED))
    assert ours["images"] == theirs["images"] == PHOTOGRAPHS
    assert [row[:2] for row in ours["boxes"]] == [row[:2] for row in theirs["boxes"]]
    numbers = [np.array([row[2:] for row in each["boxes"]], float) for each in (ours, theirs)]
    off = float(np.nanmax(np.abs(numbers[0] - numbers[1])))
    assert off < 1e-4, f"boxes differ by {off:.1e}"
    return f"{off:.0e}"


def write_photographs(source: Path) -> None:
    """One shard of smooth noise, as much work for a JPEG decoder as a photograph."""
    source.mkdir()
    small = np.random.default_rng(0).integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    pixels = np.array(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))

    def members() -> Iterator[tuple[str, bytes | str]]:
        for number in range(PHOTOGRAPHS):
            pixels[:64, :64] = number  # no two alike
            yield from named(f"{number:05d}", {"jpg": encode_jpeg(pixels), "txt": CAPTION}).items()

    tarred(source / "00000.tar", members())
