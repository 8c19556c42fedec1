"""Luna and the gated attention unit, both from github.com/facebookresearch/mega; sequences are (l, b, d)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import Declined, Published, Tensors
from adapters.lra import Table
from longreach.mixers import GAU, CausalLuna, Luna

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "silu": F.silu,
    "swish": F.silu,
    "linear": lambda x: x,
}


def mask_of(tensors: Tensors) -> Tensor | None:
    """Where there is no padding; the published mask says where there is."""
    return ~tensors["padding_mask"].bool() if "padding_mask" in tensors else None


def joined(theirs: Tensors, prefix: str, target: str, *names: str) -> dict[str, Tensor]:
    """One of our linear maps from several published ones that have the same input."""
    parts = {"weight": [theirs[f"{prefix}{name}.weight"] for name in names]}
    if f"{prefix}{names[0]}.bias" in theirs:
        parts["bias"] = [theirs[f"{prefix}{name}.bias"] for name in names]
    return {f"{target}.{part}": torch.cat(tensors) for part, tensors in parts.items()}


def luna_weights(theirs: Tensors, mixer: Luna, tied: bool, prefix: str = "") -> dict[str, Tensor]:
    """The mixer's own memory is not used: the file holds one for each row of the batch."""
    linears = {
        "pack_query": ["pq_proj"],
        "pack_key_value": ["pc_proj"] if tied else ["pk_proj", "pv_proj"],
        "query": ["q_proj"],
        "key_value": ["c_proj"] if tied else ["k_proj", "v_proj"],
        "out": ["out_proj"],
    }
    ours = {"memory": mixer.memory.detach()}
    for target, names in linears.items():
        ours |= joined(theirs, prefix, target, *names)
    return ours


def luna(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Pack and unpack attention."""
    if not config.get("self_attention", False):
        return Declined("attention to another sequence; a mixer has one")
    tied = config.get("tie_kv", True)
    mixer = Luna(
        config["embed_dim"],
        n_heads=config["num_heads"],
        n_pack_heads=config["num_pheads"],
        tie_keys_values=tied,
        bias=config.get("bias", True),
    )

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        x, memory = tensors["input"].transpose(0, 1), tensors["input_p"].transpose(0, 1)
        y, packed = mixer.pack_and_unpack(x, memory, mask_of(tensors))
        return {"output": y.transpose(0, 1), "output_p": packed.transpose(0, 1)}

    return Published(mixer, lambda theirs: luna_weights(theirs, mixer, tied), run)


def luna_layer(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """A layer of the model that hands the memory on, put together from ours."""
    width, inner, tied = config["embedding_dim"], config["ffn_embedding_dim"], config.get("tie_kv", True)
    mixer = Luna(
        width,
        n_heads=config["num_attention_heads"],
        n_pack_heads=config["num_projected_attention_heads"],
        tie_keys_values=tied,
    )
    norms = ("self_attn_layer_norm", "self_atten_proj_layer_norm", "final_layer_norm")
    module = nn.ModuleDict({name: nn.LayerNorm(width) for name in norms})
    module.update({"mixer": mixer, "fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
    activation, pre = ACTIVATIONS[config.get("activation_fn", "relu")], config.get("normalize_before", False)

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {f"mixer.{name}": value for name, value in luna_weights(theirs, mixer, tied, "self_attn.").items()}
        for name in (*norms, "fc1", "fc2"):
            ours |= joined(theirs, "", name, name)
        return ours

    def run(module: Any, tensors: Tensors) -> dict[str, Tensor]:
        x, memory = tensors["input"].transpose(0, 1), tensors["input_p"].transpose(0, 1)
        norm, memory_norm, final_norm = (module[name] for name in norms)
        y, packed = module["mixer"].pack_and_unpack(
            norm(x) if pre else x, memory_norm(memory) if pre else memory, mask_of(tensors)
        )
        x, memory = x + y, memory + packed
        if not pre:
            x, memory = norm(x), memory_norm(memory)
        x = x + module["fc2"](activation(module["fc1"](final_norm(x) if pre else x)))
        x = x if pre else final_norm(x)
        return {"output": x.transpose(0, 1), "output_p": memory.transpose(0, 1)}

    return Published(module, weights, run)


def causal_luna(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """The causal attention: ours has one memory for all rows of a batch, so rows go one by one."""
    tied = config.get("tie_kv", True)
    mixer = CausalLuna(
        config["embed_dim"], n_heads=config["num_heads"], tie_keys_values=tied, bias=config.get("bias", True)
    )

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        names = ["pc_proj", "q_proj", *(["c_proj"] if tied else ["k_proj", "v_proj"])]
        linears = joined(theirs, "", "pack_query", "pq_proj") | joined(theirs, "", "into", *names)
        return {"memory": mixer.memory.detach()} | linears | joined(theirs, "", "out", "out_proj")

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        rows = zip(tensors["input"].unbind(1), tensors["input_p"].unbind(1), strict=True)
        outputs = [torch.func.functional_call(mixer, {"memory": memory}, (x[None],))[0] for x, memory in rows]
        return {"output": torch.stack(outputs, dim=1)}

    return Published(mixer, weights, run)


def gated_attention_unit(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """FLASH-Quad."""
    mixer = GAU(
        config["embed_dim"],
        d_key=config["zdim"],
        d_value=config["hdim"],
        max_length=config.get("max_positions", 1024),
        causal=False,
    )

    def weights(theirs: Tensors) -> dict[str, Tensor]:
        ours = {"scale": theirs["gamma"], "shift": theirs["beta"], "bias": theirs["rel_pos_bias.rel_pos_bias"]}
        return ours | joined(theirs, "", "into", "proj") | joined(theirs, "", "out", "out_proj")

    def run(mixer: Any, tensors: Tensors) -> dict[str, Tensor]:
        return {"output": mixer(tensors["input"].transpose(0, 1), mask_of(tensors)).transpose(0, 1)}

    return Published(mixer, weights, run)


TABLE: Table = {
    "LunarMultiheadAttention": luna,
    "LunaSentenceEncoderLayer": luna_layer,
    "LunarCausalAttention": causal_luna,
    "GatedAttentionUnit": gated_attention_unit,
}
