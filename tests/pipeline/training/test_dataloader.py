"""Batches: the position is a value, epochs differ, ranks share, bad images are replaced, the thread ends."""

import functools
import hashlib
import io
import itertools
import math
import multiprocessing
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.training.augment import DataConfig, draw, jittered, random_box
from hyco.pipeline.training.batch import START, Batch, on_device
from hyco.pipeline.training.dataloader import Batches, ShardFile
from hyco.storage.objects import DamagedError
from hyco.storage.shard import write_shard
from tests.factories.ray_cluster import alive, wait_until
from tests.factories.training import sample, shard_files


def tokenizer_of() -> Tokenizer:
    return Tokenizer.train([c for n in range(64) for c in sample(n).captions], 700, 16)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[ShardFile]:
    return shard_files(tmp_path_factory.mktemp("shards"), [10, 7, 12, 9])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of()


def reader(shards, tokenizer, config=None, **options) -> Batches:
    options = {"batch_size": 5, "image_size": 16, **options}
    return Batches(shards, tokenizer, config or DataConfig(window=2), **options)


def take(batches: Batches, count: int, position=START) -> list[Batch]:
    stream = batches.start(position)
    try:
        return list(itertools.islice(stream, count))
    finally:
        stream.close()


def same(a: Batch, b: Batch) -> bool:
    tensors = ("images", "tokens", "image_boxes", "token_boxes", "owner")
    return a.position == b.position and all(torch.equal(getattr(a, n), getattr(b, n)) for n in tensors)


def seen(batches: Batches, epoch: int) -> list[tuple[int, int]]:
    return [tuple(row) for _, rows in batches.order(epoch) for row in rows.tolist()]


def test_a_batch_holds_pixels_tokens_and_whose_part_is_whose(shards, tokenizer):
    (batch,) = take(reader(shards, tokenizer), 1)
    assert batch.images.shape == batch.image_boxes.shape == (5, 16, 16, 3)
    assert batch.images.dtype == torch.uint8 and batch.tokens.dtype == torch.int64
    assert batch.owner.tolist() == [0, 1, 2, 3, 4]
    # The phrase names the colour of the part: its pixels tell whether image and text belong together.
    for pixels, tokens in zip(batch.image_boxes, batch.token_boxes, strict=True):
        phrase = tokenizer.fast.decode(tokens.tolist()).replace("</w>", " ").split()
        strongest = pixels.float().mean((0, 1)).argmax().item()
        assert "white" in phrase or phrase[1] == ("red", "green", "blue")[strongest]


def test_any_saved_position_gives_exactly_the_batches_that_were_to_come(shards, tokenizer):
    straight = take(reader(shards, tokenizer), 18)  # 7 batches an epoch: two epochs and a half
    assert straight[6].position == {"epoch": 1, "batch": 0}
    for stop in (1, 6, 7, 9, 14):
        resumed = take(reader(shards, tokenizer), 18 - stop, straight[stop - 1].position)
        assert all(same(a, b) for a, b in zip(straight[stop:], resumed, strict=True)), stop


def test_threads_and_prefetch_change_nothing(shards, tokenizer):
    quick = DataConfig(window=2, threads=4, prefetch=8, cache_bytes=0)
    ours = take(reader(shards, tokenizer), 10)
    assert all(same(a, b) for a, b in zip(ours, take(reader(shards, tokenizer, quick), 10), strict=True))


def test_workers_give_the_same_batches_from_any_position_and_end_with_the_iterator(shards, tokenizer):
    ours = take(reader(shards, tokenizer), 12)
    by_two = reader(shards, tokenizer, DataConfig(window=2, workers=2, prefetch=3))
    theirs = take(by_two, 12)
    assert all(same(a, b) and a.lengths == b.lengths for a, b in zip(ours, theirs, strict=True))
    assert not multiprocessing.active_children()
    stream = by_two.start(ours[4].position)
    assert all(same(a, next(stream)) for a in ours[5:8])
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert not multiprocessing.active_children()


def cut_short(shard: ShardFile) -> io.BytesIO:
    with shard.open() as file:
        return io.BytesIO(file.read()[:-20000])


def test_an_error_in_a_worker_is_raised_after_the_batches_before_it(shards, tokenizer):
    lost = 2
    damaged = [
        replace(shard, open=functools.partial(cut_short, shard), sha256="0" * 64) if n == lost else shard
        for n, shard in enumerate(shards)
    ]
    batches = reader(damaged, tokenizer, DataConfig(window=1, workers=2))
    before = [shard for shard, _ in seen(batches, 0)].index(lost) // 5
    given = []
    with pytest.raises(DamagedError, match=r"00002\.tar: its sha256 is .*hyco verify --repair"):
        for batch in batches.start():
            given.append(batch.position["batch"])
    assert given == list(range(1, before + 1)) and before > 0


def test_a_worker_that_is_killed_ends_the_batches_with_an_error(shards, tokenizer):
    stream = reader(shards, tokenizer, DataConfig(window=2, workers=2, prefetch=2)).start()
    next(stream)
    with pytest.raises(RuntimeError, match=r"worker .*(killed|exited)"):
        multiprocessing.active_children()[0].kill()
        for _ in stream:
            pass
    assert not multiprocessing.active_children()


STARTED = """
import multiprocessing, sys, threading, time
from pathlib import Path
from tests.factories.ray_cluster import alive, wait_until
from tests.factories.training import shard_files
from tests.pipeline.training.test_dataloader import reader, tokenizer_of
from hyco.pipeline.training.augment import DataConfig

stream = reader(shard_files(Path(sys.argv[1]), [10]), tokenizer_of(), DataConfig(workers=2)).start()
first = threading.Thread(target=next, args=(stream,))
first.start()
while len(children := multiprocessing.active_children()) < 2:
    time.sleep(0.01)
if sys.argv[2] == "working":
    first.join()
print(*(child.pid for child in children), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("moment", ["importing", "working"])
def test_workers_end_with_a_trainer_that_is_killed(tmp_path, moment):
    words = [sys.executable, "-c", STARTED, str(tmp_path / "shards"), moment]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(workers) == 2
        trainer.kill()
    wait_until(lambda: not any(map(alive, workers)))


def test_each_epoch_has_every_sample_once_in_another_order_and_another_crop(shards, tokenizer):
    batches = reader(shards, tokenizer)
    epochs = [seen(batches, epoch) for epoch in range(3)]
    everything = sorted((s, i) for s, n in enumerate([10, 7, 12, 9]) for i in range(n))
    assert all(sorted(rows) == everything for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert seen(reader(shards, tokenizer, seed=1), 0) != epochs[0]
    one = reader(shards[:1], tokenizer, batch_size=10)
    first, second = take(one, 2)
    crops = {image.numpy().tobytes() for batch in (first, second) for image in batch.images}
    assert len(crops) == 20


def test_samples_are_mixed_across_the_shards_of_a_window(shards, tokenizer):
    rows = seen(reader(shards, tokenizer, DataConfig(window=4)), 0)
    assert len({shard for shard, _ in rows[:10]}) >= 3


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_take_disjoint_equal_shares_with_fewer_shards_than_ranks_too(shards, tokenizer, ranks):
    readers = [reader(shards, tokenizer, batch_size=2, rank=r, ranks=ranks) for r in range(ranks)]
    shares = [seen(batches, 3) for batches in readers]
    assert {len(share) for share in shares} == {38 // ranks}
    assert max(Counter(row for share in shares for row in share).values()) == 1
    assert len({batches.per_epoch for batches in readers}) == 1
    assert take(readers[-1], 1)[0].images.shape[0] == 2


@pytest.mark.parametrize(("lanes", "ranks"), [(1, 2), (2, 1), (2, 4), (4, 2), (3, 2)])
def test_another_number_of_processes_gets_the_same_batches(shards, tokenizer, lanes, ranks):
    """Over the end of an epoch: 38 samples are three batches of twelve."""
    known = [reader(shards, tokenizer, batch_size=12 // lanes, rank=r, ranks=lanes) for r in range(lanes)]
    now = [
        reader(shards, tokenizer, batch_size=12 // ranks, rank=r, ranks=ranks, lanes=lanes)
        for r in range(ranks)
    ]
    theirs, ours = ([take(each, 7, {"epoch": 0, "batch": 1}) for each in side] for side in (known, now))
    for before, after in zip(zip(*theirs, strict=True), zip(*ours, strict=True), strict=True):
        assert {part.position["batch"] for part in before} == {part.position["batch"] for part in after}
        for name in ("images", "image_boxes"):
            whole, pieces = (torch.cat([getattr(p, name) for p in side]) for side in (before, after))
            assert torch.equal(whole, pieces)
        counts = [sum((part.counts for part in side), ()) for side in (before, after)]
        assert counts[0] == counts[1] and len(counts[0]) == 12
    with pytest.raises(
        ValueError, match="batch_size 10 is not a multiple of the 4 processes that the run was"
    ):
        reader(shards, tokenizer, batch_size=5, ranks=2, lanes=4)


def test_lengths_and_counts_are_known_on_the_host(shards, tokenizer):
    (batch,) = take(reader(shards, tokenizer, DataConfig(window=2, parts=2)), 1)
    texts = [*batch.tokens, *batch.token_boxes]
    assert batch.lengths == tuple(text.tolist().index(tokenizer.end) + 1 for text in texts)
    assert batch.counts == tuple(torch.bincount(batch.owner, minlength=5).tolist())
    assert sum(batch.counts) == len(batch.owner) > 0


def test_batches_reach_a_device_in_order_and_the_reader_ends(shards, tokenizer):
    source = reader(shards, tokenizer).start()
    moved = list(itertools.islice(on_device(source, torch.device("cpu")), 3))
    source.close()
    assert all(same(a, b) for a, b in zip(moved, take(reader(shards, tokenizer), 3), strict=True))


def test_skipping_does_not_open_the_shards_before(shards, tokenizer):
    opened = []

    def watched(shard: ShardFile) -> ShardFile:
        return replace(shard, open=lambda: (opened.append(shard.name), shard.open())[1])

    batches = reader([watched(s) for s in shards], tokenizer, DataConfig(window=1))
    last = [rows[0][0] for _, rows in batches.order(0)][-1]
    take(batches, 1, {"epoch": 0, "batch": batches.per_epoch - 1})
    assert shards[last].name in opened and len(opened) < len(shards)


def test_parts_up_to_n_of_the_drawn_caption(tokenizer):
    three = sample(0, parts=3, captions=2)  # parts 0 and 2 are of caption 0, part 1 of caption 1
    for seed in range(20):
        view = draw(three, DataConfig(parts=5), 16, np.random.default_rng(seed))
        assert view is not None
        assert len(view.parts) == (2 if view.caption == three.captions[0] else 1)
    one = draw(three, DataConfig(), 16, np.random.default_rng(0))
    assert one is not None and len(one.parts) == 1
    foreign = replace(three, captions=(*three.captions, "a third caption that names no part"))
    drawn = [draw(foreign, DataConfig(parts=5), 16, np.random.default_rng(s)) for s in range(20)]
    assert {len(v.parts) for v in drawn if v and v.caption == foreign.captions[2]} == {3}


def test_samples_without_parts_share_a_batch_with_samples_that_have_them(tmp_path, tokenizer):
    path = tmp_path / "mixed.tar"
    with path.open("wb") as file:
        write_shard(file, [sample(n, parts=n % 3) for n in range(6)])
    (batch,) = take(
        reader(
            [ShardFile("mixed", 6, lambda: path.open("rb"))], tokenizer, DataConfig(parts=2), batch_size=6
        ),
        1,
    )
    assert len(batch.owner) == len(batch.image_boxes) == len(batch.token_boxes) < 12
    assert set(batch.owner.tolist()) != set(range(6))
    (bare,) = take(reader([ShardFile("m", 6, lambda: path.open("rb"))], tokenizer, with_parts=False), 1)
    assert bare.image_boxes.shape == (0, 16, 16, 3) and len(bare.token_boxes) == 0


def test_an_image_that_cannot_be_decoded_is_replaced_and_counted(tmp_path, tokenizer):
    path = tmp_path / "bad.tar"
    samples = [sample(n) for n in range(6)]
    samples[2] = replace(samples[2], image=samples[2].image[:60])
    with path.open("wb") as file:
        write_shard(file, samples)
    bad = [ShardFile("bad", 6, lambda: path.open("rb"))]
    (batch,) = take(reader(bad, tokenizer, batch_size=6), 1)
    assert batch.substituted == 1 and batch.images.shape[0] == 6
    with path.open("wb") as file:
        write_shard(file, [replace(s, image=b"nothing") for s in samples])
    with pytest.raises(ValueError, match=r"no image of a batch can be decoded.* in bad"):
        take(reader(bad, tokenizer), 1)


@pytest.mark.parametrize("prefetch", [1, 2])
def test_memory_of_a_batch_is_used_again_only_when_nothing_refers_to_it(shards, tokenizer, prefetch):
    batches = reader(shards, tokenizer, DataConfig(prefetch=prefetch), batch_size=5)
    expected = [batch.images.clone() for batch in take(batches, 4)]
    stream = batches.start()
    held, views, places, parts = [], [], set(), set()

    def seen(batch):
        places.add(batch.images.data_ptr())
        parts.add(batch.image_boxes.data_ptr())

    for number in range(4):
        batch = next(stream)
        seen(batch)
        held.append(batch) if number % 2 else views.append(batch.images[1:].flatten(0, 1))
        del batch
    for number, batch in zip((1, 3), held, strict=True):
        assert torch.equal(batch.images, expected[number])
    for number, view in zip((0, 2), views, strict=True):
        assert torch.equal(view, expected[number][1:].flatten(0, 1))
    assert len(places) == 4
    del held, views
    for _ in range(20):
        seen(next(stream))
    assert len(places | parts) <= 2 * (
        4 + 2 + prefetch
    )  # of four in hand, ready, waiting to be ready, in the making
    stream.close()


def test_errors_of_the_reader_are_raised_where_batches_are_asked_for(shards, tmp_path, tokenizer):
    path = tmp_path / "torn.tar"
    with shards[0].open() as file:
        path.write_bytes(file.read()[:-20000])
    with pytest.raises(ValueError, match=r"torn.*(truncated|end-of-archive)"):
        take(reader([ShardFile("torn", 10, lambda: path.open("rb"))], tokenizer), 1)
    with pytest.raises(ValueError, match="38 samples cannot fill a batch of 20 on each of 2 ranks"):
        reader(shards, tokenizer, batch_size=20, ranks=2)


@pytest.mark.parametrize("prefetch", [1, 4])
@pytest.mark.parametrize("lost", range(4))
def test_batches_before_a_lost_shard_are_given(shards, tokenizer, lost, prefetch):
    def gone():
        raise OSError("gone")

    damaged = [replace(shard, open=gone) if n == lost else shard for n, shard in enumerate(shards)]
    batches = reader(damaged, tokenizer, DataConfig(window=1, prefetch=prefetch))
    before = [shard for shard, _ in seen(batches, 0)].index(lost) // 5
    given = []
    with pytest.raises(OSError, match="gone"):
        for batch in batches.start():
            given.append(batch.position["batch"])
    assert given == list(range(1, before + 1))


@pytest.mark.parametrize("prefetch", [1, 2])
def test_closing_ends_the_thread(shards, tokenizer, prefetch):
    stream = reader(shards, tokenizer, DataConfig(prefetch=prefetch)).start()
    next(stream)
    assert any(thread.name == "batches" for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name == "batches" for thread in threading.enumerate())


def test_a_box_is_drawn_by_four_uniform_numbers():
    """A run that was begun by an earlier Hyco goes on with the same crops."""
    ours, uniform = np.random.default_rng(1), np.random.default_rng(1)
    for width, height in ((60, 40), (500, 375), (41, 43)):
        box = random_box(width, height, (0.05, 0.2), (3 / 4, 4 / 3), ours)
        area = width * height * uniform.uniform(0.05, 0.2)
        shape = math.exp(uniform.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * shape), math.sqrt(area / shape)
        x, y = uniform.uniform(0, width - w), uniform.uniform(0, height - h)
        assert box == (round(x), round(y), round(x + w), round(y + h))


def test_random_boxes_keep_scale_and_ratio_and_stay_inside():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(60, 40, (0.5, 1.0), (3 / 4, 4 / 3), rng) for _ in range(2000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 60).all() and (boxes[:, 3] <= 40).all()
    fallback = (w == 60) & (h == 40)
    share, ratio = (w * h / 2400)[~fallback], (w / h)[~fallback]
    assert 0.48 <= share.min() < 0.52 and 0.72 <= ratio.min() < 0.78 and ratio.max() < 1.39  # whole pixels
    assert boxes.dtype.kind == "i"
    assert boxes[:, 0].max() > 15  # pieces lie everywhere, not only in the middle or a corner
    assert random_box(100, 10, (1.0, 1.0), (1.0, 1.0), rng) == (0, 0, 100, 10)
    for _ in range(200):  # an image of one pixel
        assert random_box(1, 1, (0.1, 1.0), (0.5, 2.0), rng) == (0, 0, 1, 1)


def test_no_flip_by_default_and_flips_when_asked(tokenizer):
    left = sample(1)
    config = DataConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    plain = draw(left, config, 24, np.random.default_rng(0))
    flipped = draw(left, config.replace(flip=1.0), 24, np.random.default_rng(0))
    assert plain is not None and flipped is not None
    assert np.array_equal(plain.image, flipped.image[:, ::-1])
    assert not np.array_equal(plain.image, flipped.image)


def test_colours_change_only_where_they_may(tokenizer):
    """Without jitter no number is drawn for it, so that views stay as they were."""
    one = sample(1)
    plain = draw(one, DataConfig(flip=0.5), 24, np.random.default_rng(0))
    strong = DataConfig(flip=0.5, color_jitter=(0.4, 0.4, 0.4, 0.1))
    never = draw(one, strong.replace(color_jitter_chance=0.0), 24, np.random.default_rng(0))
    always = [draw(one, strong.replace(color_jitter_chance=1.0), 24, np.random.default_rng(0)) for _ in "ab"]
    assert plain is not None and never is not None and always[0] is not None and always[1] is not None
    assert not np.array_equal(plain.image, always[0].image)
    assert np.array_equal(always[0].image, always[1].image)
    assert np.array_equal(draw(one, DataConfig(flip=0.5), 24, np.random.default_rng(0)).image, plain.image)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("which", range(4))
def test_each_jitter_changes_its_own_property(which):
    drawn = np.random.default_rng(1)
    pixels = drawn.integers(60, 190, (32, 32, 3), dtype=np.uint8)
    strength = tuple(0.5 if which == i else 0.0 for i in range(4))
    changed = [
        np.asarray(jittered(Image.fromarray(pixels), strength, np.random.default_rng(seed)))
        for seed in range(40)
    ]
    brightness = np.array([each.mean() for each in changed]) / pixels.mean()
    contrast = np.array([each.mean(2).std() for each in changed]) / pixels.mean(2).std()
    if which == 0:
        assert brightness.min() < 0.65 and brightness.max() > 1.3 and brightness.min() > 0.45
    elif which == 1:
        assert contrast.min() < 0.65 and contrast.max() > 1.3 and abs(brightness - 1).max() < 0.06
    elif which == 2:
        chroma = (
            np.array([np.ptp(each.astype(int), 2).mean() for each in changed])
            / np.ptp(pixels.astype(int), 2).mean()
        )
        assert chroma.min() < 0.65 and chroma.max() > 1.3 and abs(brightness - 1).max() < 0.06
    else:  # the largest channel changes, the value of HSV stays
        assert any((each.argmax(2) != pixels.argmax(2)).mean() > 0.5 for each in changed)
        assert all(abs(each.max(2).astype(int) - pixels.max(2)).max() <= 2 for each in changed)


def test_a_letterboxed_image_keeps_its_edges_and_parts_are_not_padded():
    """A wide image in full: the model sees its left and right edge, between two white bands."""
    wide = np.full((20, 40, 3), (200, 0, 0), np.uint8)
    wide[:, 20:] = (0, 0, 200)
    base = sample(1)
    image = encode_jpeg(wide, 95)
    whole = replace(base, image=image, parts=tuple(replace(part, image=image) for part in base.parts))
    config = DataConfig(crop_scale=(1.0, 1.0), part_crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    view = draw(whole, config.replace(letterbox=True), 16, np.random.default_rng(0))
    assert view is not None
    assert view.image[:3].min() > 240 and view.image[13:].min() > 240
    middle = view.image[8].astype(int)
    assert middle[1, 0] > 180 > 20 > middle[1, 2] and middle[14, 2] > 180 > 20 > middle[14, 0]
    for part, _ in view.parts:
        assert part[:3].min() < 100
    plain = draw(whole, config, 16, np.random.default_rng(0))
    assert plain is not None and plain.image[:3].min() < 100


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", (-0.5, 1.0)),
        ("crop_scale", (0.5, 1.5)),
        ("part_crop_scale", (0.9, 0.5)),
        ("crop_ratio", (0.0, 1.0)),
    ],
)
def test_ranges_that_no_crop_can_have_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"option '{field}' of DataConfig.*expected 0 < from <= to"):
        DataConfig(**{field: value})
    assert DataConfig(crop_ratio=(0.1, 10.0)).crop_ratio == (0.1, 10.0)


def test_a_changed_shard_is_refused_at_its_first_read(shards, tokenizer):
    hashed = []
    for shard in shards:
        with shard.open() as file:
            hashed.append(replace(shard, sha256=hashlib.sha256(file.read()).hexdigest()))
    assert same(take(reader(hashed, tokenizer), 1)[0], take(reader(shards, tokenizer), 1)[0])
    with shards[2].open() as file:
        data = file.read()
    changed = data.replace(b"square on", b"circle on", 1)
    hashed[2] = replace(hashed[2], open=lambda: io.BytesIO(changed))
    with pytest.raises(ValueError, match=r"00002\.tar: its sha256 is .*hyco verify --repair"):
        take(reader(hashed, tokenizer), 8)
