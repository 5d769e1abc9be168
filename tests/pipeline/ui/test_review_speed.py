"""Pages of a version of 100,000 samples: processor time of one request, printed; no page reads the whole version."""

import time
from pathlib import Path

import numpy as np
import pytest

from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.ui.review import Review
from hyco.storage.home import Home
from hyco.storage.sample import Part, TrainingSample
from hyco.storage.shard import write_shard
from hyco.storage.versions import shard_ref

SAMPLES, SHARDS, PARTS, POOL = 1000, 100, 4, 40


def big(folder: Path) -> tuple[Home, int]:
    """A version that names one shard of 1,000 samples a hundred times, and the shard's bytes."""
    home, rng = Home(folder), np.random.default_rng(0)
    base = rng.integers(0, 255, (16, 22, 3), np.uint8).repeat(14, 0).repeat(14, 1)
    noisy = [np.clip(base + rng.normal(0, 7, base.shape), 0, 255).astype(np.uint8) for _ in range(POOL)]
    whole, crops = ([encode_jpeg(one[:, :width], 90) for one in noisy] for width in (300, 224))
    box, span = (0.1, 0.1, 0.6, 0.9), (0, 5)

    def parts(n: int) -> tuple[Part, ...]:
        return tuple(
            Part(crops[(n + k) % POOL], f"thing {n % 977} {k}", box, 0.3 + k / 10, span, 0, "chunk")
            for k in range(PARTS)
        )

    samples = [
        TrainingSample(f"{n:032x}", whole[n % POOL], ("a dog on a mat",), parts(n)) for n in range(SAMPLES)
    ]
    made = home.store.commit("shards/objects", ".tar", lambda file: write_shard(file, samples))
    shards = {"train": [shard_ref(made, SAMPLES, PARTS * SAMPLES)] * SHARDS, "val": []}
    home.versions.publish({}, {"mine": "m", "pack": "p"}, shards, {"images": SAMPLES * SHARDS})
    return home, made.size


@pytest.mark.slow
def test_a_page_costs_its_shards_and_a_filter_its_limit(tmp_path: Path) -> None:
    home, size = big(tmp_path)
    pages = Review(home)
    print(f"\n{SAMPLES * SHARDS:,} samples, shards of {size / 1e6:.0f} MB")
    for asked, most in [
        ({}, 1.5),
        ({"at": "50990"}, 3),
        ({"before": "99000"}, 3),
        ({"phrase": "nothing"}, 8),
        ({"phrase": "nothing", "before": "60000"}, 8),
    ]:
        took = []
        for _ in range(3):
            began = time.process_time()
            pages.samples("latest", asked)
            took.append(time.process_time() - began)
        print(f"{asked}: {min(took):.2f} s")
        assert min(took) < most
