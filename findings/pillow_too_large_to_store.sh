#!/usr/bin/env bash
# Package: pillow 13.0.0
#
# A picture with a long side is refused by the encoder, not by Pillow, and only when it is saved: Image.new,
# resize, crop and paste all work. What is raised differs with the format: OSError for JPEG (sides above 65,500,
# with a text about a broken stream), ValueError for WebP (above 16,383), RuntimeError for AVIF. PNG takes them.
#
# Who it hurts: contact sheets, long screenshots and stitched panels of an evaluation, and packers that skip bad
# pictures with "except (OSError, ValueError)": an AVIF stops them, and for JPEG the disk seems to be at fault.
# Remedy: compare the sides with the format's limit before encoding.
#
# Seen (a picture of 70,000 x 1; largest: the longest side that works):
#   JPEG: OSError: broken data stream when writing image file; largest side 65500
#   WEBP: ValueError: encoding error 5: Image size exceeds WebP limit of 16383 pixels; largest side 16383
#   AVIF: RuntimeError: Failed to encode image: Invalid argument
#   PNG: stored
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check pillow==13.0.0

"$work/venv/bin/python" - <<'PY'
import io

from PIL import Image


def stored(kind, side):
    """None if it is stored, else the exception."""
    try:
        Image.new("L", (side, 1)).save(io.BytesIO(), kind)
    except Exception as error:
        return error


for kind, refusal, largest in (
    ("JPEG", OSError, 65_500),
    ("WEBP", ValueError, 16_383),
    ("AVIF", RuntimeError, None),
    ("PNG", None, None),
):
    error = stored(kind, 70_000)
    told = f"{type(error).__name__}: {error}" if error else "stored"
    print(f"{kind}: {told}" + (f"; largest side {largest}" if largest else ""))
    assert (type(error) if error else None) is refusal
    if largest:
        assert stored(kind, largest) is None and type(stored(kind, largest + 1)) is refusal
PY
