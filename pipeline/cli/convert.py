"""Verbs of checkpoints: import and export."""

from typing import Annotated, Literal

import typer

from hyco.pipeline.cli.app import HomeUrl, app, show

Out = Annotated[str, typer.Option(help="Directory to write; must be new or empty.")]


@app.command("import")
def import_(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A .pth of MERU, HyCoCLIP, UNCHA or PHyCLIP, an OpenCLIP directory or state dict, or a directory of "
            "Hugging Face's CLIP or of Hyper3-CLIP."
        ),
    ],
    out: Out,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="CLIP's bpe_simple_vocab_16e6.txt.gz or a directory with its tokenizer, if the checkpoint has none."
        ),
    ] = None,
    vision_heads: Annotated[
        int | None,
        typer.Option(help="Attention heads of a published image tower that is not ViT-S, B or L.", min=1),
    ] = None,
    text_heads: Annotated[
        int | None,
        typer.Option(
            help="Attention heads of a published text tower without one head per 64 dimensions.", min=1
        ),
    ] = None,
    activation: Annotated[
        Literal["gelu", "quick_gelu"] | None,
        typer.Option(help="GELU of an OpenCLIP state dict without open_clip_config.json."),
    ] = None,
) -> None:
    """Convert a foreign checkpoint into a model directory of Hyco."""
    from hyco.pipeline.export.export import import_checkpoint

    show(
        import_checkpoint(
            checkpoint,
            out,
            tokenizer=tokenizer,
            vision_heads=vision_heads,
            text_heads=text_heads,
            activation=activation,
        )
    )


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(help="Directory of a finished run, its name in HOME/runs, or a model directory.")
    ],
    out: Out,
    home: HomeUrl = "var",
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx",
            help="Also write both towers as ONNX and compare them with torch; exit code 1 if they differ.",
        ),
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Also write a state dict in the layout of MERU and HyCoCLIP.")
    ] = False,
    licence: Annotated[str | None, typer.Option(help="SPDX name of the licence, for the card.")] = None,
) -> None:
    """Write a trained model as a directory to publish.

    The directory holds weights, tokenizer, preprocessor and model card.
    """
    from hyco.pipeline.export import export as exporting

    show(exporting.export(run, out, home=home, onnx=onnx, published=published, licence=licence))
