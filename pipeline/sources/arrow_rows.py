"""Rows of an arrow file, as `datasets.Dataset.save_to_disk` writes it (a stream), or of arrow's file format."""

import os
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.records import Limits, SourceRecord
from hyco.pipeline.sources.table_rows import Row, columns_of, holds_bytes, is_json, torn, value_of
from hyco.pipeline.sources.tar_rows import Admit
from hyco.storage.store import Store

_FILE = b"ARROW1"
_END = b"\xff\xff\xff\xff\0\0\0\0"
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)  # a thread that outlives the interpreter aborts it


def arrow_rows(
    file: BinaryIO, path: str, store: Store, limits: Limits, admit: Admit, columns: Columns = USUAL
) -> Iterator[SourceRecord]:
    """Rows of an arrow file; its columns are those that table_rows.columns_of finds.

    Other columns become meta as far as JSON can hold them. ValueError for a file without the columns, naming those it
    has, and for one that is not a whole arrow file.
    """
    try:
        number = 0
        for batch in _batches(file):
            image, captions = columns_of(batch.schema, path, columns)
            others = [
                column.name
                for column in batch.schema
                if column.name not in (image, *captions) and not holds_bytes(column.type)
            ]
            for place in range(batch.num_rows):
                values = {name: value_of(batch[name][place]) for name in others}
                values = {name: value for name, value in values.items() if is_json(value)}
                said = [batch[name][place] for name in captions]
                yield Row(path, number, batch[image][place], said, values).record(store, limits, admit)
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise torn(error, path, "arrow") from None


def _batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    if file.read(len(_FILE)) == _FILE:
        file.seek(0)
        found = pa.ipc.open_file(file, options=_OPTIONS)
        yield from (found.get_batch(index) for index in range(found.num_record_batches))
        return
    if file.seek(0, os.SEEK_END) >= len(_END):
        file.seek(-len(_END), os.SEEK_END)
    whole = (
        file.read(len(_END)) == _END
    )  # pyarrow takes a stream that is cut between two batches for a whole one
    file.seek(0)
    yield from pa.ipc.open_stream(file, options=_OPTIONS)
    if not whole:
        raise pa.ArrowInvalid("it ends without the mark of its end")
