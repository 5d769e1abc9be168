#!/usr/bin/env bash
# Package: webdataset 1.0.2
#
# A shard that stops at the end of a member reads as a whole one: no error, only fewer samples, and
# the last of them may lack a part. The two empty blocks that close a tar are not asked for (Python's tarfile,
# which reads the stream, takes their absence for the end too; GNU tar is as quiet).
#
# Who it hurts: a copy that was interrupted, or a writer that was stopped before close(). With parts in writing
# order (image, then caption) the last image arrives without its caption, and epochs are short unnoticed.
# Remedy: write under another name and rename after close, keep the sample count beside the shard, and check the
# closing blocks.
#
# Seen (10 samples of a .jpg and a .json, cut after the 7th member):
#   whole: 10 samples; cut: 4 samples, last one ['jpg']
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6

"$work/venv/bin/python" - "$work" <<'PY'
import sys
import tarfile
from pathlib import Path

import webdataset

work = Path(sys.argv[1])
whole, cut = work / "whole.tar", work / "cut.tar"
with webdataset.TarWriter(str(whole)) as writer:
    for sample in range(10):
        writer.write({"__key__": f"{sample:04d}", "jpg": b"picture", "json": {"n": sample}})
with tarfile.open(whole) as tar:
    eighth = tar.getmembers()[7]
cut.write_bytes(whole.read_bytes()[: eighth.offset])


def read(path):
    return list(webdataset.WebDataset(str(path), shardshuffle=False))


full, short = read(whole), read(cut)
parts = [key for key in short[-1] if not key.startswith("__")]
print(f"whole: {len(full)} samples; cut: {len(short)} samples, last one {parts}")
assert len(full) == 10 and len(short) == 4 and parts == ["jpg"]
PY
