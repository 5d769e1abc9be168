#!/usr/bin/env bash
# Package: webdataset 1.0.2
#
# .decode() without arguments turns the parts .id, .index, .count, .class and .cls into int. An identifier of
# digits therefore loses its leading zeros, and one with a letter stops the epoch with a DecodingError.
#
# Who it hurts: shards that carry the source's own id ("000000391895.jpg" of COCO) as .id to join results back:
# after decoding nothing matches, although the raw bytes are right.
# Remedy: keep identifiers in .txt or in the .json part.
#
# Seen:
#   wrote b'000000391895', read raw b'000000391895', decoded 391895, as .txt '000000391895'
#   'a17' as .id: DecodingError from ValueError
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6

"$work/venv/bin/python" - "$work" <<'PY'
import sys
from pathlib import Path

import webdataset
from webdataset.autodecode import DecodingError

good, other = str(Path(sys.argv[1]) / "good.tar"), str(Path(sys.argv[1]) / "other.tar")
for path, name in ((good, b"000000391895"), (other, b"a17")):
    with webdataset.TarWriter(path) as writer:
        writer.write({"__key__": "0", "id": name, "txt": name.decode()})


def first(path, decode):
    data = webdataset.WebDataset(path, shardshuffle=False)
    return next(iter(data.decode() if decode else data))


raw, decoded = first(good, False), first(good, True)
print(f"wrote b'000000391895', read raw {raw['id']}, decoded {decoded['id']!r}, as .txt {decoded['txt']!r}")
assert raw["id"] == b"000000391895" and decoded["id"] == 391895 and decoded["txt"] == "000000391895"
try:
    first(other, True)
except DecodingError as error:
    print(f"'a17' as .id: DecodingError from {type(error.__cause__).__name__}")
    assert isinstance(error.__cause__, ValueError)
else:
    raise AssertionError("'a17' was decoded")
PY
