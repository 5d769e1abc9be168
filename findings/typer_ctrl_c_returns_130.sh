#!/usr/bin/env bash
# Package: typer 0.29.2 (with click 8.5.1)
#
# app(standalone_mode=False) is the documented way to call a command line from Python and to get its errors as
# exceptions. click raises Abort there when Ctrl-C (SIGINT) stops the command. typer returns the number 130 as if it
# were the command's own return value: nothing is raised and nothing is printed.
#
# Who it hurts: a program that wraps a typer app (its own entry point, a scheduler, a notebook) goes on after Ctrl-C
# with the next step, and its process ends with exit code 0 although the work was stopped in the middle.
# Remedy: compare the return value with 130, or let the command itself turn KeyboardInterrupt into an exception.
#
# Seen:
#   click raises Abort
#   typer returns 130
#   exit code of the wrapping program: 0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check typer==0.29.2 click==8.5.1

cat > "$work/wrapper.py" <<'PY'
import signal

import click
import typer


def stopped() -> None:
    """Work that the user stops with Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


app = typer.Typer()
app.command()(stopped)

try:
    click.command()(stopped)(standalone_mode=False, args=[])
except click.Abort:
    print("click raises Abort")
print("typer returns", app(standalone_mode=False, args=[]))
PY

code=0
seen=$("$work/venv/bin/python" "$work/wrapper.py") || code=$?
seen="$seen
exit code of the wrapping program: $code"
echo "$seen"
[ "$seen" = "click raises Abort
typer returns 130
exit code of the wrapping program: 0" ] || { echo "the behaviour has changed" >&2; exit 1; }
