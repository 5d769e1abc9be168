"""The dataset card of a version: Markdown with the front matter of the Hugging Face hub, made from its records."""

import itertools
from collections import Counter
from collections.abc import Iterator

from hyco.pipeline.curation.describe import settings
from hyco.pipeline.packing.dataset_gate import left_out_of, score_histogram
from hyco.pipeline.runtime.markdown import table
from hyco.pipeline.ui.markdown import bars, plain
from hyco.storage.home import Home
from hyco.storage.sample import TrainingSample
from hyco.storage.versions import Version, read_ref

SAMPLES = 2000  # whose phrases are counted
PHRASES = 20
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))  # fmt: skip


def card(home: Home, version: Version) -> str:
    """Return the card of a version; DamagedError when one of its first shards has changed."""
    images = version.counts.get("images", 0)
    size = next((name for most, name in _SIZES if images < most), "100M<n<1B")
    made = f"{version.created[:10]} by Hyco from {plain(version.source) or 'a source that is not recorded'}"
    shards = {split: refs for split, refs in version.shards.items() if refs}
    lines = [
        "---", f"pretty_name: {version.name}", "license: unknown",
        "task_categories:", "- zero-shot-image-classification", "- image-to-text",
        "size_categories:", f"- {size}", "tags:", "- hyco", "- webdataset", "---", "",
        f"# Dataset version {version.name}", "",
        f"{images:,} images with {version.counts.get('parts', 0):,} parts: boxes that a detector found for phrases of "
        f"the captions. Made {made}. The licence of images and captions is that of the source; Hyco does not know it.",
        "",
        "Training shards in the published HyCoCLIP layout: plain tars that `webdataset` reads, with `KEY.child.jpg` "
        "and `KEY.child.txt` for the whole image, `KEY.parent000.jpg` and `KEY.parent000.txt` ... for its parts, and "
        "`KEY.meta.json`. KEY is the start of the sha256 of the original image.", "",
        *table(("split", "shards", "images", "parts", "bytes"),
               ((split, f"{len(refs):,}", *(f"{sum(getattr(ref, name) for ref in refs):,}"
                                            for name in ("samples", "parts", "size")))
                for split, refs in shards.items())), "",
        "## Counts", "",
        *table(("count", ""), ((name.replace("_", " "), f"{n:,}") for name, n in version.counts.items())), "",
        "## Configuration", "",
        f"Version {version.name}, parent {version.parent or 'none'}, detectors "
        f"{plain(', '.join(version.detectors)) or 'none recorded'}, digests "
        f"{', '.join(f'{stage} {digest}' for stage, digest in version.digests.items()) or 'none'}.", "",
        *table(("option", "value"), ((name, plain(value)) for name, value in settings(version).items())),
    ]  # fmt: skip
    copies = left_out_of(home, version, PHRASES)
    if copies:
        lines += ["", "## Images left out as copies", ""]
        body = (
            (plain(c["name"]), plain(c["of"]), c["reason"].replace("_", " "), str(c["bits"])) for c in copies
        )
        lines += table(("image", "copy of", "why", "differing bits of 255"), body)
    histogram = score_histogram(home, version)
    if histogram.sum():
        lines += ["", "## Scores of the accepted boxes", "", *bars(histogram)]
    phrases = Counter(part.phrase for sample in _first(home, version) for part in sample.parts)
    if phrases:
        lines += ["", f"## Phrases of the first {SAMPLES:,} training images", ""]
        lines += table(("phrase", "parts"), ((plain(p), f"{n:,}") for p, n in phrases.most_common(PHRASES)))
    return "\n".join(lines) + "\n"


def _first(home: Home, version: Version) -> Iterator[TrainingSample]:
    samples = (sample for ref in version.shards.get("train", []) for sample in read_ref(home.store, ref))
    return itertools.islice(samples, SAMPLES)
