"""Load the Zipformer of an icefall checkout, to compare it with ours.

icefall's recipe imports modules that a Zipformer does not need.  This module replaces
the few helpers that it does need, so that a checkout without dependencies is enough.
"""

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn

from icefall_kd.core.config import ZipformerConfig
from icefall_kd.core.frames import make_pad_mask

RECIPE = "egs/librispeech/ASR/zipformer"


@contextlib.contextmanager
def _autocast(device_type: str = "cuda", **kwargs) -> Iterator[None]:
    with torch.autocast(device_type, **kwargs):
        yield


def load(checkout: str) -> types.SimpleNamespace:
    """Return Zipformer2, Conv2dSubsampling, ScheduledFloat and ScaledAdam of icefall.

    Raises:
      FileNotFoundError: if ``checkout`` has no Zipformer recipe.
    """
    recipe = Path(checkout) / RECIPE
    if not (recipe / "zipformer.py").is_file():
        raise FileNotFoundError(f"{recipe}/zipformer.py: not an icefall checkout")
    interface = types.ModuleType("encoder_interface")
    interface.EncoderInterface = nn.Module
    package, utils = types.ModuleType("icefall"), types.ModuleType("icefall.utils")
    utils.torch_autocast = _autocast
    package.utils = utils
    sys.modules.update(
        {"encoder_interface": interface, "icefall": package, "icefall.utils": utils}
    )
    sys.path.insert(0, str(recipe))
    try:
        modules = {
            name: importlib.import_module(name)
            for name in ("zipformer", "subsampling", "scaling", "optim")
        }
    finally:
        sys.path.remove(str(recipe))
    return types.SimpleNamespace(
        Zipformer2=modules["zipformer"].Zipformer2,
        Conv2dSubsampling=modules["subsampling"].Conv2dSubsampling,
        ScheduledFloat=modules["scaling"].ScheduledFloat,
        ScaledAdam=modules["optim"].ScaledAdam,
    )


def replace_encoder(
    icefall: types.SimpleNamespace,
    model: nn.Module,
    config: ZipformerConfig,
    batch_count: float,
) -> None:
    """Replace front end and encoder of ``model`` by icefall's, with the same weights.

    icefall's front end has fixed sizes; with other sizes only the encoder gets the same
    weights.
    """

    def dropout():
        return icefall.ScheduledFloat((0.0, 0.3), (20000.0, 0.1))

    names = (
        "output_downsampling_factor downsampling_factor encoder_dim num_encoder_layers "
        "encoder_unmasked_dim query_head_dim pos_head_dim value_head_dim num_heads "
        "feedforward_dim cnn_module_kernel pos_dim causal chunk_size "
        "left_context_frames"
    )
    encoder = icefall.Zipformer2(
        **{name: getattr(config, name) for name in names.split()}, dropout=dropout()
    )
    embed = icefall.Conv2dSubsampling(80, config.encoder_dim[0], dropout=dropout())
    encoder.load_state_dict(model.encoder.state_dict())
    with contextlib.suppress(RuntimeError):
        embed.load_state_dict(model.encoder_embed.state_dict())
    device = next(model.parameters()).device
    model.encoder = encoder.to(device).train()
    model.encoder_embed = embed.to(device).train()
    for module in [*encoder.modules(), *embed.modules()]:
        if hasattr(module, "batch_count"):
            module.batch_count = batch_count


def forward_encoder(model: nn.Module) -> Callable[[Tensor, Tensor], tuple]:
    """Return a function from features to icefall's encoder output."""

    def encode(x: Tensor, x_lens: Tensor) -> tuple:
        x, x_lens = model.encoder_embed(x, x_lens)
        mask = make_pad_mask(x_lens)
        out, lens = model.encoder(x.permute(1, 0, 2), x_lens, mask)
        return out.permute(1, 0, 2), lens

    return encode
