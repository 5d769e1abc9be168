"""The checker that annotated functions run under in tests (pyproject's --jaxtyping-packages).

beartype, which takes an int where a float is stated, as PEP 484 and pyright do. A module of its own because
jaxtyping's plugin (0.3.11) splits its option at every comma before a bracket, so that it cannot be spelled there.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
