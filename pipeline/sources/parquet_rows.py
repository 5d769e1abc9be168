"""Rows of a parquet file, value by value: a value that Python cannot hold costs its row or column, not the file.

A file may hold text that is not UTF-8, a time in nanoseconds, or a damaged page in a column that is not needed. Only
the image and the captions are required. Arrow threads never use the Python file: a thread that still runs at exit
aborts the interpreter.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.records import Limits, SourceRecord
from hyco.pipeline.sources.table_rows import Row, columns_of, holds_bytes, is_json, texts_of, torn, value_of
from hyco.pipeline.sources.tar_rows import Admit
from hyco.storage.store import Store

_BATCH = 32


def parquet_rows(
    file: BinaryIO, path: str, store: Store, limits: Limits, admit: Admit, columns: Columns = USUAL
) -> Iterator[SourceRecord]:
    """Rows of a parquet file; its columns are those that table_rows.columns_of finds.

    Other columns become meta as far as JSON can hold them. ValueError for a file without the columns, naming those it
    has, and for one that is not a whole parquet file.
    """
    try:
        table = pq.ParquetFile(file, pre_buffer=False)
        image, captions = columns_of(table.schema_arrow, path, columns)
        others = {
            column.name: _optional(table, column.name)
            for column in table.schema_arrow
            if column.name not in (image, *captions) and not holds_bytes(column.type)
        }
        needed = zip(_scalars(table, image), *(_scalars(table, name) for name in captions), strict=True)
        for number, (data, *said) in enumerate(needed):
            values = {name: next(column, None) for name, column in others.items()}
            yield Row(path, number, data, said, values).record(store, limits, admit)
    except (pa.ArrowException, OSError) as error:
        raise torn(error, path, "parquet") from None


def caption_texts(file: BinaryIO, path: str, columns: Columns = USUAL) -> Iterator[str]:
    """Yield every caption of a parquet file without touching its images; errors as `parquet_rows`."""
    table = pq.ParquetFile(file, pre_buffer=False)
    for name in columns_of(table.schema_arrow, path, columns)[1]:
        for scalar in _scalars(table, name):
            yield from (text for text in texts_of(scalar) if isinstance(text, str))


def _scalars(table: pq.ParquetFile, name: str) -> Iterator[pa.Scalar]:
    for batch in table.iter_batches(batch_size=_BATCH, columns=[name], use_threads=False):
        yield from batch.column(batch.schema.names.index(name))


def _optional(table: pq.ParquetFile, name: str) -> Iterator[Any]:
    """Yield the values of a column: None for one that JSON cannot hold; ends where the file cannot be read."""
    try:
        for scalar in _scalars(table, name):
            value = value_of(scalar)
            yield value if is_json(value) else None
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError):
        return
    except OSError as error:
        if error.errno or type(error) is not OSError:
            raise
