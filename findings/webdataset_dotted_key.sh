#!/usr/bin/env bash
# Package: webdataset 1.0.2
#
# A key ends at the first dot of the file name, not at the last. TarWriter takes a key with a dot without a word,
# and the reader cuts it there: neighbours that share the part before the dot become one sample, whose parts are
# called after the rest. Nothing is raised, since the part names differ.
#
# Who it hurts: keys made from file names ("photo.v1", "3.5mm_lens", "www.site.org_12"): several samples become
# one, decoders no longer know the extension, and .to_tuple("jpg") finds nothing.
# Remedy: no dots in keys; replace them when packing. Dots in folders are harmless.
#
# Seen:
#   wrote cat.v1, cat.v2, dog; read {'cat': ['v1.jpg', 'v1.txt', 'v2.jpg', 'v2.txt'], 'dog': ['jpg', 'txt']}
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6

"$work/venv/bin/python" - "$work/shard.tar" <<'PY'
import sys

import webdataset

keys = ["cat.v1", "cat.v2", "dog"]
with webdataset.TarWriter(sys.argv[1]) as writer:
    for key in keys:
        writer.write({"__key__": key, "jpg": b"picture", "txt": f"about {key}"})
read = {
    sample["__key__"]: [part for part in sample if not part.startswith("__")]
    for sample in webdataset.WebDataset(sys.argv[1], shardshuffle=False)
}
print(f"wrote {', '.join(keys)}; read {read}")
assert read == {"cat": ["v1.jpg", "v1.txt", "v2.jpg", "v2.txt"], "dog": ["jpg", "txt"]}
PY
