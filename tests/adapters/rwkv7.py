"""RWKV-7 (github.com/BlinkDL/RWKV-LM, RWKV-v7/rwkv_v7_demo.py): the delta rule, and the model in both views."""

from typing import Any

import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors
from longreach.errors import InputError
from longreach.models.published_layout import assemble
from longreach.models.published_rwkv import build, ignored, rules
from longreach.models.rwkv import RWKVLanguageModel
from longreach.ops import delta_rule


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published operator or model."""
    if "RWKV7_OP" in metadata["source"]:
        return Published(nn.Module(), weights=dict, run=lambda _, tensors: run_operator(config["head_size"], tensors))
    options = config | {"version": 7}
    try:
        model = build(options, "BlinkDL")
    except InputError as error:
        return Declined(str(error))
    unread = {f"blocks.0.att.v{i}" for i in range(3)}
    unread |= {f"blocks.{i}.ln0.{name}" for i in range(1, config["n_layer"]) for name in ("weight", "bias")}
    assert all(ignored(name, options) for name in unread)
    return Published(
        model,
        weights=lambda theirs: assemble(rules(model, "BlinkDL", config), theirs),
        run=run_model,
        unchecked={f"param/{name}": "the published code never reads it" for name in unread},
    )


def run_operator(head_dim: int, tensors: Tensors) -> dict[str, Tensor]:
    """The operator, with its decays as they are stored."""
    heads = {name: tensors[f"input_{name}"].unflatten(-1, (-1, head_dim)).transpose(1, 2) for name in "rwkvab"}
    state = torch.zeros(*heads["v"].shape[:2], head_dim, head_dim, dtype=torch.float64)
    log_decay = -heads["w"].exp()
    y, _ = delta_rule(heads["r"], heads["k"], heads["v"], log_decay, heads["a"], heads["b"], state)
    return {"output": y.transpose(1, 2).flatten(2)}


def run_model(model: RWKVLanguageModel, tensors: Tensors) -> dict[str, Tensor]:
    """Logits, and the recurrent view with the states of the first row; the published memory is ours transposed."""
    tokens = tensors["input_ids"]
    logits, state, results = [], model.init_state(len(tokens)), {"output": model(tokens)}
    for t, token in enumerate(tokens.unbind(1), 1):
        y, state = model.step(token, state)
        logits.append(y)
        if f"state/{t}/S" in tensors:
            results[f"state/{t}/S"] = torch.stack([layer.time.memory[0].mT for layer in state.layers])  # type: ignore
            last = [torch.stack([layer.time.last[0], layer.channel.last[0]]) for layer in state.layers]  # type: ignore
            results[f"state/{t}/x_prev"] = torch.stack(last)
    return results | {"step_output": torch.stack(logits, dim=1)}
