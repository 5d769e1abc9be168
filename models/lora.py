"""Training part of a dual encoder: frozen towers, and low-rank adapters in their last blocks (Hu et al. 2022, LoRA).

An adapted layer computes W x + (alpha / rank) B A x with B = 0 at the start, so that the outputs do not change before
the first step; `merge_` adds the product to W, after which the model is a plain one. The adapters are peft's.
"""

from importlib.util import find_spec

from torch import nn

from hyco.models.clip import DualEncoder

LAYERS = ("qkv", "attention_out", "mlp_in", "mlp_out")


def freeze_(model: DualEncoder) -> None:
    """Freeze the towers; projections and the scalars (temperature, alphas, curvature) remain trainable."""
    for tower in (model.visual, model.textual):
        tower.requires_grad_(False)


def require_peft() -> None:
    """Raise ValueError where peft, an optional extra, is not installed."""
    if find_spec("peft") is None:
        raise ValueError("LoRA needs peft: pip install -e '.[lora]' -c constraints.txt")


def adapt_(model: DualEncoder, rank: int, alpha: int, last_blocks: int) -> None:
    """Freeze the towers and put adapters into every linear layer of the last blocks of each.

    A tower with fewer blocks gets adapters in all of them.

    Raises:
        ValueError: peft is not installed, or a tower is not made of transformer blocks.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    names = []
    for tower, part in (("visual", model.visual), ("textual", model.textual)):
        blocks = getattr(part, "blocks", None)
        if not isinstance(blocks, nn.ModuleList) or not all(hasattr(b, LAYERS[0]) for b in blocks):
            raise ValueError(
                f"the {tower} tower ({type(part).__name__}) has no transformer blocks for adapters: "
                "learn 'all' or 'heads'"
            )
        first = max(0, len(blocks) - last_blocks)
        names += [f"{tower}.blocks.{i}.{layer}" for i in range(first, len(blocks)) for layer in LAYERS]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), model)
    # peft has frozen everything else.
    for name, value in model.named_parameters():
        if not name.startswith(("visual.", "textual.")):
            value.requires_grad_(True)


def merge_(model: DualEncoder) -> None:
    """Merge every adapter into its layer, which takes the adapter's place; without adapters nothing happens."""
    if any(".lora_A." in name for name in model.state_dict()):  # peft takes seconds to import
        from peft.tuners.lora import LoraLayer

        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LoraLayer):
                    child.merge(safe_merge=True)
                    setattr(parent, name, child.get_base_layer())
    model.requires_grad_(True)
