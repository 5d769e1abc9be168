"""Self-verifying files: JSON and parquet that hold the sha256 of their own bytes.

An object is named by its hash, but a record, a version or a row of the registry has a name of its own, so its checksum
is stored inside the file. A JSON file begins with the member "sealed" and ends with "proof": damage at one place cannot
remove both, so a file with neither was written by an earlier Hyco and is accepted if it can be read.
"""

import hashlib
import json
import re
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_FIRST, _LAST = "sealed", "proof"
_PROOF = re.compile(rb',\n "proof": "([0-9a-f]{64})"\n}\Z')
_PARQUET_KEY = b"hyco.sha256"
# A key and a value of the footer as thrift's compact protocol writes them: field 1 and field 2, strings, their lengths.
_PARQUET_PROOF = b"\x18" + bytes([len(_PARQUET_KEY)]) + _PARQUET_KEY + b"\x18\x40"
_EMPTY = b"0" * 64


def seal(record: dict[str, Any]) -> bytes:
    """Return the bytes of a self-verifying JSON file; equal records give equal bytes.

    Raises ValueError for NaN and infinities, which JSON does not have, and for the two reserved member names.
    """
    if taken := {_FIRST, _LAST} & record.keys():
        raise ValueError(f"a record may not hold {sorted(taken)}: these names are reserved for the checksum")
    plain = json.loads(json.dumps(record, sort_keys=True, allow_nan=False))
    body = {_FIRST: 1, **plain}
    return _text({**body, _LAST: hashlib.sha256(_text(body)).hexdigest()})


def unseal(data: bytes) -> dict[str, Any]:
    """Return the record in a JSON file, without its checksum; a file of an earlier Hyco without one as it is.

    Raises ValueError, naming the fault, for anything that is no JSON object or was changed.
    """
    try:
        held = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(held, dict):
        raise ValueError("it is not a JSON object")
    if _FIRST not in held and _LAST not in held:
        return held
    proof = _PROOF.search(data)
    # Writing the record again to compare it would take most of the time of reading a home.
    if proof is None or hashlib.sha256(data[: proof.start()] + b"\n}").hexdigest().encode() != proof[1]:
        raise ValueError("it was changed since it was written")
    if _FIRST not in held:
        raise ValueError("it was changed since it was written")
    return {name: value for name, value in held.items() if name not in (_FIRST, _LAST)}


def write_table(table: pa.Table, file: BinaryIO) -> None:
    """Write a table as parquet with a checksum on every page."""
    # Arrow writes to its own memory: a Python file used by Arrow's threads can abort the process at exit.
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    file.write(memoryview(sink.getvalue()))


def read_table(data: bytes) -> pa.Table:
    """Read parquet from memory; ValueError when it is not parquet or a page does not fit its checksum."""
    try:
        # No Arrow threads and no Python file: see `write_table`.
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True) as file:
            return file.read(use_threads=False)
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise ValueError(f"it is not complete parquet: {str(error).partition(chr(10))[0]}") from None


def seal_table(table: pa.Table) -> bytes:
    """Return self-verifying parquet: the footer holds the sha256 of the file with zeros in place of the sha256."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_PARQUET_KEY.decode(): _EMPTY.decode()})
    data = sink.getvalue().to_pybytes()
    at = data.rfind(_PARQUET_PROOF + _EMPTY) + len(_PARQUET_PROOF)
    assert at >= len(_PARQUET_PROOF), "pyarrow has changed how it writes the footer's keys"
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + 64 :]


def is_sealed_table(data: bytes) -> bool:
    """Return whether parquet holds a checksum of itself; ValueError when the checksum does not fit."""
    at = data.rfind(_PARQUET_PROOF) + len(_PARQUET_PROOF)
    if at < len(_PARQUET_PROOF):
        return False
    told = data[at : at + 64]
    if (
        not re.fullmatch(rb"[0-9a-f]{64}", told)
        or hashlib.sha256(data[:at] + _EMPTY + data[at + 64 :]).hexdigest().encode() != told
    ):
        raise ValueError("it was changed since it was written")
    return True


def _text(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1, ensure_ascii=False).encode()
