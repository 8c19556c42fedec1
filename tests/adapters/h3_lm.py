"""H3's SSMLMHeadModel, with the functions that load published checkpoints: logits, generation, states."""

from typing import Any

import torch
from torch import Tensor

from adapters import Declined, Published, Tensors
from adapters.h3 import states
from longreach.errors import InputError
from longreach.mixers import H3
from longreach.models.backbone import Backbone, BackboneState
from longreach.models.language_model import LanguageModel
from longreach.models.learned_positions import LearnedPositions
from longreach.models.published_layout import assemble
from longreach.models.published_safari import build, rules
from longreach.ops.key_value_cache import KeyValueCache, join


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for a whole published model."""
    try:
        model = build(config, "safari")
    except InputError as error:
        return Declined(str(error))

    def run(model: LanguageModel, tensors: Tensors) -> dict[str, Tensor]:
        tokens = tensors["input_ids"]
        found = {"output": model(tokens)}
        if "step_logits" not in tensors:
            return found
        prompt = int(tensors["prompt_len"])
        logits, state = model.prefill(tokens[:, :prompt], model.init_state(len(tokens)))
        outputs, before = [logits], state
        for token in tokens[:, prompt:].unbind(1):
            before = state
            logits, state = model.step(token, state)
            outputs.append(logits[:, None])
        return found | {"step_logits": torch.cat(outputs, dim=1)} | layers(model, before, state, tensors)

    return Published(model, weights=lambda theirs: assemble(rules(model, "safari", config), theirs), run=run)


def layers(model: LanguageModel, before: Any, after: Any, tensors: Tensors) -> dict[str, Tensor]:
    """The published states of all layers, as far as the file has them."""
    stack: Any = model.backbone
    if isinstance(stack, LearnedPositions):
        stack, before, after = stack.inner, before.inner, after.inner
    assert isinstance(stack, Backbone)
    assert isinstance(after, BackboneState)
    found = {}
    for i, (block, earlier, later) in enumerate(zip(stack.blocks, before.layers, after.layers, strict=True)):
        if isinstance(block.mixer, H3):
            found |= {f"state_{name}/layer{i}": value for name, value in states(block.mixer, earlier, later).items()}
        else:
            found[f"kv_cache/layer{i}"] = keys_and_values(later)
    return {name: value for name, value in found.items() if name in tensors}


def keys_and_values(cache: KeyValueCache) -> Tensor:
    """(b, m, keys or values, heads, e)."""
    whole = join((*cache.blocks, cache.tail))
    return torch.stack([whole.key, whole.value], dim=1).permute(0, 3, 1, 2, 4)
