"""Encoded images to pixels and back, for untrusted input.

The size is read from the header before anything is decoded, only a short list of formats is opened, and every kind of
bad image has a stable code, whatever a decoder or encoder raises. Pixels are always uint8 [H, W, 3] RGB, rotated as
EXIF says; the first frame of an animation; transparency over white; CMYK, palette, grey and 16-bit grey converted.
Colour profiles are ignored.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Default limit on width * height: 64 million pixels decode to 192 MB."""

MAX_BYTES = 64 << 20
"""Default limit on the encoded size of one image."""

SCANS = 16
"""Limit on scans * width * height of a JPEG, in units of the limit on width * height. Each scan passes over the whole
image: encoders write about 10, and a file of 29 kB can hold enough of them to take minutes."""

# Opened with these plugins only: others run programs (EPS) or are rarely tested parsers.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)
_SCAN = b"\xff\xda"
_MARKER = re.compile(
    rb"\xff+([^\x00\xd0-\xd7\xff])"
)  # neither byte stuffing nor a restart marker inside a scan
_LONGEST_REASON = 200  # characters of a decoder's own message


class ImageError(ValueError):
    """An image that cannot be used.

    Attributes:
        code: "zero_byte", "too_many_bytes", "unknown_format", "too_many_pixels", "too_many_scans", "undecodable",
            "unencodable" or "out_of_memory" (the only one that a retry may fix).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def inspect(data: bytes, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> tuple[int, int, str]:
    """Return (width, height, format) as `decode` will give them, reading only the header.

    Raises ImageError for empty, oversized or unknown data. A valid header does not prove that the rest is valid: only
    `decode` does.
    """
    if fast := _plain_jpeg(data, max_bytes):
        _check_pixels(*fast, max_pixels)
        _check_scans(data, *fast, max_pixels)
        return *fast, "JPEG"
    with _open(data, max_pixels, max_bytes) as image:
        width, height = image.size
        if _orientation(image) in _SWAPPED:
            width, height = height, width
        return width, height, image.format or ""


def decode(data: bytes, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Return the pixels, uint8 [H, W, 3] RGB. Raises ImageError for anything that is not a complete image."""
    if fast := _plain_jpeg(data, max_bytes):
        _check_pixels(*fast, max_pixels)
        _check_scans(data, *fast, max_pixels)
        try:
            return simplejpeg.decode_jpeg(data, "RGB")
        except Exception:
            pass  # simplejpeg also refuses warnings; PIL accepts harmless ones and refuses truncated data
    with _open(data, max_pixels, max_bytes) as image:
        return rgb_of(image)


def rgb_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image that PIL has opened, as `decode` gives those of its bytes; ImageError likewise."""
    orientation = _orientation(image)  # before loading: some plugins find another size than `inspect` did
    with _foreign("undecodable", f"{image.format or image.mode} image cannot be decoded"):
        pixels = _to_rgb(image)
        if orientation in _TURNS:
            pixels = pixels.transpose(_TURNS[orientation])
        return np.asarray(pixels)


def encode_jpeg(array: np.ndarray, quality: int = 90) -> bytes:
    """Return uint8 [H, W, 3] RGB as a baseline JPEG with 4:2:0 colour. Equal pixels give equal bytes.

    Raises ImageError where the encoder refuses the image, for example a side of more than 65,500 pixels.
    """
    height, width = array.shape[:2]
    with _foreign("unencodable", f"image of {width} x {height} cannot be written as JPEG"):
        return simplejpeg.encode_jpeg(np.ascontiguousarray(array), quality, "RGB", "420")


def is_plain_jpeg(data: bytes) -> bool:
    """Return whether these bytes are a plain grey or colour JPEG: no rotation, and the same pixels in every reader."""
    return _plain_jpeg(data, len(data)) is not None


def _plain_jpeg(data: bytes, max_bytes: int) -> tuple[int, int] | None:
    """(width, height) of a colour or grey JPEG without EXIF; None selects the general decoder."""
    if not data.startswith(b"\xff\xd8") or len(data) > max_bytes or data.find(b"Exif\0", 0, 1 << 16) >= 0:
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception:  # for example a KeyError for a header truncated before its colour space
        return None
    return (int(width), int(height)) if space.upper() in ("RGB", "YCBCR", "GRAY") else None


@contextmanager
def _foreign(code: str, what: str) -> Iterator[None]:
    """Turn any exception of a decoder or encoder into an ImageError of one line: they have no common class.

    KeyboardInterrupt and SystemExit pass. MemoryError gets a code of its own: the image may be fine.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("out_of_memory", f"{what}: not enough memory") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or "no reason given"
        raise ImageError(code, f"{what}: {type(error).__name__}: {reason}") from None


def _check_scans(data: bytes, width: int, height: int, max_pixels: int) -> None:
    """Refuse a JPEG whose scans cover too many pixels, by its markers."""
    most = SCANS * max_pixels // (width * height)
    # Two upper bounds: a scan's header alone has ten bytes; other data may contain the marker's bytes by chance.
    if len(data) <= 10 * most or data.count(_SCAN) <= most:
        return
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) and found[1] != b"\xd9":  # data after the end is not decoded
        scans += found[1] == b"\xda"
        at = found.end()
        if found[1] not in (b"\x01", b"\xd8"):  # all others have a length; this also skips thumbnails
            at += int.from_bytes(data[at : at + 2], "big")
    if scans > most:
        raise ImageError(
            "too_many_scans", f"JPEG of {width} x {height} has {scans} scans: more than {most} are refused"
        )


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            "too_many_pixels", f"image is {width} x {height}: more than {max_pixels} pixels are refused"
        )


def _open(data: bytes, max_pixels: int, max_bytes: int) -> Image.Image:
    if not data:
        raise ImageError("zero_byte", "image has no bytes")
    if len(data) > max_bytes:
        raise ImageError("too_many_bytes", f"image has {len(data)} bytes: more than {max_bytes} are refused")
    with _foreign("undecodable", "image header cannot be read"):
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            start = data[:8]
            raise ImageError(
                "unknown_format", f"not an image of a known format: it begins with {start!r}"
            ) from None
        except Image.DecompressionBombError as error:
            raise ImageError("too_many_pixels", f"image is refused by its header: {error}") from None
    _check_pixels(*image.size, max_pixels)
    if data.startswith(b"\xff\xd8"):
        _check_scans(data, *image.size, max_pixels)
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1-8 from the header (PIL itself rotates TIFF)."""
    raw = image.info.get("exif")
    if not raw or image.format == "TIFF":
        return 1
    exif = Image.Exif()
    try:
        exif.load(raw)
        return int(exif.get(_ORIENTATION, 1))
    except (
        Exception
    ):  # EXIF is free-form bytes from a camera; a broken block must not make the image unusable
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        shifted = values >> 8 if values.max(initial=0) > 255 else values
        return Image.fromarray(shifted.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
