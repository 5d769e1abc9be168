#!/usr/bin/env bash
# Package: spacy 3.8.18
#
# spacy.lang.LANG.stop_words is a Python file with one set of words and no imports, the usual source of a language's
# function words. Importing it runs the package spacy.lang.LANG first, and the French one compiles a case-insensitive
# regular expression with the classes of all letters, many times over: seconds, where twelve other languages together
# take less than a tenth of one. No model and no text is involved.
#
# Who it hurts: every process that compares texts with the words of several languages (filters of captions by
# language), once per start: short jobs, workers of a pool, command lines.
# Remedy: read the file by its path (runpy.run_path), or the words once, into a file of one's own.
#
# Seen (2 cores of an Intel Xeon):
#   (4.32 s, 0.05 s, 0.00 s)
#   french: more than 10 times as long as 12 other languages together: True
#   its file alone: less than a twentieth of that: True
#   the words are the same: True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check spacy==3.8.18

cat > "$work/words.py" <<'PY'
import importlib
import runpy
import time
from pathlib import Path

import spacy

OTHERS = ("en", "de", "es", "it", "nl", "pt", "sv", "da", "pl", "tr", "cs", "ro")


def seconds(*names: str) -> float:
    began = time.process_time()
    for name in names:
        importlib.import_module(f"spacy.lang.{name}.stop_words")
    return time.process_time() - began


others, french = seconds(*OTHERS), seconds("fr")
began = time.process_time()
file = Path(spacy.__file__).parent / "lang" / "fr" / "stop_words.py"
words = runpy.run_path(str(file))["STOP_WORDS"]
alone = time.process_time() - began
known = importlib.import_module("spacy.lang.fr.stop_words").STOP_WORDS
print(f"({french:.2f} s, {others:.2f} s, {alone:.2f} s)")
print("french: more than 10 times as long as 12 other languages together:", french > 10 * others)
print("its file alone: less than a twentieth of that:", alone < french / 20)
print("the words are the same:", words == known)
PY

seen=$("$work/venv/bin/python" "$work/words.py")
echo "$seen"
[ "$(echo "$seen" | tail -n 3)" = "french: more than 10 times as long as 12 other languages together: True
its file alone: less than a twentieth of that: True
the words are the same: True" ] || { echo "the behaviour has changed" >&2; exit 1; }
