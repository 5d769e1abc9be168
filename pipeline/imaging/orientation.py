"""The orientation of a photograph whose EXIF was lost: named by img2dataset in text, put back into the file.

img2dataset decodes photographs as they are stored, encodes them again without EXIF, and keeps the EXIF as text
(`exif` in its json and parquet). The pixels are not touched here: the tag goes into the header, and
pipeline.imaging.decode turns the image as it does any other.
"""

import io
import json
import struct
import zlib
from typing import Any

from PIL import Image

NAMES = {
    "Horizontal (normal)": 1,
    "Mirrored horizontal": 2,
    "Rotated 180": 3,
    "Mirrored vertical": 4,
    "Mirrored horizontal then rotated 90 CCW": 5,
    "Rotated 90 CW": 6,
    "Mirrored horizontal then rotated 90 CW": 7,
    "Rotated 90 CCW": 8,
}
"""EXIF orientation by the words of the ExifRead package, which img2dataset uses."""

_TAG = "Image Orientation"
_PNG = b"\x89PNG\r\n\x1a\n"


def told_orientation(exif: Any) -> int:
    """Return the EXIF orientation 1-8 that img2dataset's `exif` (JSON text, or an object) names; 1 without one."""
    if isinstance(exif, str):
        if _TAG not in exif:
            return 1
        try:
            exif = json.loads(exif)
        except (ValueError, RecursionError):
            return 1
    told = exif.get(_TAG) if isinstance(exif, dict) else None
    return NAMES.get(told.strip(), 1) if isinstance(told, str) else 1


def with_orientation(data: bytes, orientation: int) -> bytes:
    """Return an encoded image with an EXIF orientation; an image with EXIF of its own comes back unchanged.

    Args:
        data: a JPEG, PNG or WebP that `hyco.pipeline.imaging.decode.inspect` accepts; others come back unchanged.
        orientation: 1-8, as EXIF counts.
    """
    if orientation == 1 or has_exif(data):
        return data
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    if data.startswith(b"\xff\xd8"):
        segment = b"Exif\0\0" + tiff
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    if data.startswith(_PNG):
        at = len(_PNG) + 25  # IHDR: length, name, 13 bytes, checksum
        chunk = b"eXIf" + tiff
        return (
            data[:at]
            + struct.pack(">I", len(tiff))
            + chunk
            + struct.pack(">I", zlib.crc32(chunk))
            + data[at:]
        )
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data, tiff)
    return data


def has_exif(data: bytes) -> bool:
    """Say whether an encoded image has EXIF of its own, whatever it says."""
    if data.startswith(b"\xff\xd8") and b"Exif\0" not in data[: 1 << 16]:
        return False
    try:
        with Image.open(io.BytesIO(data)) as image:
            return bool(image.info.get("exif"))
    except Exception:  # of a broken image, which `decode` names
        return False


def _webp(data: bytes, tiff: bytes) -> bytes:
    """A WebP in the extended layout with EXIF behind its chunks; VP8X flags: 0x10 alpha, 0x08 EXIF."""
    chunks = data[12:]
    exif = b"EXIF" + struct.pack("<I", len(tiff)) + tiff  # of even length
    if chunks.startswith(b"VP8X"):
        head = chunks[:8] + bytes([chunks[8] | 0x08]) + chunks[9:18]
        chunks = chunks[18:]
    else:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            alpha = 0x10 if image.mode == "RGBA" else 0
        sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        head = b"VP8X" + struct.pack("<I", 10) + bytes([0x08 | alpha, 0, 0, 0]) + sides
    body = b"WEBP" + head + chunks + exif
    return b"RIFF" + struct.pack("<I", len(body)) + body
