"""RWKV-5 and RWKV-6 (github.com/BlinkDL/RWKV-LM, RWKV-v5/src/model.py): the time and the channel mixing."""

from typing import Any

from torch import Tensor

from adapters import Declined, Published, Tensors
from longreach.mixers import RWKV5, RWKV6, RWKVChannelMix, SequenceMixer
from longreach.models.published_layout import assemble
from longreach.models.published_rwkv import mixer_rules


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the published class and options."""
    name = metadata["source"].rpartition(":")[2].partition(" ")[0]
    if name not in ("RWKV_Tmix_x052", "RWKV_Tmix_x060", "RWKV_CMix_x052", "RWKV_CMix_x060"):
        return Declined(f"{name}: an experiment in the published code that no released model uses")
    version = int(name[-2])
    mixer = channel_mix(config) if "CMix" in name else time_mix(config, version)

    def run(mixer: SequenceMixer, tensors: Tensors) -> dict[str, Tensor]:
        x = tensors["input"]
        y, state = mixer.prefill(x, mixer.init_state(len(x)))
        results = {"output": y, "step_output": mixer.prefill(x[:, :1], mixer.init_state(len(x)))[0]}
        if "CMix" not in name:
            results[f"state/{x.shape[1]}/S"] = state.memory
        return {key: value for key, value in results.items() if key in tensors}

    return Published(mixer, weights=lambda theirs: assemble(mixer_rules(mixer, version), theirs), run=run)


def time_mix(config: dict[str, Any], version: int) -> SequenceMixer:
    """Time mixing of version 5 or 6."""
    place = {"layer": config["layer_id"], "n_layers": config["n_layer"]}
    sizes = {
        "d_attention": config["dim_att"],
        "head_dim": config["head_size_a"],
        "divisor": float(config["head_size_divisor"]),
    }
    if version == 5:
        return RWKV5(config["n_embd"], **sizes, **place)
    ranks = {"share_rank": config["D_MIX_LORA"], "decay_rank": config["D_DECAY_LORA"]}
    return RWKV6(config["n_embd"], **sizes, **ranks, **place)


def channel_mix(config: dict[str, Any]) -> SequenceMixer:
    """Channel mixing, the same in both versions."""
    return RWKVChannelMix(
        config["n_embd"], d_inner=config["dim_ffn"], layer=config["layer_id"], n_layers=config["n_layer"]
    )
