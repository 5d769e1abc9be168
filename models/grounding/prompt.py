"""Phrases to Grounding DINO prompts, keeping which tokens belong to which phrase.

A prompt is [CLS] phrase . phrase . ... [SEP]. Every phrase is tokenised by itself and its ids are laid end
to end, so the tokens of a phrase are known by position: nothing has to be recovered from decoded text, where
phrases that share a word cannot be told apart.
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
    """Say whether a model can know what a token means; None for what is no word (digits, punctuation).

    Not known are the unknown token and single letters outside ASCII: with those a vocabulary of English words spells
    the scripts whose words it does not hold.

    Args:
        token: as the vocabulary has it, "##" before what continues a word.
        unknown: the unknown token, "[UNK]".
    """
    text = token.removeprefix("##")
    if token == unknown or (len(text) == 1 and text.isalpha() and not text.isascii()):
        return False
    return True if any(map(str.isalpha, text)) else None


def build_prompts(phrases: Sequence[Sequence[int]], longest: int) -> list[Prompt]:
    """Lay the phrases of one image into as few prompts of at most `longest` tokens as their order allows.

    Args:
        phrases: token ids of each phrase, without special tokens. Full stops and question marks inside a phrase
            ("St. Bernard") are left out, because the model would take them for the end of the phrase; a phrase
            longer than a whole prompt is cut; a phrase without tokens is not asked about.
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
