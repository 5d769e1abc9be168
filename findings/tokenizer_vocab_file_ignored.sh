#!/usr/bin/env bash
# Package: transformers 5.23.0 (tokenizers alone; torch is not needed)
#
# BertTokenizer(vocab_file=...) and CLIPTokenizer(vocab_file=..., merges_file=...), the way to load a local
# vocabulary up to version 4, still take those arguments in version 5 and ignore them, also where the file does
# not exist. What comes back is a tokenizer of nothing but special tokens, which maps every word to the unknown
# token without a warning. For CLIP that is <|endoftext|>, the very token its text encoder pools at.
#
# Who it hurts: anyone who trains CLIP or Grounding DINO with a vocabulary of their own and loads it by path: all
# captions of equal length are one caption, and training runs on.
# Remedy: pass vocab={token: id} (and merges=[(a, b), ...]), and check len(tokenizer) after loading.
#
# Seen (ids of "a red bus" and "red a a", for CLIP of "a bus"):
#   BERT vocab_file=: 5 entries, ids [[2, 1, 1, 1, 3], [2, 1, 1, 1, 3]]
#   BERT vocab_file=, no such file: 5 entries, ids [[2, 1, 1, 1, 3]]
#   BERT vocab=: 8 entries, ids [[2, 5, 6, 7, 3], [2, 6, 5, 5, 3]]
#   CLIP vocab_file=, merges_file=: 2 entries, ids [[0, 2, 2, 2, 2, 2]]
#   CLIP vocab=, merges=: 8 entries, ids [[0, 2, 7, 1]]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile transformers==5.23.0

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work" 2> "$work/stderr" <<'PY' || { cat "$work/stderr"; exit 1; }
import json
import sys
from pathlib import Path

from transformers import BertTokenizer, CLIPTokenizer

work = Path(sys.argv[1])
words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "bus"])}
(work / "vocab.txt").write_text("\n".join(words))
pieces = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b": 3, "u": 4, "s</w>": 5, "bu": 6, "bus</w>": 7}
(work / "vocab.json").write_text(json.dumps(pieces))
(work / "merges.txt").write_text("#version: 0.2\nb u\nbu s</w>\n")


def show(name, tokenizer, *texts):
    ids = [tokenizer(text).input_ids for text in texts]
    print(f"{name}: {len(tokenizer)} entries, ids {ids}")
    return len(tokenizer), ids


size, (one, other) = show("BERT vocab_file=", BertTokenizer(vocab_file=str(work / "vocab.txt")), "a red bus", "red a a")
assert size == 5 and one == other
size, _ = show("BERT vocab_file=, no such file", BertTokenizer(vocab_file=str(work / "nowhere.txt")), "a red bus")
assert size == 5
size, (one, other) = show("BERT vocab=", BertTokenizer(vocab=words), "a red bus", "red a a")
assert size == 8 and one == [2, 5, 6, 7, 3] and one != other

by_path = CLIPTokenizer(vocab_file=str(work / "vocab.json"), merges_file=str(work / "merges.txt"))
size, (one,) = show("CLIP vocab_file=, merges_file=", by_path, "a bus")
assert size == 2 and one != [0, 2, 7, 1]
size, (one,) = show("CLIP vocab=, merges=", CLIPTokenizer(vocab=pieces, merges=[("b", "u"), ("bu", "s</w>")]), "a bus")
assert size == 8 and one == [0, 2, 7, 1]
PY
grep -iE "vocab_file|merges_file" "$work/stderr" && { echo "now there is a warning"; exit 1; }
echo "no word about vocab_file or merges_file on stderr"
