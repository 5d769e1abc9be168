#!/usr/bin/env bash
# Package: datasets 5.2.0
#
# load_dataset("webdataset") takes the columns, and the fields within a .json part, from the first five samples.
# If these differ among each other the set is refused with a ValueError; a part or a json field that first occurs
# in the sixth sample is dropped from the whole set instead: no column, no warning, in streaming too.
#
# Who it hurts: shards where some samples carry more than others, for instance boxes only where the grounder
# found some. The order of the samples decides between all the boxes, none of them, and an error.
# Remedy: give every sample every part (an empty list rather than no part).
#
# Seen (10 samples, .boxes.json and the json field "source" in the half with the higher numbers):
#   richer last, streaming False: 10 samples, columns ['json', 'txt'], json of 0009 {'n': 9}
#   richer last, streaming True: 10 samples, columns ['json', 'txt'], json of 0009 {'n': 9}
#   richer first, streaming False: 10 samples, columns ['boxes.json', 'json', 'txt'], json of 0009 {'n': 9, 'source': 'a'}
#   richer first, streaming True: 10 samples, columns ['boxes.json', 'json', 'txt'], json of 0009 {'n': 9, 'source': 'a'}
#   mixed: ValueError
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6 pillow==13.0.0

HF_HUB_OFFLINE=1 HF_HOME="$work/hf" "$work/venv/bin/python" - "$work" 2> "$work/stderr" <<'PY' || { cat "$work/stderr"; exit 1; }
import io
import json
import sys
import tarfile
from pathlib import Path

from datasets import load_dataset

work = Path(sys.argv[1])


def shard(name, order):
    with tarfile.open(work / name, "w") as tar:
        for n in order:
            rich = n >= 5
            parts = {"txt": b"a red bus", "json": json.dumps({"n": n, "source": "a"} if rich else {"n": n}).encode()}
            if rich:
                parts["boxes.json"] = b'{"bus": [0.1, 0.2, 0.5, 0.6]}'
            for part, body in parts.items():
                member = tarfile.TarInfo(f"{n:04d}.{part}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return str(work / name)


seen = {}
for name, order in (("last", list(range(10))), ("first", list(range(9, -1, -1)))):
    for streaming in (False, True):
        data = load_dataset("webdataset", data_files=shard(f"{name}.tar", order), split="train", streaming=streaming)
        samples = list(data)
        richest = next(sample for sample in samples if sample["__key__"] == "0009")
        seen[name, streaming] = richest
        columns = sorted(key for key in richest if not key.startswith("__"))
        print(f"richer {name}, streaming {streaming}: {len(samples)} samples, columns {columns}, json of 0009 {richest['json']}")
        assert len(samples) == 10
try:
    load_dataset("webdataset", data_files=shard("mixed.tar", [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]), split="train")
except ValueError:
    print("mixed: ValueError")
else:
    raise AssertionError("the mixed order was loaded")
for streaming in (False, True):
    assert "boxes.json" not in seen["last", streaming] and seen["last", streaming]["json"] == {"n": 9}
    assert "boxes.json" in seen["first", streaming] and seen["first", streaming]["json"]["source"] == "a"
PY
grep -iE "boxes|source|dropp|missing" "$work/stderr" && { echo "now there is a word about it"; exit 1; }
echo "no word about the lost parts on stderr"
