"""Verbs that use a model on images: embed and search."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyco.pipeline.cli.app import HomeUrl, app, plain_home, show

if TYPE_CHECKING:
    from hyco.storage.home import Home

Model = Annotated[
    str | None,
    typer.Option(
        help="A run (directory, or name in HOME/runs) or a model directory; by default the champion."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
def embed(
    source: Annotated[str, typer.Argument(help="Captioned images, as for `hyco mine --source`.")],
    out: Annotated[str, typer.Option(help="Parquet file to write; must not exist.")],
    model: Model = None,
    home: HomeUrl = "var",
    device: Device = "auto",
) -> None:
    """Write the embeddings of a source's images as parquet.

    After an interruption the same command continues.
    """
    from hyco.pipeline.embeddings import embed_source
    from hyco.storage.home import Home

    show(embed_source(source, _model_dir(model, Home(home)), out, device))


@app.command()
def search(
    where: Annotated[
        str, typer.Argument(metavar="HOME|FILE", help="A home, or a parquet file that `hyco embed` wrote.")
    ],
    text: Annotated[str, typer.Argument(help="What to look for.")],
    model: Model = None,
    k: Annotated[int, typer.Option("-k", help="Number of images to show.", min=1)] = 10,
    device: Device = "auto",
) -> None:
    """List the images nearest to a text.

    They come from an embeddings file, or from a home's latest dataset version.

    The images of a version are embedded once and stored in HOME/embeddings.
    """
    from hyco.pipeline.embeddings import Embeddings, embed_version
    from hyco.storage import layout
    from hyco.storage.files import sha256_of
    from hyco.storage.folder import Folder
    from hyco.storage.home import Home

    path, folder = Path(where), model
    if not path.is_file():
        home = Home(plain_home(where)).require()
        folder = str(_model_dir(model, home))
        version = home.versions.load("latest").name
        weights = sha256_of(Path(folder) / "model.safetensors")
        stored = Folder(f"{home.store.url}/{layout.EMBEDDINGS}")
        name = f"{version}-{weights[:12]}.parquet"
        path = stored.fetch(name) / name
        if not stored.exists(name):
            embed_version(home, version, folder, path, device)
            stored.send(name)
    found = Embeddings(path)
    embedder = found.load_model(folder, device)
    hits = found.search(embedder, [text], k)[0]
    show(
        {
            "text": text,
            "model": folder or found.about["model"],
            "hits": [dataclasses.asdict(hit) for hit in hits],
        }
    )


def _model_dir(model: str | None, home: "Home") -> Path:
    from hyco.pipeline.export.export import find_model

    if model is not None:
        return find_model(model, home)[1]
    champion = home.require().registry.champion()
    if champion is None:
        raise ValueError(f"{home} has no champion: give --model with a run or a model directory")
    return home.registry.path(champion.model)
