#!/usr/bin/env bash
# Package: hnswlib 0.8.0 (with numpy 2.4.6)
#
# On the hyperboloid the nearest point is the one with the largest Lorentz product, which is the plain inner
# product of [x, x0] with [y, -y0]. As a brute-force search this ranks exactly; given to hnswlib's approximate
# "ip" index, which takes any vectors, it finds almost none of the neighbours in this cloud, and a wider search does
# not help. The likely cause: the graph links stored points by inner products among themselves, x.y + x0 y0, which are the
# larger the farther out a point lies, while a query, x.y - x0 y0, looks for points close to itself.
#
# Who it hurts: whoever puts hyperbolic CLIP embeddings into a vector index because "it is only an inner product":
# retrieval looks plausible and is nearly random.
# Remedy: the exact inner-product search (BFIndex, a matrix product), or an approximate index over the Poincare
# ball with a wide first stage and a second ranking by the true distance.
#
# Seen (4,000 points, 16 dimensions, 200 of them as queries, recall of the ten nearest):
#   exact  BFIndex ip: 1.000
#   graph  ef 50: 0.042, ef 200: 0.045, ef 1000: 0.045
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check hnswlib==0.8.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import hnswlib
import numpy as np

count, width, nearest = 4000, 16, 10
rng = np.random.default_rng(0)
tangent = rng.standard_normal((count, width)) * rng.gamma(2, 0.7, (count, 1)) / np.sqrt(width)
radius = np.linalg.norm(tangent, axis=1, keepdims=True)
space, time = np.sinh(radius) * tangent / radius, np.cosh(radius)

queries = slice(0, 200)
distance = np.arccosh(np.maximum(time[queries] @ time.T - space[queries] @ space.T, 1))
truth = np.argsort(distance, axis=1)[:, :nearest]
stored = np.concatenate([space, time], 1).astype(np.float32)
asked = np.concatenate([space, -time], 1).astype(np.float32)[queries]


def recall(found):
    return np.mean([len(set(one) & set(other)) / nearest for one, other in zip(found, truth)])


exact = hnswlib.BFIndex("ip", width + 1)
exact.init_index(count)
exact.add_items(stored)
figure = recall(exact.knn_query(asked, k=nearest)[0])
print(f"exact BFIndex ip: {figure:.3f}")
assert figure > 0.99

graph = hnswlib.Index("ip", width + 1)
graph.init_index(count, ef_construction=200, M=16, random_seed=1)
graph.set_num_threads(1)
graph.add_items(stored)
for ef in (50, 200, 1000):
    graph.set_ef(ef)
    figure = recall(graph.knn_query(asked, k=nearest)[0])
    print(f"graph ip, ef {ef}: {figure:.3f}")
    assert figure < 0.5
PY
