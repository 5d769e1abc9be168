"""Made-up files in the layouts of published data sets: small pictures whose colour tells which one it is."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(value: int, side: int = 8) -> bytes:
    """A PNG of one grey: lossless, so that a test can ask for the very picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def lay(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files below a folder; returns the folder."""
    for name, held in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(held.encode() if isinstance(held, str) else held)
    return root


def tarred(path: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files into a tar, compressed as its name says; returns the tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, held in files.items():
            data = held.encode() if isinstance(held, str) else held
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
