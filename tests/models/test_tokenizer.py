"""The byte-pair tokenizer: trained, saved, loaded from CLIP's files; nothing is lost or ends a text early."""

import gzip
import json
import random

import pytest
import torch

from hyco.models.encoders.tokenizer import Tokenizer

CAPTIONS = [
    f"two small red {thing}s below a {thing} house" for thing in ("duck", "car", "banana", "kite")
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocab_size=600, context_length=8)


def words(tokenizer: Tokenizer, text: str) -> str:
    return "".join(tokenizer.fast.encode(text, add_special_tokens=False).tokens)


def test_order_of_captions_does_not_matter(tokenizer):
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert Tokenizer.train(shuffled, vocab_size=600, context_length=8).to_json() == tokenizer.to_json()


def test_frequent_words_become_one_token_and_the_vocabulary_stays_in_bounds(tokenizer):
    assert tokenizer(["Two  RED"]).tolist() == tokenizer(["two red"]).tolist()
    assert tokenizer(["two red"]).shape == (1, 4)
    assert len(tokenizer) <= 600
    assert len(Tokenizer.train(CAPTIONS, vocab_size=520)) == 520


def test_every_byte_has_a_token_alone_and_at_the_end_of_a_word(tokenizer):
    """Characters never seen in training are spelled out, not dropped."""
    assert words(tokenizer, "zq! ü 數") != words(tokenizer, "zq ü 數") != words(tokenizer, "zq 數")
    assert words(tokenizer, "zebra, q!") == "zebra</w>,</w>q</w>!</w>"


def test_special_words_inside_a_caption_are_text(tokenizer):
    tokens = tokenizer(["a <|endoftext|> b"])[0].tolist()
    assert tokens.count(tokenizer.end) == 1 and tokens[-1] == tokenizer.end


def test_padding_truncation_and_empty_texts(tokenizer):
    tokens = tokenizer(["", "two cars", "red " * 50])
    assert tokens.shape == (3, 8) and tokens.dtype == torch.long
    assert tokens[:, 0].tolist() == [tokenizer.start] * 3
    assert tokens[0, 1:].tolist() == [tokenizer.end] * 7
    assert tokens[2, -1] == tokenizer.end and tokenizer.end not in tokens[2, :-1]
    assert tokenizer([]).shape == (0, 2)


def test_a_ten_megabyte_caption_is_cut_before_it_is_tokenized(tokenizer):
    long = "two red " * 1_250_000
    assert tokenizer([long]).tolist() == tokenizer([long[:100]]).tolist()


def test_saved_and_loaded_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path, context_length=8)
    texts = [*CAPTIONS[:4], "zebra, q! <|endoftext|>"]
    assert torch.equal(again(texts), tokenizer(texts))


def test_loads_clip_vocab_and_merges(tokenizer, tmp_path):
    """The older layout of CLIP tokenizers: vocab.json and merges.txt."""
    model = json.loads(tokenizer.to_json())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(m) for m in model["merges"])])
    )
    again = Tokenizer.load(tmp_path, context_length=8)
    assert torch.equal(again(CAPTIONS[:4]), tokenizer(CAPTIONS[:4]))


def test_errors_name_the_value_and_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size 100 .* at least 514"):
        Tokenizer.train(CAPTIONS, vocab_size=100)
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' is neither a directory nor"):
        Tokenizer.load("nobody/nothing")
    with pytest.raises(ValueError, match="context_length 2"):
        Tokenizer.train(CAPTIONS, vocab_size=600, context_length=2)


def test_clip_s_own_file_of_merges(tmp_path):
    """A title, then merges; ids: 256 bytes, the same closing a word, the merges in order, the two specials."""
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(b'"bpe_simple_vocab_16e6.txt#version: 0.2\nr e\nre d</w>\na t</w>\n'))
    for where in (path, tmp_path):
        tokenizer = Tokenizer.load(where)
        assert (len(tokenizer), tokenizer.start, tokenizer.end) == (517, 515, 516)
        # "a" is 64 among the printable bytes; closing a word, 256 further on.
        assert tokenizer(["Red  a at"]).tolist() == [[515, 513, 256 + 64, 514, 516]]
    path.write_bytes(gzip.compress(b"title\none two three\n"))
    with pytest.raises(ValueError, match="is not CLIP's bpe_simple_vocab"):
        Tokenizer.load(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="is not CLIP's bpe_simple_vocab"):
        Tokenizer.load(path)
