"""Tar archives as streams: written reproducibly, read strictly, so that any truncation is an error.

Python's tarfile ends without an error when an archive is truncated between two members or when a header is garbage, and
so does the webdataset library: a shard would silently lose its last samples. Nothing is ever extracted; members come as
bytes.
"""

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from hyco.storage.sample import short

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_LONGEST_HEADER = 1 << 20
_LONG_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONGEST_NAME = 100  # bytes; longer ones need a prefix
_LARGEST = 8**11 - 1
_MAGIC = b"ustar\x0000"
_MODE = b"0000644\0" + 2 * b"0000000\0"  # with uid and gid
_TIME = b"00000000000\0"
_REST = b"       " + b" " + tarfile.REGTYPE + bytes(100) + _MAGIC + bytes(247)
_REST_SUM = sum(_REST)
_ADLER = 65521  # the modulus of zlib.adler32
_REMEDY = "fetch it or make it again"


class TornTarError(ValueError):
    """The bytes are not a complete tar archive."""


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of an archive. `read` returns its bytes, once, before the next member is requested."""

    name: str
    size: int
    read: Callable[[], bytes]


def read_members(file: BinaryIO, name: str) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar in order, reading forward only.

    Args:
        file: binary stream; need not be seekable.
        name: name of the archive in errors.

    Raises:
        TornTarError: not a tar, truncated anywhere, without end-of-archive mark, or with data after it.
    """
    stream = _Stream(file, name)
    long_name: str | None = None
    long_size: int | None = None
    while True:
        start = stream.offset
        header = stream.header()
        if header == _ZEROS:
            stream.drain_zeros(start)
            return
        plain = _plain(header) if long_name is long_size is None else None
        if plain:
            body_reader = _Body(stream, plain[1], plain[0])
            yield Member(*plain, body_reader.read)
            body_reader.skip()
            continue
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            what = "is not a tar archive" if start == 0 else f"has a broken header at byte {start}"
            raise TornTarError(f"{name} {what} ({error}): {_REMEDY}") from None
        if info.size < 0:
            raise TornTarError(
                f"{name} has a broken header at byte {start} (a size of {info.size}): {_REMEDY}"
            )
        if info.type in _LONG_HEADERS:
            if info.size > _LONGEST_HEADER:
                raise TornTarError(f"{name} has a header of {info.size} bytes at byte {start}: too large")
            body = stream.exactly(info.size + -info.size % _BLOCK, "a long header")[: info.size]
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                fields = _pax_fields(body)
                long_name = fields.get("path", long_name)
                long_size = int(fields["size"]) if fields.get("size", "").isdigit() else long_size
            continue
        member = long_name or info.name
        size = info.size if long_size is None else long_size
        long_name = long_size = None
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise TornTarError(
                f"{name} holds the sparse file {short(member)!r}: write the archive without --sparse"
            )
        body_reader = _Body(stream, size, member)
        if info.isreg():
            yield Member(member, size, body_reader.read)
        body_reader.skip()


def write_member(file: BinaryIO, name: str, data: bytes) -> None:
    """Append a regular file with fixed time, owner and mode, so that equal content gives equal bytes.

    Faster than tarfile.addfile, which copies and seeks for each member and formats every field of its header.
    """
    file.write(_header(name, len(data)))
    file.write(data)
    file.write(bytes(-len(data) % _BLOCK))


def write_end(file: BinaryIO) -> None:
    """Append the end-of-archive mark; an archive without it counts as truncated."""
    file.write(2 * _ZEROS)


def _header(name: str, size: int) -> bytes:
    """The ustar header that tarfile writes for a TarInfo of this name and size: mtime 0, uid 0, gid 0, mode 0644."""
    encoded = name.encode()
    if len(encoded) > _LONGEST_NAME or size > _LARGEST:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    start = encoded.ljust(100, b"\0") + _MODE + b"%011o\0" % size + _TIME
    return start + b"%06o\0" % (sum(start) + _REST_SUM) + _REST[7:]


def _plain(header: bytes) -> tuple[str, int] | None:
    """Return name and size of a regular file with a short name; None for what tarfile itself reads or refuses."""
    if header[156:157] != tarfile.REGTYPE or header[257:265] != _MAGIC or header[345:346] != b"\0":
        return None
    told, size = header[148:154], header[124:135]
    if not (told.isdigit() and size.isdigit() and header[135:136] == b"\0" and header[154:155] == b"\0"):
        return None
    try:
        # The checksum counts its own eight bytes as spaces. Adler's first half is 1 + the sum of the bytes.
        total = int(told, 8) - 8 * 32 + sum(header[148:156])
        if zlib.adler32(header) & 0xFFFF != (1 + total) % _ADLER:
            return None
        return header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape"), int(size, 8)
    except ValueError:
        return None


class _Stream:
    """Counts bytes, and raises an error when fewer bytes are left than requested."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name, self.offset = file, name, 0

    def _take(self, count: int) -> bytes:
        data = self.file.read(count)
        while 0 < len(data) < count and (more := self.file.read(count - len(data))):
            data += more
        self.offset += len(data)
        return data

    def exactly(self, count: int, what: str) -> bytes:
        data = self._take(count)
        if len(data) < count:
            raise TornTarError(f"{self.name} is truncated at byte {self.offset}, inside {what}: {_REMEDY}")
        return data

    def header(self) -> bytes:
        start = self.offset
        data = self._take(_BLOCK)
        if not data and start == 0:
            raise TornTarError(f"{self.name} is empty: not a tar archive")
        if not data:
            raise TornTarError(
                f"{self.name} ends at byte {start} without end-of-archive mark (members lost): {_REMEDY}"
            )
        if len(data) < _BLOCK:
            what = (
                "is not a tar archive"
                if start == 0
                else f"is truncated at byte {self.offset}, inside a header"
            )
            raise TornTarError(f"{self.name} {what}: {_REMEDY}")
        return data

    def drain_zeros(self, start: int) -> None:
        """After the first zero block only zeros may follow: other data would be lost silently."""
        while block := self._take(_LONGEST_HEADER):
            if block.strip(b"\0"):
                what = "has data after its end-of-archive mark (two concatenated archives?): make it again"
                raise TornTarError(
                    f"{self.name} {what if start else 'is not a tar archive (it begins with zeros)'}"
                )


class _Body:
    """The bytes of one member: read once, or skipped (the stream may not seek, and a truncation must be noticed)."""

    def __init__(self, stream: _Stream, size: int, member: str) -> None:
        self.stream, self.member, self.left, self.size = stream, short(member), size, size

    def read(self) -> bytes:
        assert self.left == self.size, "a member is read once, before the next one is requested"
        self.left = 0
        return self.stream.exactly(self.size, repr(self.member))

    def skip(self) -> None:
        while self.left:
            step = min(self.left, _LONGEST_HEADER)
            self.stream.exactly(step, repr(self.member))
            self.left -= step
        self.stream.exactly(-self.size % _BLOCK, f"the padding of {self.member!r}")


def _pax_fields(body: bytes) -> dict[str, str]:
    """Parse "length key=value\\n" records; the length counts the whole record."""
    fields = {}
    while match := re.match(rb"(\d+) ([^=]+)=", body):
        length = int(match[1])
        if not match.end() < length <= len(body):
            break
        value = body[match.end() : length - 1]
        fields[match[2].decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        body = body[length:]
    return fields
