"""How much of a caption is in a language: by the function words of 23 languages, and by script.

A caption has few words, so letters say little; "the", "auf", "sur" say much. spaCy's lists of stop words hold them. A
caption without any, such as a title, is not counted as foreign.
"""

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

LANGUAGES = (
    *("en", "de", "fr", "es", "it", "nl", "pt", "sv", "da", "nb", "fi", "pl", "tr", "cs", "ro", "hu", "id", "vi", "ca"),
    *("hr", "lt", "sk", "sl"),
)  # fmt: skip
"""Languages in Latin script whose function words are compared."""

FOREIGN = 0.5
"""A caption with a smaller fraction is counted as one in another language."""

_WORD = re.compile(r"[^\W\d_]+")
_OTHER_SCRIPT = re.compile(r"[^\u0000-\u024f\u1e00-\u1eff]")  # beyond the blocks of Latin letters


def language_fraction(caption: str, language: str = "en") -> float:
    """Return how far a caption is in a language, in [0, 1]; 1 for a caption without a word.

    The fraction of its words in Latin script, times (n + 1) / (m + 1) where it has n function words of the language and
    more, m, of another one.

    Args:
        caption: the text.
        language: one of LANGUAGES.
    """
    words = [word.lower() for word in _WORD.findall(caption)]
    if not words:
        return 1.0
    latin = [word for word in words if not _OTHER_SCRIPT.search(word)]
    lists = _function_words()
    own = sum(word in lists[language] for word in latin)
    other = max(sum(word in words for word in latin) for name, words in lists.items() if name != language)
    return len(latin) / len(words) * (1.0 if own >= other else (own + 1) / (other + 1))


@functools.lru_cache(maxsize=1)
def _function_words() -> dict[str, frozenset[str]]:
    """The words by language, from the files that hold them: spacy.lang.fr alone takes seconds to import."""
    spec = importlib.util.find_spec("spacy")
    assert spec is not None and spec.submodule_search_locations, "a package"
    folder = Path(spec.submodule_search_locations[0]) / "lang"
    return {name: _words_in(folder / name / "stop_words.py") for name in LANGUAGES}


def _words_in(file: Path) -> frozenset[str]:
    found: dict[str, Any] = {}
    exec(compile(file.read_bytes(), file, "exec"), found)  # a module of spaCy's, which imports nothing
    return frozenset(found["STOP_WORDS"])
