"""The public API of a trained model: images and texts in, points and scores out; and its directory on disk.

    model = Embedder.load("DIR")
    texts, images = model.encode_text(["a dog", "a cat"]), model.encode_image(["photo.jpg"])
    model.score(images, texts)

Whole images: short side to the model's size, centre crop, with torchvision's arithmetic (imaging.crop.whole). Parts:
letterboxed on white, exactly as they are packed and trained (the published evaluation crops where its training
letterboxes).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hyco.models.clip import DualEncoder
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.models.hyperbolic import lorentz, product
from hyco.models.losses.rows import POLAR_APERTURES
from hyco.pipeline.imaging.crop import letterbox, whole
from hyco.pipeline.imaging.decode import decode, rgb_of
from hyco.pipeline.runtime.device import resolve_device

GENERAL: dict[str, str] = {"text_box": "phrases", "text": "captions", "image_box": "parts"}
"""Names of the nodes that are general, for people."""
Report = Callable[[int], None]
T = TypeVar("T")
Picture = np.ndarray | Image.Image | str | Path
"""RGB bytes [H, W, 3], a PIL image, or the path of an image file."""


def pixels_of(image: Picture) -> UInt8[np.ndarray, "H W 3"]:
    """RGB bytes of an image; FileNotFoundError for an absent file, ValueError for anything that is no image."""
    if isinstance(image, Image.Image):
        return rgb_of(image)
    if isinstance(image, (str, Path)):
        return decode(Path(image).read_bytes())
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"an image is {image.dtype} {image.shape}; give uint8 [H, W, 3] in RGB, a PIL image or a path"
        )
    return image


class Embedder:
    """A trained dual encoder with its tokenizer: images and texts -> points, and the scores of two sets.

    Batched and without gradients. ValueError when an embedding is not finite: the training of such a model has
    diverged.
    """

    def __init__(self, model: DualEncoder, tokenizer: Tokenizer, batch_size: int = 64) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.size = model.config.vision.image_size
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", batch_size: int = 64) -> "Embedder":
        """From a model directory (run/model): model.safetensors, config.json, tokenizer.json."""
        model = DualEncoder.from_pretrained(folder, resolve_device(device))
        return cls(model, Tokenizer.load(folder, model.config.text.context_length), batch_size)

    def save(self, folder: str | Path) -> None:
        """Write the model directory that `load` reads; preprocessor_config.json is for readers other than Hyco."""
        save_model(folder, self.model, self.tokenizer)

    @property
    def curvature(self) -> float | None:
        """c of the hyperboloid (the mean of a product's); None in Euclidean geometry."""
        return None if self.curvatures is None else float(self.curvatures.mean())

    @property
    def polar(self) -> bool:
        """Whether scores compare directions although the space has distances."""
        return self.model.config.polar

    @property
    def curvatures(self) -> Float[Tensor, " k"] | None:
        """c of each factor, one value for a plain hyperboloid; None in Euclidean geometry."""
        if self.model.config.geometry == "euclid":
            return None
        return self.model.curvature.detach().reshape(-1)

    def encode_image(self, images: Sequence[Picture]) -> Float[Tensor, "B D"]:
        """Whole images of any size -> points. ValueError for a single image instead of a list."""
        _refuse_one(images, "pictures")
        return self.encode_pixels(whole(pixels_of(image), self.size) for image in images)

    def encode_part(self, images: Sequence[Picture]) -> Float[Tensor, "B D"]:
        """Cropped parts of any shape -> points. ValueError for a single image instead of a list."""
        _refuse_one(images, "pictures")
        return self.encode_pixels(letterbox(pixels_of(image), self.size) for image in images)

    @torch.inference_mode()
    def encode_pixels(self, images: Iterable[UInt8[np.ndarray, "S S 3"]]) -> Float[Tensor, "B D"]:
        """Images that already have the model's size -> points."""
        out = [torch.zeros(0, self.model.config.dim, device=self.device)]
        for batch in batched(images, self.batch_size):
            pixels = torch.from_numpy(np.stack(batch)).to(self.device)
            out.append(self.model.encode_image(self.model.normalise(pixels)))
        return self._finite(torch.cat(out))

    @torch.inference_mode()
    def project_text(self, texts: Sequence[str], report: Report = lambda n: None) -> Float[Tensor, "K E"]:
        """Projected text features before the lift; texts that begin alike share a batch, which computes this once.

        ValueError for a single text instead of a list.
        """
        _refuse_one(texts, "texts")
        order = sorted(range(len(texts)), key=lambda i: texts[i].casefold())
        out = torch.zeros(len(texts), self.model.projected, device=self.device)
        for batch in batched(order, 4 * self.batch_size):
            tokens = self.tokenizer([texts[i] for i in batch])  # the tower packs them on the CPU
            out[torch.tensor(batch, device=self.device)] = self.model.project_text(tokens)
            report(len(batch))
        return self._finite(out)

    @torch.inference_mode()
    def lift_text(self, features: Float[Tensor, "*K E"]) -> Float[Tensor, "*K D"]:
        """Projected text features -> points."""
        return self.model.lift_text(features)

    def encode_text(self, texts: Sequence[str], report: Report = lambda n: None) -> Float[Tensor, "K D"]:
        """Texts -> points. ValueError for a single text instead of a list."""
        return self.lift_text(self.project_text(texts, report))

    @torch.inference_mode()
    def score(self, a: Float[Tensor, "Q D"], b: Float[Tensor, "K D"]) -> Float[Tensor, "Q K"]:
        """Minus the distance of all pairs (Euclidean and polar models: the cosine); larger is nearer."""
        return self.model.score(a, b)

    def index_vectors(self, points: Float[Tensor, "N D"], query: bool = False) -> Float[Tensor, "N E"]:
        """Vectors whose inner products rank pairs as `score` does, for an exact inner-product index.

        On the hyperboloid the distance grows with x_t y_t - <x, y>, so an item is [x, x_t] and a query [y, -y_t]:
        E = D + 1. Euclidean points are unit vectors already, and of polar ones directions are compared: E = D. Only the
        order is that of `score`.

        Args:
            points: what an encode method returned.
            query: vectors to search with, rather than vectors to store.

        Raises:
            ValueError: a product of several hyperboloids, whose score no inner product ranks.
        """
        curvatures = self.curvatures
        if curvatures is None:
            return points
        if self.polar:
            return F.normalize(points, dim=-1)
        if len(curvatures) > 1:
            raise ValueError(
                f"the model's space is a product of {len(curvatures)} hyperboloids: its score is a mean of distances, "
                "which no inner product ranks; compare the points with score()"
            )
        time = lorentz.time(points, curvatures[0])
        return torch.cat([points, -time if query else time], dim=-1)

    @torch.inference_mode()
    def entailment(
        self, general: Float[Tensor, "Q D"], specific: Float[Tensor, "K D"], k: float | None = None
    ) -> Float[Tensor, "Q K"]:
        """How far each specific point lies inside the entailment cone of each general point, in radians.

        Half-aperture minus exterior angle (Ganea et al. 2018): positive inside the cone, 0 on its edge; the mean over
        the factors of a product.

        Args:
            general: points of what is more general: phrases, parts.
            specific: points of what is more specific: captions, whole images.
            k: the constant K of the half-aperture that the model was trained with (`objective.aperture` of its recipe,
                or the row's own `aperture`); 0.1 without it. A polar model needs one, which depends on what is general:
                POLAR_APERTURES (hyco.models.losses.rows) has those of the polar recipes.

        Raises:
            ValueError: a Euclidean model, which has no cones, or a polar one without k.
        """
        curvatures = self.curvatures
        if curvatures is None:
            raise ValueError(
                "the model's space is Euclidean and has no entailment cones: compare with score()"
            )
        if k is None and self.polar:
            widths = ", ".join(f"k={width:g} for {GENERAL[node]}" for node, width in POLAR_APERTURES.items())
            raise ValueError(
                f"the cones of a polar model differ by what is general: give {widths}. These are those of `demo` and "
                "the polar_cones recipes; another recipe has them as aperture in objective.entailment "
                "(config.json of the run, recipe.json of an export)"
            )
        k = 0.1 if k is None else k
        space = (curvatures, len(curvatures))
        inside = [
            product.half_aperture(row, *space, k) - product.exterior_angle(row, specific, *space)
            for row in general[:, None]
        ]
        return torch.stack(inside).mean(-1) if inside else general.new_zeros(0, len(specific))

    def _finite(self, points: Tensor) -> Tensor:
        if not bool(torch.isfinite(points).all()):
            raise ValueError(
                "the model gives embeddings that are not finite: its training has diverged; "
                "check the loss in log.jsonl and train again with a lower learning rate"
            )
        return points


def _refuse_one(items: Sequence[Picture], what: str) -> None:
    """Refuse a single item; a str would pass as a sequence of its letters."""
    if isinstance(items, (str, Path, Image.Image)):
        raise ValueError(f"{items!r} is not a list of {what}: give [{items!r}]")


def save_model(folder: str | Path, model: DualEncoder, tokenizer: Tokenizer) -> None:
    """Write a model directory: model.safetensors, config.json, tokenizer.json, preprocessor_config.json."""
    model.save_pretrained(folder)
    (Path(folder) / "model.safetensors").chmod(
        0o644
    )  # safetensors creates files that only their owner can read
    tokenizer.save(folder)
    size, config = model.config.vision.image_size, model.config
    # `whole` and DualEncoder.normalise in the terms of transformers' image processors. Where the long side
    # exceeds the size by an odd number of pixels, transformers cuts at the floor of the half and torchvision rounds.
    steps = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": int(Image.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.pixel_mean),
        "image_std": list(config.pixel_std),
    }
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(steps, indent=2) + "\n")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
