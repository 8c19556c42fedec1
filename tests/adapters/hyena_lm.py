"""safari's SimpleLMHeadModel and HyenaDNA's standalone model, with the functions that load published checkpoints."""

from typing import Any

from torch import Tensor

from adapters import Declined, Published, Tensors
from adapters.hyena import apply
from longreach.errors import InputError
from longreach.models.classifier import Classifier
from longreach.models.language_model import LanguageModel
from longreach.models.published_hyena import Variant
from longreach.models.published_safari import build, rules


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for a whole published model: logits, features or labels."""
    variant: Variant = "standalone" if "standalone" in metadata["source"] else "safari"
    try:
        model = build(config, variant)
    except InputError as error:
        return Declined(str(error))
    features = "HyenaDNAModel" in metadata["source"] and not config.get("use_head")

    def run(model: LanguageModel | Classifier, tensors: Tensors) -> dict[str, Tensor]:
        tokens = tensors["input_ids"]
        return {"output": model.hidden(tokens) if features else model(tokens)}

    hyena = [i for i in range(config["n_layer"]) if i not in config.get("attn_layer_idx", [])]
    filters = [f"backbone.layers.{i}.mixer.filter_fn" for i in hyena]
    inner = config["layer"].get("num_inner_mlps", 2)
    unchecked = {f"param/{prefix}.pos_emb.t": "our time is computed" for prefix in filters}
    for prefix in filters:
        if not config["layer"].get("modulate", True):
            unchecked[f"param/{prefix}.modulation.deltas"] = "there is no modulation"
        if not config["layer"].get("bias", True):
            unchecked[f"param/{prefix}.bias"] = "the published code multiplies it with zero"
    return Published(
        model,
        weights=lambda theirs: apply(rules(model, variant, config), theirs),
        run=run,
        tied={
            f"{prefix}.implicit_filter.{2 * i + 1}.freq": f"{prefix}.implicit_filter.1.freq"
            for prefix in filters
            for i in range(1, inner + 1)
        },
        unchecked=unchecked,
    )
