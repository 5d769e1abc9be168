"""The verb of the classifiers: fit."""

import json
from typing import Annotated

import typer

from hyco.pipeline.cli.app import Assignments, HomeUrl, app, show


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="poincare_resnet20, resnet20 (Euclidean), or 32, 44, 56.")],
    data: Annotated[
        str, typer.Option(help="Labelled set NAME:DIR: cifar10, cifar100, tiny_imagenet, folder ...")
    ],
    head: Annotated[
        str,
        typer.Option(help="softmax, linear, separation, cosine, ntce, nonl or balanced (with a hierarchy)."),
    ] = "softmax",
    hierarchy: Annotated[
        str | None, typer.Option(help="taxonomy.json whose leaves are the classes, for the head balanced.")
    ] = None,
    imbalance: Annotated[
        float, typer.Option(help="Imbalance factor of a long-tailed training set; 1 keeps every image.")
    ] = 1.0,
    epochs: Annotated[int | None, typer.Option(help="Epochs; the recipe's by default.", min=1)] = None,
    recipe: Annotated[str, typer.Option(help="poincare or separation: the published settings.")] = "poincare",
    ood: Annotated[
        list[str] | None,
        typer.Option(
            help="Out-of-distribution images: NAME:DIR, captioned:DIR, near/NAME:DIR, far/NAME:DIR or openood:DIR; may "
            "be repeated."
        ),
    ] = None,
    ood_scores: Annotated[
        str,
        typer.Option(help="Scores, separated by commas: energy, max_softmax, knn, mahalanobis, distance."),
    ] = "energy,max_softmax",
    ood_limit: Annotated[
        int, typer.Option(help="Maximum number of images per out-of-distribution set.", min=1)
    ] = 10_000,
    neighbours: Annotated[int, typer.Option(help="The k of the score knn.", min=1)] = 50,
    attacked: Annotated[int, typer.Option(help="Test images to attack by FGSM and PGD.", min=0)] = 0,
    home: HomeUrl = "var",
    run: Annotated[str | None, typer.Option(help="Name of the run in HOME/fits.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    assignments: Assignments = None,
) -> None:
    """Train a classifier on labelled images and evaluate it.

    An interrupted training is resumed. The evaluation uses the test split.

    --set takes fields of FitConfig: widths=[16,32,64], known=6, steps=390, schedule=cosine, radius=learned ...
    """
    from hyco.pipeline.classification.config import fit_recipe
    from hyco.pipeline.classification.evaluate import EvaluateConfig, check, evaluate
    from hyco.pipeline.classification.train import fit as train
    from hyco.pipeline.classification.train import run_name
    from hyco.pipeline.config import override
    from hyco.storage.home import Home

    given = [f"head={head}", f"imbalance={imbalance}", *([f"epochs={epochs}"] if epochs else [])]
    given += [f"hierarchy={json.dumps(hierarchy)}"] if hierarchy else []
    asked = EvaluateConfig.model_validate(
        {
            "data": data,
            "ood": ood or (),
            "ood_limit": ood_limit,
            "scores": [name.strip() for name in ood_scores.split(",")],
            "neighbours": neighbours,
            "attacked": attacked,
        }
    )
    config = override(fit_recipe(recipe, model, data), [*given, *(assignments or [])])
    check(asked, config)  # before the training, not after it
    fits = Home(home).fits
    folder = fits / (run or run_name(config, fits))
    trained = train(folder, config, device=device)
    measured = evaluate(folder, asked, device)
    sections = {key: value for key, value in measured.items() if key not in ("config", "run")}
    show({"run_dir": str(folder), **trained, **sections})
