"""Grounding DINO as the groundingdino-py package runs it: the original authors' code, an optional extra.

The directory is the same as for the transformers backend (config.json, tokenizer.json, preprocessor_config.json and
model.safetensors, for example of IDEA-Research/grounding-dino-tiny); the weights are renamed for the package. A file
of the original release (*.pth, read with weights_only) may replace the safetensors. Only Swin backbones with d_model
256 exist in the package.

Problems of groundingdino-py 0.4.0 with transformers 5 that are worked around here:

- its wrapper around BERT uses removed methods, so BERT is called in the way of transformers
- it asks the hub for a tokenizer and for BERT's weights, which come from the directory here
- it repeats the text masks of a batch in the wrong order for torch's attention, so that in a batch one prompt was
  masked by another's phrases; batch 1 and batch N agree here
"""

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hyco.models.grounding.detector import digest_of
from hyco.models.grounding.dino import DinoDetector
from hyco.models.grounding.groundingdino_weights import carry_over
from hyco.models.grounding.model_folder import read_config, settings_of
from hyco.models.grounding.torchvision_import import import_torchvision
from hyco.models.grounding.transformers_dino import (
    check_tokenizer,
    encoder,
    known_tokens,
    preprocessing_of,
)

_PACKAGE = "groundingdino.models.GroundingDINO"


def files_of(folder: Path) -> list[Path]:
    """Return the files that determine the model's output; errors as in model_folder.files_of."""
    settings = settings_of(folder, "transformers")
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pth"))
    if not weights:
        raise ValueError(f"{folder} holds no *.safetensors and no *.pth: put the weights there")
    return settings + weights


def digest(folder: Path) -> str:
    """Return the digest of the model in `folder`; it differs from that of the same files in another backend."""
    return digest_of(files_of(folder), salt="groundingdino-py")


class GroundingDinoPy(DinoDetector):
    """A model directory run by groundingdino-py; see TransformersDino for the arguments.

    Raises:
        ValueError: the package is not installed, or has no such architecture.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        per_phrase: int = 16,
        batch_size: int = 16,
        align: int = 32,
    ) -> None:
        name = digest(folder)
        import_package()  # first: a torchvision that cannot be imported keeps transformers from importing too
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        check_tokenizer(folder, tokenizer)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.network = build(config)
        _load(self.network, folder)
        self.network.eval().requires_grad_(False).to(device)
        super().__init__(
            digest=name,
            encode=encoder(tokenizer),
            known=known_tokens(tokenizer),
            preprocessing=preprocessing_of(folder, align),
            longest_prompt=min(int(config.max_text_len), self.network.max_text_len),
            device=device,
            autocast=autocast,
            per_phrase=per_phrase,
            batch_size=batch_size,
        )

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See DinoDetector."""
        output = self.network(pixels, captions=_Tokens(ids, mask))
        return output["pred_logits"], output["pred_boxes"]


class _Tokens(dict[str, Tensor]):
    """Token ids in the shape of a tokenizer's answer."""

    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        super().__init__(input_ids=ids, attention_mask=mask.long(), token_type_ids=torch.zeros_like(ids))

    def to(self, device: torch.device) -> "_Tokens":
        return self

    @property
    def attention_mask(self) -> Tensor:
        return self["attention_mask"]


class _ReadyTokens:
    """Replaces the package's tokenizer: our prompts are token ids already."""

    def __call__(self, tokens: _Tokens, **options: Any) -> _Tokens:
        return tokens

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [{"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}[token] for token in tokens]


class _Bert(nn.Module):
    """BERT with a mask for each pair of tokens, in place of the package's BertModelWarper."""

    def __init__(self, bert_model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = bert_model, bert_model.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, position_ids: Tensor
    ) -> dict[str, Tensor]:
        """attention_mask: bool [B, N, N]."""
        output = self.model(input_ids, attention_mask[:, None], token_type_ids, position_ids)
        return {"last_hidden_state": output.last_hidden_state}


def import_package() -> Any:
    """Import groundingdino-py's model module; ValueError when it is not installed."""
    with contextlib.suppress(ImportError):  # the next import names the missing part
        import_torchvision()
    try:
        return importlib.import_module(f"{_PACKAGE}.groundingdino")
    except ImportError as error:
        raise ValueError(
            f"the groundingdino backend needs the package groundingdino-py ({error}): "
            "`pip install 'hyco[groundingdino]'`"
        ) from None


def build(config: Any) -> Any:
    """Build the package's model, untrained, from a transformers GroundingDinoConfig; ValueError if it cannot."""
    swin = config.backbone_config
    wanted = {
        "backbone": (swin.model_type, "swin"),
        "d_model": (config.d_model, 256),
        "two_stage": (config.two_stage, True),
        "embedding_init_target": (config.embedding_init_target, True),
        "position_embedding_type": (config.position_embedding_type, "sine"),
    }
    if wrong := [
        f"{name} {given!r} (needs {need!r})" for name, (given, need) in wanted.items() if given != need
    ]:
        raise ValueError(
            f"groundingdino-py has no such architecture: {', '.join(wrong)}; use the transformers backend"
        )
    module = import_package()
    temperature = config.positional_embedding_temperature
    arguments = SimpleNamespace(
        hidden_dim=config.d_model,
        dropout=config.dropout,
        nheads=config.encoder_attention_heads,
        num_queries=config.num_queries,
        dim_feedforward=config.encoder_ffn_dim,
        enc_layers=config.encoder_layers,
        dec_layers=config.decoder_layers,
        pre_norm=False,
        query_dim=config.query_dim,
        transformer_activation=config.activation_function,
        num_patterns=0,
        num_feature_levels=config.num_feature_levels,
        enc_n_points=config.encoder_n_points,
        dec_n_points=config.decoder_n_points,
        two_stage_type="standard",
        embed_init_tgt=True,
        use_text_enhancer=True,
        use_fusion_layer=True,
        use_checkpoint=False,
        use_transformer_ckpt=False,
        use_text_cross_attention=True,
        text_dropout=0.0,
        fusion_dropout=0.0,
        fusion_droppath=0.0,
        position_embedding="sine",
        pe_temperatureH=temperature,
        pe_temperatureW=temperature,
    )
    with _without_the_hub(module, config.text_config):
        model = module.GroundingDINO(
            _backbone(arguments, swin),
            module.build_transformer(arguments),
            num_queries=config.num_queries,
            iter_update=True,
            query_dim=config.query_dim,
            num_feature_levels=config.num_feature_levels,
            nheads=config.encoder_attention_heads,
            two_stage_type="standard",
            dec_pred_bbox_embed_share=config.decoder_bbox_embed_share,
            two_stage_class_embed_share=False,
            two_stage_bbox_embed_share=False,
            text_encoder_type="",
        )
    for layer in model.transformer.encoder.text_layers:
        layer.register_forward_pre_hook(_order_masks, with_kwargs=True)
    return model


def _backbone(arguments: SimpleNamespace, swin: Any) -> Any:
    package = importlib.import_module(f"{_PACKAGE}.backbone.backbone")
    transformer = importlib.import_module(f"{_PACKAGE}.backbone.swin_transformer").SwinTransformer
    levels = tuple(index - 1 for index in swin.out_indices)
    body = transformer(
        pretrain_img_size=swin.image_size,
        patch_size=swin.patch_size,
        embed_dim=swin.embed_dim,
        depths=list(swin.depths),
        num_heads=list(swin.num_heads),
        window_size=swin.window_size,
        mlp_ratio=swin.mlp_ratio,
        qkv_bias=swin.qkv_bias,
        drop_path_rate=0.0,
        out_indices=levels,
    )
    joined = package.Joiner(body, package.build_position_encoding(arguments))
    joined.num_channels = [body.num_features[level] for level in levels]
    return joined


@contextlib.contextmanager
def _without_the_hub(module: Any, text_config: Any) -> Iterator[None]:
    """Replace the objects that groundingdino-py fetches from the hub while it builds the model.

    Our tokens replace its tokenizer, an untrained BERT replaces the hub's, and our wrapper replaces its own.
    """
    from transformers import BertModel

    hub, wrapper = module.get_tokenlizer, module.BertModelWarper
    module.get_tokenlizer = SimpleNamespace(
        get_tokenlizer=lambda kind: _ReadyTokens(),
        get_pretrained_language_model=lambda kind: BertModel(text_config),
    )
    module.BertModelWarper = _Bert
    try:
        yield
    finally:
        module.get_tokenlizer, module.BertModelWarper = hub, wrapper


def _order_masks(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat the masks [B, N, N] for each head as torch's attention numbers them: all heads of one sample together."""
    return args, {**kwargs, "src_mask": kwargs["src_mask"].repeat_interleave(layer.nhead, 0)}


def _load(model: Any, folder: Path) -> None:
    """Fill a built model with the directory's weights; ValueError when they do not fit it."""
    if released := not any(folder.glob("*.safetensors")) and sorted(folder.glob("*.pth")):
        weights = torch.load(released[0], map_location="cpu", weights_only=True)
        weights = weights.get("model", weights)
        renamed = {re.sub(r"^(module\.)?bert\.", "bert.model.", key): value for key, value in weights.items()}
        state = {key.removeprefix("module."): value for key, value in renamed.items()}
    else:
        from transformers import AutoModelForZeroShotObjectDetection

        read_config(folder, "transformers")
        source = AutoModelForZeroShotObjectDetection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        state = carry_over(source.state_dict())
    outcome = model.load_state_dict(state, strict=False)
    # BERT's pooler is never used; shared heads appear under several names and are filled through any of them.
    filled = {id(value) for key, value in model.state_dict(keep_vars=True).items() if key in state}
    empty = [
        key for key, value in model.named_parameters() if id(value) not in filled and ".pooler." not in key
    ]
    unknown = [
        key for key in outcome.unexpected_keys if not key.endswith(("position_ids", "label_enc.weight"))
    ]
    if empty or unknown:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {len(empty)} parameters without a value "
            f"({', '.join(empty[:2])}), {len(unknown)} values without a parameter ({', '.join(unknown[:2])})"
        )
