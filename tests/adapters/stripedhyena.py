"""StripedHyena as in togethercomputer/stripedhyena and Zymrael/vortex: filters, a block, whole models.

The published filters start behind the projections and end before the last linear map, so that ours run without them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors
from longreach.errors import InputError
from longreach.mixers import StripedHyena
from longreach.models.backbone import Block
from longreach.models.channel_mixers import GatedMLP
from longreach.models.language_model import LanguageModel
from longreach.models.published_layout import assemble
from longreach.models.published_striped_filter import build_filter, filter_rules
from longreach.models.published_striped_hyena import DEFAULTS, block_rules, build, inner_size, rules


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for a filter, a block or a model."""
    published_class = metadata["source"].rpartition("model.py:")[2].partition(" ")[0]
    adapters = {
        "StripedHyena": model,
        "ParallelGatedConvBlock": block,
        "ParallelHyenaFilter": filter_alone,
        "HyenaCascade": filter_alone,
    }
    try:
        return adapters[published_class]({name: value for name, value in config.items() if name not in ("L", "prompt")})
    except InputError as error:
        return Declined(str(error))


def model(config: dict[str, Any]) -> Published:
    """Logits, and those of a prompt and steps behind it."""
    ours = build(config, "stripedhyena")

    def run(ours: LanguageModel, tensors: Tensors) -> dict[str, Tensor]:
        tokens = tensors["input_ids"]
        found = {"output": ours(tokens)}
        if "step_logits" in tensors:
            prompt = int(tensors["prompt_len"])
            found["step_logits"] = read_and_step(ours.prefill, ours.step, tokens, prompt, ours.init_state(len(tokens)))[
                0
            ]
        return found

    angles = {
        f"param/blocks.{i}.inner_mha_cls.rotary_emb.inv_freq": "ours are computed" for i in config["attn_layer_idxs"]
    }
    return Published(
        ours,
        weights=lambda theirs: assemble(rules(ours, "stripedhyena", config), theirs),
        run=run,
        tied={"unembed.weight": "embedding_layer.weight"} if config.get("tie_embeddings") else {},
        unchecked=angles,
    )


def read_and_step(prefill: Any, step: Any, x: Tensor, prompt: int, state: Any) -> tuple[Tensor, Any]:
    """A prompt, then one position at a time: outputs and the last state."""
    y, state = prefill(x[:, :prompt], state)
    outputs = [y]
    for x_t in x[:, prompt:].unbind(1):
        y, state = step(x_t, state)
        outputs.append(y[:, None])
    return torch.cat(outputs, dim=1), state


def block(config: dict[str, Any]) -> Published:
    """A filter and a gated MLP, with their norms and residual connections."""
    width, expand = config["hidden_size"], inner_size(DEFAULTS | config) / config["hidden_size"]
    channel_mixer = GatedMLP(width, expand=expand, activation=config.get("mlp_activation", "silu"))
    ours = Block(build_filter(config, "complex"), channel_mixer, norm="rms_outside")
    ours.norm.eps = ours.channel_norm.eps = config["eps"]

    def run(ours: Block, tensors: Tensors) -> dict[str, Tensor]:
        x, mixer = tensors["input"], ours.mixer
        found = {"output": ours(x, lambda u: (mixer(u), None))[0]}
        if "step_output" in tensors:

            def through(view: Callable) -> Callable:
                return lambda x, state: ours(x, partial(view, state=state))

            views = (through(mixer.prefill), through(mixer.step))
            found["step_output"] = read_and_step(*views, x, len(x[0]) // 3, mixer.init_state(len(x)))[0]
        return found

    return Published(ours, weights=lambda theirs: assemble(block_rules(ours, config), theirs), run=run)


def filter_alone(config: dict[str, Any]) -> Published:
    """A filter of either generation, with its kernel, its steps and its states."""
    taps = config.get("fir_inner_filter_length")
    kind = "explicit" if taps else "real" if "fir_inner_filter_length" in config else "complex"
    mixer = build_filter(config, kind, taps=taps)
    order = filter_rules(mixer, config)[0].view(torch.arange(3 * mixer.d_model))  # ours i is theirs order[i]
    inner = [rule for rule in filter_rules(mixer, config) if rule.theirs.startswith("filter.")]
    inner = [rule._replace(theirs=rule.theirs.removeprefix("filter.")) for rule in inner]
    mixer.projections, mixer.out = nn.Identity(), nn.Identity()
    mixer._finish = lambda y: y.mT

    def view(method: Callable) -> Callable:
        """A view of the mixer in which the input takes the place of its projections."""

        def run(projected: Tensor, *state: Any) -> Any:
            channels = projected[..., order]
            mixer._project = lambda x, mask: channels.reshape(len(x), -1, channels.shape[-1]).mT
            return method(channels[..., : mixer.d_model], *state)

        return run

    def run(mixer: StripedHyena, tensors: Tensors) -> dict[str, Tensor]:
        x, length = tensors["input"], tensors["input"].shape[1]
        kernel = mixer._spread(mixer.kernel(length))
        found = {"output": view(mixer.forward)(x), "kernel": kernel}
        times = {int(name.rpartition("/")[2]) for name in tensors if "_state" in name} | {length}
        start = min(times) if "step_output" in tensors else length
        reached = {start: view(mixer.prefill)(x[:, :start], mixer.init_state(len(x)))[1]}
        stepped, reached[length] = read_and_step(
            view(mixer.prefill), view(mixer.step), x, start, mixer.init_state(len(x))
        )
        found["step_output"] = stepped
        for t, state in reached.items():
            modes = state.modes if kind == "complex" else state.modes.real
            found[f"fir_state/{t}"] = state.tail[:, order.argsort()]
            for name in ("iir_state", "iir_state_fft"):
                found[f"{name}/{t}"] = torch.view_as_real(modes) if kind == "complex" else modes
        return {name: value for name, value in found.items() if name in tensors}

    return Published(mixer, weights=lambda theirs: assemble(inner, theirs), run=run)
