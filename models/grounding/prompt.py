"""Phrases to Grounding DINO prompts, with the token positions of each phrase.

A prompt is [CLS] phrase . phrase . ... [SEP]. Every phrase is tokenised separately and its ids are appended, so the
tokens of a phrase are known by position. Recovering them from decoded text cannot separate phrases that have a word
in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass

CLS, SEP, STOP, QUESTION = 101, 102, 1012, 1029
"""Ids that Grounding DINO's text masks know by heart: [CLS], [SEP], "." and "?" (BERT's)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text input.

    Attributes:
        ids: token ids, special tokens included.
        spans: (phrase index, first token, token after the last) of each phrase in it.
    """

    ids: list[int]
    spans: list[tuple[int, int, int]]


def known_token(token: str, unknown: str) -> bool | None:
    """Whether a model can know the meaning of a token; None for a token that is no word (digits, punctuation).

    Unknown are the unknown token and single letters outside ASCII: a vocabulary of English words spells words of other
    scripts by these.

    Args:
        token: as in the vocabulary, with "##" before a continuation of a word.
        unknown: the unknown token, "[UNK]".
    """
    text = token.removeprefix("##")
    if token == unknown or (len(text) == 1 and text.isalpha() and not text.isascii()):
        return False
    return True if any(map(str.isalpha, text)) else None


def build_prompts(phrases: Sequence[Sequence[int]], longest: int) -> list[Prompt]:
    """Pack the phrases of one image, in order, into as few prompts of at most `longest` tokens as possible.

    Args:
        phrases: token ids of each phrase, without special tokens. Full stops and question marks inside a phrase
            ("St. Bernard") are left out, because the model would read them as the end of the phrase; a phrase
            longer than a whole prompt is cut; a phrase without tokens is left out.
        longest: the model's max_text_len, at least 4.
    """
    prompts: list[Prompt] = []
    ids: list[int] = [CLS]
    spans: list[tuple[int, int, int]] = []
    for index, raw in enumerate(phrases):
        tokens = [token for token in raw if token not in (STOP, QUESTION)][: longest - 3]
        if not tokens:
            continue
        if len(ids) + len(tokens) + 2 > longest:
            prompts.append(Prompt([*ids, SEP], spans))
            ids, spans = [CLS], []
        spans.append((index, len(ids), len(ids) + len(tokens)))
        ids += [*tokens, STOP]
    if spans:
        prompts.append(Prompt([*ids, SEP], spans))
    return prompts
