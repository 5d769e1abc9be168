"""What happens: verbs as plain functions, without an orchestrator.

By stage, in the order of the journey:

    sources    source, readers, rows, images          where captioned images come from, checked row by row
    mine       nouns, ground, mine, mine_rows         captions -> phrases -> boxes; quality: against labels
    pack       choose, crop, pack, quality_gate       boxes -> parts -> shards -> a version that is fit
    train      recipes, start, views, batches,        what is trained, from what, on which views of which samples;
               train, runs, launch, steplog           the loop, its directory, its processes, its log
    assess     assess/, embedder, labelled/           numbers, report; models as functions; published data sets
    promote    gate, registry, watch, presets         challenger and champion; when new data is enough
    give       export, card, onnx_towers              models in and out
    tell       stories, status, serve/                what the Prefect UI, the terminal and the pages show

Beside them: classify/ (image classifiers), ablation and comparison (the family side by side), engine/ (worker
processes), commands/ (the verbs of `hyco`), config, progress, and journey (all of it in a row).
"""
