import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from hyco.pipeline.embedder import pixels_of
from hyco.pipeline.imaging import decode as images
from hyco.pipeline.imaging.decode import ImageError, decode, encode_jpeg, inspect, is_plain_jpeg

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left half red, right half blue, top right corner green."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    image.paste(GREEN, (size[0] * 3 // 4, 0, size[0], size[1] // 2))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def near(pixel: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() < 40)


def is_the_picture(pixels: np.ndarray) -> bool:
    return near(pixels[15, 5], RED) and near(pixels[15, 25], BLUE) and near(pixels[4, 36], GREEN)


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(), "JPEG", quality=95),
        encoded(picture(), "JPEG", quality=95, progressive=True),
        encoded(picture("CMYK"), "JPEG", quality=95),
        encoded(picture(), "PNG"),
        encoded(picture("P"), "PNG"),
        encoded(picture("RGBA"), "PNG"),
        encoded(picture(), "WEBP", lossless=True),
        encoded(picture(), "BMP"),
        encoded(picture(), "TIFF"),
        encoded(picture(), "AVIF", quality=95),
        encoded(picture("P"), "GIF"),
        encoded(picture("P"), "GIF", save_all=True, append_images=[Image.new("P", (40, 20))]),
        encoded(picture(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (40, 20))]),
    ],
    ids=[
        "jpeg",
        "progressive",
        "cmyk",
        "png",
        "palette",
        "rgba",
        "webp",
        "bmp",
        "tiff",
        "avif",
        "gif",
        "animated-gif",
        "animated-webp",
    ],
)
def test_every_kind_gives_rgb(data: bytes) -> None:
    pixels = decode(data)
    assert pixels.dtype == np.uint8 and pixels.shape == (20, 40, 3)
    assert inspect(data)[:2] == (40, 20)
    assert is_the_picture(pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind: str, orientation: int) -> None:
    """The stored pixels are the inverse turn of the picture, so every orientation must show the picture."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture().transpose(inverse[orientation]) if orientation > 1 else picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(stored, kind, exif=exif, **options)
    pixels = decode(data)
    assert pixels.shape == (20, 40, 3)
    assert is_the_picture(pixels)
    assert inspect(data)[:2] == (40, 20)
    if orientation > 1:
        assert not is_plain_jpeg(data)
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(pixels_of(opened), pixels)
    assert np.array_equal(pixels_of(opened.convert("RGB")), pixels), "the header goes with the copy"
    assert np.array_equal(pixels_of(ImageOps.exif_transpose(opened)), pixels), "not turned twice"


def test_a_broken_exif_block_costs_nothing() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0garbage and more garbage")
    assert decode(data).shape == (20, 40, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_lies_over_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    data = encoded(image.convert("RGBA" if mode in ("P", "PA") else mode), "PNG")
    if mode == "P":
        palette = Image.new("P", (8, 8), 1)
        palette.putpalette([0, 0, 0, 9, 9, 9])
        palette.paste(0, (0, 0, 4, 8))
        data = encoded(palette, "PNG", transparency=1)
    if mode == "PA":
        data = encoded(image, "GIF")
    pixels = decode(data)
    assert near(pixels[4, 1], (0, 0, 0)) and near(pixels[4, 6], WHITE)
    assert np.array_equal(pixels_of(Image.open(io.BytesIO(data))), pixels)


def test_sixteen_bit_grey_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG"))
    assert (pixels[..., 0] == ramp >> 8).all()


def test_grey_jpeg() -> None:
    pixels = decode(encoded(picture("L"), "JPEG"))
    assert pixels.shape == (20, 40, 3) and (pixels[..., 0] == pixels[..., 1]).all()


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends where its pixels should begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 99) + b"IDAT"


def jpeg_bomb() -> bytes:
    """A JPEG whose header was made to say 60000 x 60000."""
    data = bytearray(encoded(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    return bytes(data)


JPEG = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG", quality=95)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "zero_byte"),
        (b"\xff\xd8" + bytes(2000), "too_many_bytes"),
        (png_header(60000, 60000), "too_many_pixels"),
        (png_header(9000, 9000), "too_many_pixels"),
        (jpeg_bomb(), "too_many_pixels"),
        (b"this is text", "unknown_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown_format"),
        (b"\xff\xd8\xff\xe0 not really", "undecodable"),
    ],
)
def test_bad_images_by_their_header(data: bytes, code: str) -> None:
    for look in (inspect, decode):
        with pytest.raises(ImageError) as caught:
            look(data, max_bytes=2000)
        assert caught.value.code == code
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [JPEG[:-900], encoded(picture(), "PNG")[:-40], encoded(picture(), "WEBP")[:-30], png_header(10, 10)],
    ids=["jpeg", "png", "webp", "headless-png"],
)
def test_cut_images_pass_the_header_and_fail_to_decode(data: bytes) -> None:
    try:
        inspect(data)
    except ImageError as error:
        assert error.code in ("undecodable", "unknown_format")
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code in ("undecodable", "unknown_format")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_flipped_byte_is_an_image_or_an_image_error() -> None:
    rng = np.random.default_rng(0)
    sources = [
        JPEG,
        encoded(picture("P"), "GIF"),
        encoded(picture("RGBA"), "PNG"),
        encoded(picture(), "TIFF"),
    ]
    sources += [encoded(picture(), "WEBP"), encoded(picture(), "BMP")]
    failures = 0
    for source in sources:
        for _ in range(60):
            data = bytearray(source)
            for at in rng.integers(0, min(len(data), 400), 3):
                data[at] = rng.integers(256)
            try:
                assert decode(bytes(data), max_pixels=10**6).ndim == 3
            except ImageError:
                failures += 1
    assert failures > 20


def test_a_harmless_warning_does_not_cost_the_image() -> None:
    extraneous = JPEG[:-2] + b"\x00\x00\x00" + JPEG[-2:]
    assert decode(extraneous).shape == (64, 64, 3)


def test_encode() -> None:
    pixels = decode(JPEG)
    data = encode_jpeg(pixels[::-1], quality=95)
    assert data == encode_jpeg(pixels[::-1].copy(), quality=95)
    assert (
        is_plain_jpeg(data)
        and not is_plain_jpeg(b"\x89PNG")
        and not is_plain_jpeg(encoded(picture("CMYK"), "JPEG"))
    )
    assert np.abs(decode(data).astype(int) - pixels[::-1]).mean() < 6


def test_a_damaged_avif_is_undecodable() -> None:
    """Pillow's plugin raises RuntimeError for it."""
    data = bytearray(encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "AVIF", quality=90))
    rng, codes = np.random.default_rng(0), set()
    for _ in range(60):
        damaged = bytearray(data)
        for at in rng.integers(250, len(data), 6):
            damaged[at] ^= 0xFF
        try:
            decode(bytes(damaged))
        except ImageError as error:
            codes.add(error.code)
            assert "\n" not in str(error)
    assert "undecodable" in codes


class DecoderError(Exception):
    """Of no class that this project knows."""


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (DecoderError("two\nlines"), "undecodable", "DecoderError: two lines"),
        (RuntimeError("x" * 5000), "undecodable", "RuntimeError: " + "x" * 200),
        (RecursionError(), "undecodable", "RecursionError: no reason given"),
        (ZeroDivisionError("by zero"), "undecodable", "by zero"),
        (MemoryError(), "out_of_memory", "not enough memory"),
    ],
    ids=["unknown", "long", "recursion", "arithmetic", "memory"],
)
@pytest.mark.parametrize("step", ["open", "load"])
def test_whatever_a_decoder_raises_is_an_image_error(
    monkeypatch: pytest.MonkeyPatch, step: str, raised: Exception, code: str, text: str
) -> None:
    data = encoded(picture(), "PNG")

    def refuse(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(*((Image, "open") if step == "open" else (Image.Image, "convert")), refuse)
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == code and str(caught.value).endswith(text)


def test_a_key_press_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", stop)
    with pytest.raises(KeyboardInterrupt):
        decode(encoded(picture(), "PNG"))


def test_whatever_the_encoder_raises_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"image of 70000 x 8 cannot be written as JPEG: .*65500") as caught:
        encode_jpeg(np.zeros((8, 70000, 3), np.uint8))
    assert caught.value.code == "unencodable"

    def refuse(*args: object) -> bytes:
        raise DecoderError("no")

    monkeypatch.setattr(images.simplejpeg, "encode_jpeg", refuse)
    with pytest.raises(ImageError, match="image of 9 x 8 cannot be written as JPEG: DecoderError: no"):
        encode_jpeg(np.zeros((8, 9, 3), np.uint8))


def scans_of(count: int) -> bytes:
    """A progressive JPEG of 16 x 16 pixels whose last scan is there again and again: many scans, little work."""
    data = encoded(Image.effect_noise((16, 16), 50).convert("RGB"), "JPEG", quality=95, progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


@pytest.mark.parametrize("exif", [b"", b"\xff\xe1\x00\x08Exif\0\0"], ids=["plain", "careful"])
def test_a_jpeg_of_many_scans_is_refused_by_its_markers(exif: bytes) -> None:
    """At a limit of 320 pixels, 16 x 16 of them may be passed over 20 times."""
    few, many = (data[:2] + exif + data[2:] for data in (scans_of(20), scans_of(21)))
    assert decode(few, max_pixels=320).shape == (16, 16, 3) and decode(many).shape == (16, 16, 3)
    for look in (inspect, decode):
        with pytest.raises(
            ImageError, match="JPEG of 16 x 16 has 21 scans: more than 20 are refused"
        ) as caught:
            look(many, max_pixels=320)
        assert caught.value.code == "too_many_scans"


def test_bytes_that_look_like_scans_are_none() -> None:
    """In application data (a thumbnail), and behind the end of the image (the film of a motion photo)."""
    thumbnail = b"\xff\xe5" + struct.pack(">H", 2 + 100) + b"\xff\xda" * 50
    data = scans_of(20)
    data = data[:2] + thumbnail + data[2:] + b"\xff\xda\x00\x02" * 50
    assert data.count(b"\xff\xda") > 100 and decode(data, max_pixels=320).shape == (16, 16, 3)
