#!/usr/bin/env bash
# Package: pyarrow 26.0.1, without pandas
#
# Whether a column of nanosecond timestamps can be turned into Python objects depends on its values. to_pylist()
# gives datetimes as long as all of them are whole microseconds; one value that is not fails the whole column,
# and with it Table.to_pylist() and to_pydict(), so that no row can be read. With pandas installed the same call
# gives pandas Timestamps for all, so it passes on one machine and fails on another.
#
# Who it hurts: readers of parquet tables of captions or labels that some other tool stamped in nanoseconds
# (pandas' and DuckDB's default unit): a table works in every test and fails on one row in production.
# Remedy: cast the column to pa.timestamp("us") with safe=False before to_pylist(), or leave the column out.
#
# Seen:
#   whole microseconds: [datetime.datetime(2026, 1, 1, 0, 0), datetime.datetime(2026, 1, 1, 0, 0, 1)]
#   one nanosecond more in one row: ValueError, also for Table.to_pylist()
#   cast to microseconds: [datetime.datetime(2026, 1, 1, 0, 0), datetime.datetime(2026, 1, 1, 0, 0, 1)]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1

"$work/venv/bin/python" - <<'PY'
import pyarrow as pa

START, SECOND = 1_767_225_600 * 10**9, 10**9
ns = pa.timestamp("ns")
even = pa.array([START, START + SECOND], ns)
odd = pa.array([START, START + SECOND + 1], ns)
table = pa.table({"caption": ["a red bus", "a dog"], "taken": odd})

print("whole microseconds:", even.to_pylist())
assert len(even.to_pylist()) == 2
for call in (odd.to_pylist, table.to_pylist, table.to_pydict):
    try:
        call()
    except ValueError as error:
        print(f"one nanosecond more in one row: ValueError: {str(error)[:60]}...")
    else:
        raise AssertionError("converted")
cast = odd.cast(pa.timestamp("us"), safe=False)
print("cast to microseconds:", cast.to_pylist())
assert cast.to_pylist() == even.to_pylist()
PY
