"""Digests name everything that a home holds, and are made of field names and defaults.

Renaming a field, changing a default or adding a field outside `digest_if_set` makes every user mine, pack or train
again.
"""

import dataclasses
from typing import Any, ClassVar

import pytest

from hyco.models.encoders.poincare_resnet import PoincareResNetConfig
from hyco.pipeline.classification.config import fit_recipe
from hyco.pipeline.config import Config, digest
from hyco.pipeline.end_to_end import JourneyConfig, packing_for
from hyco.pipeline.evaluation.evaluate import AssessConfig
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.mining.noun_phrases import NounConfig
from hyco.pipeline.packing.pack import PackConfig
from hyco.pipeline.registry.model_gate import GateConfig
from hyco.pipeline.registry.retraining import RetrainConfig
from hyco.pipeline.sources.records import Limits
from hyco.pipeline.training.recipes import RECIPES

# A model and weights that are not there keep the digests they were given, on every machine.
NOUNS = NounConfig(model="absent_model", rules="grit-1-golden")
MINE = MineConfig(source="source", grounder="transformers:absent", weights="0123456789abcdef", nouns=NOUNS)


def journey(recipe: str) -> JourneyConfig:
    return JourneyConfig(mine=MINE, pack=packing_for(recipe, None), recipe=RECIPES[recipe]())


GOLDEN: dict[str, tuple[Any, str]] = {
    "Limits": (Limits(), "c09ade3eeb161278"),
    "NounConfig": (NOUNS, "e4df53695b9f6270"),
    "MineConfig": (MINE, "a8afe9453f8fcaab"),
    "PackConfig": (PackConfig(), "e1e4670fe4862328"),
    "packing_for demo": (packing_for("demo", None), "8f4ea01b28e940d7"),
    "packing_for photos": (packing_for("photos", None), "c2260aab4fd8a8f0"),
    "Recipe demo": (RECIPES["demo"](), "8ce836d39febaa37"),
    "Recipe demo_hycoclip": (RECIPES["demo_hycoclip"](), "100a92c8947f560b"),
    # As homes of before have it, where the recipe of this name was HyCoCLIP.
    "Recipe demo, before": (RECIPES["demo_hycoclip"]().replace(name="demo"), "55c96a458064f8a9"),
    "Recipe demo_polar_cones": (RECIPES["demo_polar_cones"](), "a8536c9972452dbc"),
    "Recipe photos_polar_cones": (RECIPES["photos_polar_cones"](), "b408f29cb1f8112f"),
    "Recipe demo_poincare_resnet": (RECIPES["demo_poincare_resnet"](), "d15d37961b772313"),
    "Recipe photos": (RECIPES["photos"](), "881ae5b10065d212"),
    "Recipe hycoclip_vit_s": (RECIPES["hycoclip_vit_s"](), "36d4d7bd4e07d500"),
    "Recipe hycoclip_vit_b": (RECIPES["hycoclip_vit_b"](), "ee11a9ff90b8654d"),
    "Recipe hycoclip_from_clip": (RECIPES["hycoclip_from_clip"](), "76c732a050085c93"),
    "Recipe demo_phyclip": (RECIPES["demo_phyclip"](), "ef0c9c5e1261a821"),
    "Recipe demo_meru": (RECIPES["demo_meru"](), "c022a1e42182e5dd"),
    "Recipe demo_clip": (RECIPES["demo_clip"](), "d7082dc394e58721"),
    "Recipe demo_clip_boxes": (RECIPES["demo_clip_boxes"](), "ce82766b17cdcd8c"),
    "Recipe demo_lorentz_boxes": (RECIPES["demo_lorentz_boxes"](), "ba6648ae839b8667"),
    "Recipe photos_phyclip": (RECIPES["photos_phyclip"](), "8b8ea8fd35bfbead"),
    "Recipe photos_meru": (RECIPES["photos_meru"](), "220208b455585383"),
    "Recipe photos_clip": (RECIPES["photos_clip"](), "000c7abfc17dfebd"),
    "Recipe photos_clip_boxes": (RECIPES["photos_clip_boxes"](), "8bbe43e147d47bef"),
    "Recipe photos_lorentz_boxes": (RECIPES["photos_lorentz_boxes"](), "e536f77fde7a64d4"),
    "Recipe phyclip_vit_s": (RECIPES["phyclip_vit_s"](), "f145140c8714e6f6"),
    "Recipe meru_vit_s": (RECIPES["meru_vit_s"](), "3b136fbf0508f0f4"),
    "Recipe clip_vit_s": (RECIPES["clip_vit_s"](), "910023dd9172f03d"),
    "Recipe clip_boxes_vit_s": (RECIPES["clip_boxes_vit_s"](), "dc7516775ad20ab5"),
    "Recipe lorentz_boxes_vit_s": (RECIPES["lorentz_boxes_vit_s"](), "e449acaceae36f03"),
    "Recipe phyclip_vit_b": (RECIPES["phyclip_vit_b"](), "5b9e973d120e4a60"),
    "Recipe meru_vit_b": (RECIPES["meru_vit_b"](), "e653c18b1fcf9e8e"),
    "Recipe clip_vit_b": (RECIPES["clip_vit_b"](), "00b707557f181c17"),
    "Recipe clip_boxes_vit_b": (RECIPES["clip_boxes_vit_b"](), "ba39c8c37953e4c6"),
    "Recipe lorentz_boxes_vit_b": (RECIPES["lorentz_boxes_vit_b"](), "ff0507cc9cb327a0"),
    "Recipe demo_argent": (RECIPES["demo_argent"](), "25512d7d5bf97748"),
    "Recipe argent_vit_s": (RECIPES["argent_vit_s"](), "abae6eda8890ee7c"),
    "Recipe demo_uncha": (RECIPES["demo_uncha"](), "7565c5a46af2a979"),
    "Recipe uncha_vit_s": (RECIPES["uncha_vit_s"](), "2ade0e921221246c"),
    "Recipe demo_angle": (RECIPES["demo_angle"](), "64b62d5ba589ceea"),
    "Recipe angle_vit_s": (RECIPES["angle_vit_s"](), "db47c8625008b6c8"),
    "Recipe demo_siglip": (RECIPES["demo_siglip"](), "f74c3e0de2d0a53f"),
    "Recipe siglip_vit_s": (RECIPES["siglip_vit_s"](), "d5975392927970b4"),
    "AssessConfig": (AssessConfig(), "1613eea63c17b615"),
    "GateConfig": (GateConfig(), "efd20e0bcc458036"),
    "JourneyConfig demo": (journey("demo"), "8dd0129677ba7115"),
    "RetrainConfig demo": (RetrainConfig(journey=journey("demo")), "5f09e59216487004"),
    "FitConfig poincare": (fit_recipe("poincare", "resnet20", "cifar10:data"), "4b7b8b366950324e"),
    "FitConfig poincare_resnet20": (
        fit_recipe("poincare", "poincare_resnet20", "cifar10:data"),
        "badf47878d13add5",
    ),
    "PoincareResNetConfig identity": (PoincareResNetConfig(init="identity"), "dd6d26e0a8dd9d01"),
    "FitConfig separation": (fit_recipe("separation", "resnet20", "cifar10:data"), "a63673ead17eff60"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_digest_is_what_homes_were_made_with(name: str) -> None:
    value, expected = GOLDEN[name]
    assert digest(value) == expected


@dataclasses.dataclass(frozen=True)
class PlainBefore:
    width: int = 1


@dataclasses.dataclass(frozen=True)
class PlainAfter:
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"depth"})
    width: int = 1
    depth: int = 2


class Before(Config):
    plain: PlainBefore = PlainBefore()


class After(Config):
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"names"})
    plain: PlainAfter = PlainAfter()
    names: tuple[str, ...] = ()


def test_a_field_that_was_added_later_counts_only_where_it_is_set() -> None:
    assert digest(After()) == digest(Before())
    assert digest(After(names=("a",))) != digest(Before())
    assert digest(After(plain=PlainAfter(depth=3))) != digest(Before())
