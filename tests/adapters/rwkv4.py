"""RWKV-4 (github.com/BlinkDL/RWKV-LM, RWKV-v4): the WKV kernel, and the language model in both of its views."""

from typing import Any

import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors
from longreach.errors import InputError
from longreach.mixers import RWKV4, RWKVChannelMix
from longreach.models.published_layout import assemble
from longreach.models.published_rwkv import build, rules
from longreach.models.rwkv import RWKV, RWKVLanguageModel
from longreach.ops import init_wkv, wkv


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published kernel or model."""
    if "wkv_cuda" in metadata["source"]:
        return kernel(config)
    try:
        model = build({name: value for name, value in config.items() if name != "loss"} | {"version": 4}, "BlinkDL")
    except InputError as error:
        return Declined(str(error))
    return Published(model, weights=lambda theirs: assemble(rules(model, "BlinkDL", config), theirs), run=run_model)


def kernel(config: dict[str, Any]) -> Published:
    """The operator, from the parameters as they are stored; its states; and the published backward pass."""
    channels = nn.ParameterDict({name: torch.zeros(config["C"]) for name in ("time_decay", "time_first")})

    def run(channels: Any, tensors: Tensors) -> dict[str, Tensor]:
        key, value = tensors["input_k"], tensors["input_v"]
        log_decay, bonus = -channels["time_decay"].exp(), channels["time_first"]
        state = init_wkv(len(key), bonus)
        results = {"output": wkv(log_decay, bonus, key, value, state)[0]}
        for name in tensors:
            if name.startswith("state/"):
                until = int(name.removeprefix("state/"))
                sums = wkv(log_decay, bonus, key[:, :until], value[:, :until], state)[1]
                results[name] = torch.stack([*sums], dim=1)
        wanted = {"/time_decay": channels["time_decay"], "/time_first": bonus, "_input_k": key, "_input_v": value}
        found = torch.autograd.grad(
            results["output"], [*wanted.values()], tensors["cotangent"], retain_graph=True, materialize_grads=True
        )
        return results | {f"peer_kernel_grad{n}": g for n, g in zip(wanted, found, strict=True)}

    return Published(channels, weights=dict, run=run)


def run_model(model: RWKVLanguageModel, tensors: Tensors) -> dict[str, Tensor]:
    """Logits, what every layer adds up to, the training loss with its gradients, and the recurrent view."""
    tokens, targets = tensors["input_ids"], tensors["targets"]
    backbone = model.backbone
    assert isinstance(backbone, RWKV)
    results = {"output": model(tokens)}
    x = backbone.first_norm(model.embedding(tokens))
    for i, (layer, before) in enumerate(zip(backbone.layers, backbone.init_state(len(x)).layers, strict=True)):
        x = layer(x, before, None, None)[0]
        results[f"hidden/{i}"] = x
    results["loss"] = model.token_losses(tokens, targets).mean()[None]
    penalised = model.train().token_losses(tokens, targets).mean()
    model.eval()
    weights = {"emb.weight": model.embedding.weight, "head.weight": model.head.weight}  # type: ignore[union-attr]
    gradients = torch.autograd.grad(penalised, [*weights.values()], retain_graph=True)
    results |= {f"loss_grad_l2wrap/{name}": g for name, g in zip(weights, gradients, strict=True)}
    logits, state = [], model.init_state(len(tokens))
    for t, token in enumerate(tokens.unbind(1), 1):
        y, state = model.step(token, state)
        logits.append(y)
        results |= {name: value for name, value in states_of(backbone, state, t).items() if name in tensors}
    return results | {"step_output": torch.stack(logits, dim=1)}


def states_of(backbone: RWKV, state: Any, read: int) -> dict[str, Tensor]:
    """The state of the first row after `read` tokens, by published name."""
    found = {}
    for i, (layer, after) in enumerate(zip(backbone.layers, state.layers, strict=True)):
        found[f"state/{read}/xx/ffn.{i}"] = after.channel.last[0]
        if isinstance(layer.time, RWKVChannelMix):
            found[f"state/{read}/xx/ffnPre.{i}"] = after.time.last[0]
        elif isinstance(layer.time, RWKV4):
            found[f"state/{read}/xx/att.{i}"] = after.time.last[0]
            found |= {
                f"state/{read}/{n}/att.{i}": x[0] for n, x in zip(("aa", "bb", "pp"), after.time.wkv, strict=True)
            }
    return found
