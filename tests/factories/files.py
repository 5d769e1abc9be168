"""Small pictures, and the folders and tars that hold them."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from hyco.pipeline.imaging.decode import encode_jpeg

Members = Iterable[tuple[str, bytes | str]] | Mapping[str, bytes | str]


def picture(value: int, side: int = 8) -> bytes:
    """A PNG of one grey: lossless, so that a test can ask for the very picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def noise(seed: int, height: int = 24, width: int = 32) -> bytes:
    """A JPEG of random pixels: no two seeds are alike."""
    return encode_jpeg(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def lay(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files below a folder; returns the folder."""
    for name, held in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(held.encode() if isinstance(held, str) else held)
    return root


def named(name: str, files: Mapping[str, bytes | str]) -> dict[str, bytes | str]:
    """The members of one sample: each file under its suffix."""
    return {f"{name}.{suffix}": data for suffix, data in files.items()}


def tarred(path: Path, members: Members, mode: str = "w") -> Path:
    """Write members into a tar, compressed when its name ends in gz; names may repeat. Returns the tar.

    Args:
        path: of the tar.
        members: its files, by name.
        mode: "a" appends to the tar that is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, f"{mode}:gz" if path.name.endswith("gz") else mode) as tar:
        _add(tar, members)
    return path


def tar_bytes(members: Members) -> bytes:
    """The bytes of a tar of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, members)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, members: Members) -> None:
    for name, held in members.items() if isinstance(members, Mapping) else members:
        data = held.encode() if isinstance(held, str) else held
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
