"""Derive the tree of a set of ImageNet classes from WordNet 3.0 and write it as a taxonomy.json.

    python -m hyco.pipeline.datasets.wordnet_tree --wordnet data.noun.xz --out tree.json

Without --wnids: the 1,000 classes of ILSVRC 2012, for which WordNet's tree has 1,375 nodes. --edges takes the tree of
an edge list instead, such as the published one, with WordNet's names.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyco.pipeline.datasets.edge_list import tree_of_edges
from hyco.pipeline.datasets.wordnet import IMAGENET, WordNet, common_names, read_wnids


def tree_of(wordnet: WordNet, wnids: Sequence[str], edges: str | None = None) -> dict[str, Any]:
    """The content of a taxonomy.json (pipeline/evaluation/metrics/taxonomy.py)."""
    if edges is None:
        nodes = wordnet.tree(wnids)
    else:
        listed = tree_of_edges(Path(edges), wnids)
        nodes = [(node, parent, common_names(wordnet.synset(node).words)) for node, parent, _ in listed]
    told = dict(zip(dict.fromkeys(wnids), wordnet.names(list(dict.fromkeys(wnids))), strict=True))
    return {
        "nodes": [
            {"id": node, "parent": parent, "names": list(told.get(node, names))}
            for node, parent, names in nodes
        ]
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m hyco.pipeline.datasets.wordnet_tree", description=__doc__
    )
    parser.add_argument("--wordnet", required=True, help="data.noun of WordNet 3.0, plain, .xz or .gz")
    parser.add_argument("--wnids", default=str(IMAGENET), help="file of wnids; ImageNet's 1,000 by default")
    parser.add_argument("--edges", help="edge list (lines PARENT CHILD) to take the tree from")
    parser.add_argument("--out", required=True, help="path of the taxonomy.json")
    asked = parser.parse_args(arguments)
    tree = tree_of(WordNet(asked.wordnet), read_wnids(asked.wnids), asked.edges)
    Path(asked.out).write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    inner = {node["parent"] for node in tree["nodes"]} - {None}
    total = len(tree["nodes"])
    print(f"{asked.out}: {total:,} nodes, {total - len(inner):,} leaves, {len(inner):,} inner nodes")


if __name__ == "__main__":
    main()
