"""GSS as in github.com/lucidrains/gated-state-spaces-pytorch: the state-space model, the layers, the language models.

DSS                                gss.py      the state-space model with its norm
GSS                                gss.py      the layer, with its norm and residual connection
GatedStateSpacesLM                 gss.py      embedding, layers, linear head; there is no norm before the head
MHESA, GatedMHESA, ...SmoothingLM  mhesa.py    the same with the moving average in place of DSS
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from longreach.mixers import GSS
from longreach.models import Backbone, LanguageModel


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    published_class = metadata["source"].rpartition(":")[2]
    adapters = {
        "DSS": state_space_model,
        "MHESA": state_space_model,
        "GSS": layer,
        "GatedMHESA": layer,
        "GatedStateSpacesLM": language_model,
        "GatedExponentialSmoothingLM": language_model,
    }
    if published_class not in adapters:
        return Declined(f"{published_class}: its filter at lag l is computed from the input at position l")
    return adapters[published_class](config, published_class in ("MHESA", "GatedMHESA", "GatedExponentialSmoothingLM"))


def build(config: dict[str, Any], average: bool) -> GSS:
    """Our mixer for the options of a published layer."""
    shared: dict[str, Any] = {"expand": float(config.get("dim_expansion_factor", 4))}
    if average:
        heads, width = config.get("heads", 8), config.get("dim_mhesa", 512)
        return GSS(config["dim"], d_ssm=width, kernel="ema", n_heads=heads, **shared)
    return GSS(
        config["dim"],
        d_ssm=config.get("dss_kernel_H", 256),
        d_state=config.get("dss_kernel_N", 512),
        imag_transform="exp" if config.get("dss_kernel_lambda_imag_exp", True) else "none",
        reverse=config.get("reverse_seq", False),
        **shared,
    )


def system_weights(theirs: Tensors, prefix: str, average: bool) -> dict[str, Tensor]:
    """The parameters of the state-space model."""
    if average:
        ours = {"alpha": theirs[f"{prefix}alphas"], "damping": theirs[f"{prefix}dampen_factors"]}
    else:
        ours = {
            "A_real": theirs[f"{prefix}Lambda_real"],
            "A_imag": theirs[f"{prefix}Lambda_imag"],
            "C": torch.stack([theirs[f"{prefix}C_real"], theirs[f"{prefix}C_imag"]], dim=-1),
        }
    norm = {f"norm.{name}": theirs[f"{prefix}norm.{name}"] for name in ("weight", "bias")}
    return ours | norm | {"D": theirs[f"{prefix}param_D"]}


def layer_weights(theirs: Tensors, prefix: str, average: bool) -> dict[str, Tensor]:
    """The parameters of our mixer from those of a layer."""
    return {
        **system_weights(theirs, f"{prefix}{'mhesa' if average else 'dss'}.", average),
        "wide.weight": theirs[f"{prefix}to_u.0.weight"],
        "narrow.weight": theirs[f"{prefix}to_v.0.weight"],
        "gate.weight": theirs[f"{prefix}to_gate.weight"],
        "out.weight": theirs[f"{prefix}to_out.weight"],
        "out.bias": theirs[f"{prefix}to_out.bias"],
    }


def state_space_model(config: dict[str, Any], average: bool) -> Published:
    """The part of our mixer between its narrow maps: `narrow` and `gate` are left out."""
    width, reverse = config["dim"], config.get("reverse_seq", False)
    options: dict[str, Any] = {"d_ssm": width, "reverse": reverse}
    if average:
        options |= {"kernel": "ema", "n_heads": config["heads"]}
    else:
        imag_transform = "exp" if config.get("dss_kernel_lambda_imag_exp", True) else "none"
        options |= {"d_state": config["kernel_N"], "imag_transform": imag_transform}
    mixer = Inside(width, **options)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        unused = {name: tensor for name, tensor in mixer.state_dict().items() if name.endswith("weight")}
        return {**unused, "out.bias": mixer.out.bias.detach(), **system_weights(theirs, "", average)}

    def run(mixer: Inside, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"]
        results = {"output": mixer(x)}
        if "step_output" in tensors:
            outputs, state = [], mixer.init_state(len(x))
            for t, x_t in enumerate(x.unbind(1), 1):
                y, state = mixer.step(x_t, state)
                outputs.append(y)
                if f"state/{t}#re_im" in tensors:
                    results[f"state/{t}#re_im"] = torch.view_as_real(state.modes)
            results["step_output"] = torch.stack(outputs, dim=1)
        return results

    return Published(mixer, weights, run)


class Inside(GSS):
    """A GSS whose linear maps are left out."""

    def _enter(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def _leave(self, x: Tensor, y: Tensor) -> Tensor:
        return y


def identity(d_model: int) -> nn.Module:
    """No channel mixer."""
    return nn.Identity()


def stack(config: dict[str, Any], depth: int, average: bool) -> Backbone:
    """Layers without a norm behind them."""
    mixers = [lambda _: build(config, average)]
    backbone = Backbone(config["dim"], n_layers=depth, mixers=mixers, channel_mixer=identity, layout="joint")
    backbone.norm = None
    return backbone


def stack_weights(theirs: Tensors, prefixes: list[str], average: bool) -> dict[str, Tensor]:
    """The parameters of layers with their norms."""
    ours = {}
    for i, prefix in enumerate(prefixes):
        ours |= {f"blocks.{i}.norm.{name}": theirs[f"{prefix}norm.{name}"] for name in ("weight", "bias")}
        mixer = layer_weights(theirs, prefix, average)
        ours |= {f"blocks.{i}.mixer.{name}": tensor for name, tensor in mixer.items()}
    return ours


def layer(config: dict[str, Any], average: bool) -> Published:
    """One layer."""
    return Published(stack(config, 1, average), lambda theirs: stack_weights(theirs, [""], average))


def language_model(config: dict[str, Any], average: bool) -> Published:
    """The whole model and its loss."""
    depth = config["depth"]
    model = LanguageModel(config["num_tokens"], stack(config, depth, average), tied=False)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        layers = stack_weights(theirs, [f"layers.{i}." for i in range(depth)], average)
        return {
            "embedding.weight": theirs["token_emb.weight"],
            "head.weight": theirs["to_logits.weight"],
            **{f"backbone.{name}": tensor for name, tensor in layers.items()},
        }

    def run(model: LanguageModel, tensors: Tensors) -> dict[str, Tensor]:
        results = {"output": model(tensors["input_ids"])}
        if "labels" in tensors:
            results["loss"] = F.cross_entropy(results["output"].mT, tensors["labels"])[None]
        return results

    return Published(model, weights, run)
