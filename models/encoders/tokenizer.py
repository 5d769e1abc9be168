"""CLIP-style byte-pair tokenizer: lower case, byte level, words closed by </w> (Radford et al. 2021).

Loaded from a CLIP tokenizer (a local directory, the merges file that OpenAI's CLIP and OpenCLIP ship, or a hub name
in the hub's cache) or trained on captions.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Regex
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer
from torch import Tensor

CLIP_TOKENS = 49408
CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Texts are cut to this many characters per token of context first, so that no 10 MB caption is tokenized.
CHARACTERS_PER_TOKEN = 64


def _empty(model: BPE) -> FastTokenizer:
    """A tokenizer with CLIP's text rules around `model`."""
    fast = FastTokenizer(model)
    fast.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    fast.pre_tokenizer = PreTokenizers(
        [
            Split(Regex(WORDS), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = ByteLevelDecoder()
    return fast


def _with_specials(model: BPE) -> FastTokenizer:
    fast = _empty(model)
    fast.add_special_tokens([START, END])
    return fast


def _in_clip_order(merges: list[tuple[str, str]]) -> BPE:
    """The model whose ids are in the order of CLIP's vocabulary: bytes, bytes that close a word, merges, specials."""
    alphabet = sorted(ByteLevel.alphabet())
    joined = ("".join(pair) for pair in merges)
    tokens = [*alphabet, *(c + WORD_END for c in alphabet), *joined, START, END]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return BPE(ids, merges, end_of_word_suffix=WORD_END)


def _clip_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of CLIP's file: a title line, then two symbols per line; the file has more of them than CLIP uses."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1:]
        pairs = [(left, right) for left, right in (line.split() for line in lines if line)]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is not CLIP's {CLIP_MERGES}: {error}") from error
    return pairs[: CLIP_TOKENS - 2 * 256 - 2]


def _from_hub(name: str) -> str:
    """Path of tokenizer.json in the hub's local cache, downloaded first where the network is allowed."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(name, "tokenizer.json")
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"tokenizer {name!r} is neither a directory nor in the hub's cache; "
            "give a directory with tokenizer.json, or train one on the captions"
        ) from error


class Tokenizer:
    """Texts -> ids between a start and an end token, padded with end tokens to the longest of the call."""

    def __init__(self, fast: FastTokenizer, context_length: int = 77) -> None:
        start, end = fast.token_to_id(START), fast.token_to_id(END)
        if start is None or end is None:
            raise ValueError(f"the tokenizer lacks {START} or {END}; use a CLIP tokenizer or train one")
        if context_length < 3:
            raise ValueError(f"context_length {context_length} leaves no room for text; use at least 3")
        # The words <|endoftext|> inside a caption are text, not the end of it.
        fast.encode_special_tokens = True
        fast.no_padding()
        fast.no_truncation()
        self.fast, self.context_length = fast, context_length
        self.start, self.end = start, end

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int = 77) -> "Tokenizer":
        """Learn at most `vocab_size` tokens; the same captions in any order give the same tokens.

        Raises:
            ValueError: vocab_size is too small for the 256 bytes (with and without word end) and two special tokens.
        """
        room = vocab_size - 2 * 256 - 2
        if room < 0:
            raise ValueError(
                f"vocab_size {vocab_size} has no room for the bytes and two specials; use at least 514"
            )
        learned = _empty(BPE(end_of_word_suffix=WORD_END))
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            end_of_word_suffix=WORD_END,
            show_progress=False,
        )
        learned.train_from_iterator(sorted(captions), trainer)
        merges = [(left, right) for left, right in json.loads(learned.to_str())["model"]["merges"]][:room]
        # Rebuilt in the order of CLIP's vocabulary: bytes that closed no word in training get a token too.
        return cls(_with_specials(_in_clip_order(merges)), context_length)

    @classmethod
    def load(cls, where: str | Path, context_length: int = 77) -> "Tokenizer":
        """Read the tokenizer in a directory or a merges file, or tokenizer.json in the hub's local cache.

        A directory holds tokenizer.json, vocab.json and merges.txt, or CLIP's gzipped merges.

        Raises:
            FileNotFoundError: none of these exists; the message names the files that were tried.
            ValueError: a broken merges file.
        """
        folder = Path(where)
        if folder.is_file():
            return cls(_with_specials(_in_clip_order(_clip_merges(folder))), context_length)
        if folder.is_dir():
            if (folder / "tokenizer.json").is_file():
                return cls(FastTokenizer.from_file(str(folder / "tokenizer.json")), context_length)
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                model = BPE.from_file(
                    str(folder / "vocab.json"), str(folder / "merges.txt"), end_of_word_suffix=WORD_END
                )
                return cls(_with_specials(model), context_length)
            if (folder / CLIP_MERGES).is_file():
                return cls.load(folder / CLIP_MERGES, context_length)
            raise FileNotFoundError(
                f"{folder} holds neither tokenizer.json nor vocab.json + merges.txt nor {CLIP_MERGES}"
            )
        return cls(FastTokenizer.from_file(_from_hub(str(where))), context_length)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json into an existing directory."""
        self.fast.save(str(Path(folder) / "tokenizer.json"))

    def to_json(self) -> str:
        """The content of the file that `save` writes."""
        return self.fast.to_str()

    def __len__(self) -> int:
        return self.fast.get_vocab_size()

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is cut at context_length."""
        room = self.context_length - 2
        encoded = self.fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(one.ids) > room for one in encoded]

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "B N"]:
        """Texts -> ids [B, longest + 2]; texts beyond context_length are cut, with the end token at the end."""
        room = self.context_length - 2
        cut = [text[: room * CHARACTERS_PER_TOKEN] for text in texts]
        rows = [
            encoding.ids[:room] for encoding in self.fast.encode_batch_fast(cut, add_special_tokens=False)
        ]
        tokens = torch.full((len(rows), 2 + max(map(len, rows), default=0)), self.end, dtype=torch.long)
        tokens[:, 0] = self.start
        for row, ids in zip(tokens, rows, strict=True):
            row[1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.long)
        return tokens
