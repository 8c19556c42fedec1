"""BiGS as in github.com/jxiw/BiGS: its state-space layer, its layer in flax and in torch, the masked language model.

S4dLayer                         modeling_flax_bigs.py     one channel, in both views
FlaxBiGSLayer, BiGSLayer         both files                norm, mixer, residual connection
FlaxBiGSForMaskedLMModule        modeling_flax_bigs.py     the whole model
BiGSForMaskedLM                  modeling_bigs.py          the same in torch
"""

from typing import Any

import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors
from longreach.errors import InputError
from longreach.mixers import BiGS
from longreach.mixers.bigs import convolve
from longreach.models import Backbone, MaskedLanguageModel
from longreach.models.published_bigs import (
    FLAX,
    FLAX_NAMES,
    SYSTEM,
    TORCH,
    TORCH_NAMES,
    build_layer,
    layer_rules,
    norm_rules,
)
from longreach.models.published_layout import assemble
from longreach.ops import ModalSystem, modal_step


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    name = metadata["source"].rpartition(":")[2]
    variant = "flax" if "modeling_flax" in metadata["source"] else "torch"
    if name == "S4dLayer":
        return state_space(config)
    if name in ("FlaxBiGSLayer", "BiGSLayer"):
        return layer(config, variant)
    if name not in ("FlaxBiGSForMaskedLMModule", "BiGSForMaskedLM"):
        return Declined(f"{name}: a head for fine-tuning, which is BERT's and not part of the system")
    try:
        return masked_lm(config, variant)
    except InputError as error:
        return Declined(str(error))


def state_space(config: dict[str, Any]) -> Published:
    """One channel of the forward direction; the backward one has the same parameters."""
    mixer = BiGS(1, d_inner=1, d_state=config["N"], init="lin")

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        both = {ours: torch.stack([theirs[name]] * 2) for ours, name in SYSTEM.items()}
        both |= {ours: both[ours][:, 0] for ours in ("log_dt", "D")}
        return {name: parameter.detach().double() for name, parameter in mixer.named_parameters()} | both

    def run(mixer: BiGS, tensors: Tensors) -> dict[str, Tensor]:
        u = tensors["input"]
        kernel = mixer.kernels(len(u))[0]
        system = ModalSystem(*(part[:1] for part in mixer.system()))
        modes, outputs = torch.zeros(1, 1, config["N"], dtype=torch.complex128), []
        for u_t in u:
            y, modes = modal_step(u_t[None, None], modes, *system.recurrence)
            outputs.append(y[0, 0] + mixer.D[0] * u_t)
        return {
            "output": convolve(u[None, None], kernel, mixer.D[:1])[0, 0],
            "kernel": kernel,
            "step_output": torch.stack(outputs),
            f"state/{len(u)}#re_im": torch.view_as_real(modes[0, 0]),
        }

    return Published(mixer, weights, run)


def layer(config: dict[str, Any], variant: str) -> Published:
    """A layer: in flax of one row without a batch, in torch of a batch and always with the norm first."""
    names = FLAX_NAMES if variant == "flax" else TORCH_NAMES
    module = Backbone(
        config["hidden_size"],
        n_layers=1,
        mixers=[lambda width: build_layer(config, variant)],
        channel_mixer=nn.Identity,
        layout="joint",
        norm_position="pre" if config["pre_norm"] or variant == "torch" else "post",
        final_norm=False,
    )
    block = module.blocks[0]
    assert isinstance(block.norm, nn.LayerNorm)
    assert isinstance(block.mixer, BiGS)
    block.norm.eps = config["layer_norm_eps"]
    rules = norm_rules("blocks.0.norm", "LayerNorm", block.norm, names)
    rules += [rule._replace(ours=f"blocks.0.mixer.{rule.ours}") for rule in layer_rules(block.mixer, names)]

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"]
        y = module(x if x.ndim == 3 else x[None])
        kernel = module.blocks[0].mixer.kernels(x.shape[-2])[:1]
        results = {"output": y if x.ndim == 3 else y[0], "kernel": kernel}
        return {name: result for name, result in results.items() if name in tensors}

    return Published(module, weights=lambda theirs: assemble(rules, theirs), run=run)


def masked_lm(config: dict[str, Any], variant: str) -> Published:
    """The whole model."""
    layout = FLAX if variant == "flax" else TORCH
    model = layout.build(config, variant)
    rules = layout.rules(model, variant, config)

    def run(model: MaskedLanguageModel, tensors: Tensors) -> dict[str, Tensor]:
        types = tensors.get("token_type_ids")
        return {"output": model(tensors["input_ids"], None, types)}

    return Published(
        model,
        weights=lambda theirs: assemble(rules, theirs),
        run=run,
        tied=layout.tied(dict.fromkeys(("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"), ())),
        unchecked={f"param/bigs.pooler.dense.{part}": "the head never reads it" for part in ("weight", "bias")},
    )
