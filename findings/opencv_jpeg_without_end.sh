#!/usr/bin/env bash
# Package: opencv-python-headless 5.0.0.93 (beside 4.10.0.84; pillow 13.0.0 for comparison)
#
# cv2.imdecode of OpenCV 5.0 returns None for a JPEG that lacks its two closing bytes, although all of its pixels
# are there. 4.10 gives the whole picture, and for half of a file the half that there is. There is no exception and
# nothing on stderr. Pillow raises for both, unless ImageFile.LOAD_TRUNCATED_IMAGES is set, and then gives them.
#
# Who it hurts: web-crawled shards, in which such files are common: after an upgrade of OpenCV a part of the set is
# gone, since None usually means "skip", and two machines with different versions train on different sets.
# Remedy: count the None; where only the end is missing, append the end marker b"\xff\xd9" and decode again.
#
# Seen (a picture of 256 x 256):
#   opencv 4.10.0.84, whole file: (256, 256, 3)
#   opencv 4.10.0.84, without end marker: (256, 256, 3)
#   opencv 4.10.0.84, half of the file: (256, 256, 3)
#   opencv 5.0.0.93, whole file: (256, 256, 3)
#   opencv 5.0.0.93, without end marker: None
#   opencv 5.0.0.93, half of the file: None
#   pillow, tolerant: the same pixels without the end marker
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 4.10.0.84 5.0.0.93; do
    python3.11 -m venv "$work/$version"
    "$work/$version/bin/pip" install -q --disable-pip-version-check \
        "opencv-python-headless==$version" numpy==2.4.6 pillow==13.0.0
done

cat > "$work/try.py" <<'PY'
import io
import sys

import cv2
import numpy as np
from PIL import Image, ImageFile

ramp = np.add.outer(np.arange(256), np.arange(256)).astype(np.uint8)
stream = io.BytesIO()
Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], 2)).save(stream, "JPEG", quality=90)
whole = stream.getvalue()


def opencv(data):
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if picture is None else picture.shape


old = cv2.__version__.startswith("4.10")
full = (256, 256, 3)
cut = full if old else None
for name, data, expected in (
    ("whole file", whole, full),
    ("without end marker", whole[:-2], cut),
    ("half of the file", whole[: len(whole) // 2], cut),
):
    print(f"opencv {sys.argv[1]}, {name}: {opencv(data)}")
    assert opencv(data) == expected

if not old:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    one, other = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (whole, whole[:-2]))
    assert np.array_equal(one, other)
    print("pillow, tolerant: the same pixels without the end marker")
PY
for version in 4.10.0.84 5.0.0.93; do
    "$work/$version/bin/python" "$work/try.py" "$version"
done
