#!/usr/bin/env bash
# Package: wids 0.1.11 (random access to webdataset shards)
#
# ShardListDataset looks a negative index up as if it lay in the first shard. data[-1] is the last sample of the
# first shard, not of the set, and a negative index that reaches further back than the first shard is long is an
# IndexError although len(data) would allow it. The returned sample even carries its index as -1.
#
# Who it hurts: a smoke check "look at the first and the last sample", a reversed walk, or a hold-out taken from
# the end, all of which stay inside shard 0 without a word.
# Remedy: index with len(data) + i.
#
# Seen (3 shards of 4 samples, keys 00 to 23):
#   len 12, data[0] 00, data[11] 23
#   data[-1] 03, data[-2] 02
#   data[-5] IndexError
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile wids==0.1.11 pillow==13.0.0 numpy==2.4.6 torch==2.13.0

"$work/venv/bin/python" - "$work" <<'PY'
import io
import sys
import tarfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import wids

work = Path(sys.argv[1])
shards = []
for shard in range(3):
    path = work / f"{shard}.tar"
    with tarfile.open(path, "w") as tar:
        for sample in range(4):
            body = f"{shard}-{sample}".encode()
            member = tarfile.TarInfo(f"{shard}{sample}.txt")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    shards.append({"url": str(path), "nsamples": 4})

data = wids.ShardListDataset(shards, cache_dir=str(work / "cache"), keep=True)
print(f"len {len(data)}, data[0] {data[0]['__key__']}, data[11] {data[11]['__key__']}")
print(f"data[-1] {data[-1]['__key__']}, data[-2] {data[-2]['__key__']}")
assert len(data) == 12 and data[11]["__key__"] == "23"
assert data[-1]["__key__"] == "03" and data[-2]["__key__"] == "02"
try:
    data[-5]
except IndexError:
    print("data[-5] IndexError")
else:
    raise AssertionError("data[-5] was found")
PY
