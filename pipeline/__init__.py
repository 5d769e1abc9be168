"""The pipeline's stages as plain functions, without an orchestrator.

In order of execution:

    sources         captioned images, checked record by record
    mining          captions -> noun phrases -> boxes
    packing         boxes -> parts -> shards -> a dataset version that passes the gate
    training        recipes, data loading, the loop, its directory and its processes
    evaluation      metrics, published benchmarks, the report
    registry        challenger and champion, retraining on new data
    export          models in and out

In addition: datasets (labelled sets), classification (image classifiers), experiments (ablation and studies), integrity
(verify and repair), imaging (decode, crop), runtime (executors, progress, devices), cli (the verbs of `hyco`),
ui (pages);
embedder (the public API of a trained model), config, presets, and end_to_end (all stages in sequence).
"""

if not __name__.startswith("hyco."):
    from hyco.old_names import answer

    answer(__name__)
