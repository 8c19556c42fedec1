"""How the gated convolutions of StripedHyena are stored (togethercomputer/stripedhyena, Zymrael/vortex).

The gates x2, x1 and the value v are thirds of the channels here.  There they can be stored head by head
(column_split_hyena), channel by channel (interleave), and with the gates exchanged (hyena_flip_x1x2).  The first tap of
an explicit filter is the oldest if there are fewer than 128, else the newest, as here.

Axes: d width, c = 3 d channels, h heads, f filters, n modes, k taps.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers.striped_hyena import StripedHyena
from longreach.models.published_layout import Config, Rule, refuse_unknown, same

Kind = Literal["complex", "real", "explicit"]

DEFAULTS: dict[str, Any] = {
    "num_attention_heads": None,
    "state_size": 1,
    "short_filter_length": 3,
    "short_filter_bias": True,
    "hyena_filter_groups": None,
    "column_split_hyena": True,
    "interleave": False,
    "hyena_flip_x1x2": False,
}
"""Options of a filter; `hidden_size` has no default."""

ONLY = {"long_fir_threshold": None}
"""An option with which the published code runs filters backwards."""

NEWEST_FIRST = 128
"""From so many taps on the first tap of an explicit filter is the newest, and the filter has a skip connection."""


def build_filter(
    config: Config, kind: Kind, *, taps: int | None = None, bias: bool = True, out_bias: bool = True
) -> StripedHyena:
    """Ours for a published filter between its projections; `taps` of an explicit one."""
    given = DEFAULTS | dict(config)
    refuse_unknown(config, set(config), ONLY, "StripedHyena")
    if given["column_split_hyena"] and given["num_attention_heads"] is None:
        raise InputError("published config: num_attention_heads is missing; the tensors do not tell it")
    return StripedHyena(
        given["hidden_size"],
        filter=kind,
        d_state=given["state_size"],
        kernel_length=taps,
        n_filters=_count_filters(given, kind),
        skip=kind != "explicit" or (taps or 0) >= NEWEST_FIRST,
        short_width=given["short_filter_length"],
        short_bias=given["short_filter_bias"],
        bias=bias,
        out_bias=out_bias,
    )


def _count_filters(given: Config, kind: Kind) -> int:
    """How many filters there are: one kind counts the channels of a group, the others the groups."""
    d, groups = given["hidden_size"], given["hyena_filter_groups"] or given["hidden_size"]
    count = d // groups if kind == "complex" else groups
    works = {"complex": groups == 1 or count == 1 or count**2 == d, "real": count in (1, d), "explicit": True}
    if d % groups or not works[kind]:
        raise InputError(
            f"hyena_filter_groups={groups} with hidden_size={d} fails in the published code of {kind} filters"
        )
    return count


def filter_rules(mixer: StripedHyena, config: Config) -> list[Rule]:
    """Where every tensor of a filter and its projections comes from, as stored in a block."""
    d, width = mixer.d_model, mixer.short_width
    options = DEFAULTS | dict(config)

    def thirds(rows: Tensor) -> Tensor:
        """Rows for all channels as x2, x1, v."""
        if options["interleave"]:
            rows = rows.unflatten(0, (d, 3)).transpose(0, 1).flatten(0, 1)
        if options["column_split_hyena"]:
            rows = rows.unflatten(0, (options["num_attention_heads"], 3, -1)).transpose(0, 1).flatten(0, 2)
        if options["hyena_flip_x1x2"]:
            rows = torch.cat([rows[d : 2 * d], rows[:d], rows[2 * d :]])
        return rows

    rules = [
        *(rule._replace(view=thirds) for rule in same("projections", "projections", mixer.projections)),
        Rule("short_weight", "filter.short_filter_weight", (3 * d, 1, width), lambda weight: thirds(weight[:, 0])),
        *same("out", "out_filter_dense", mixer.out),
    ]
    if mixer.short_bias is not None:
        rules.append(Rule("short_bias", "filter.short_filter_bias", (3 * d,), thirds))
    if mixer.skip is not None:
        rules.append(Rule("skip", "filter.D", (d,)))
    return rules + _response_rules(mixer)


def _response_rules(mixer: StripedHyena) -> list[Rule]:
    """Where poles and residues, or taps, come from."""
    if not mixer.modal:
        count, taps = mixer.taps.shape
        return [
            Rule("taps", "filter.h", (count, 1, taps), lambda h: h[:, 0] if taps >= NEWEST_FIRST else h[:, 0].flip(-1))
        ]
    count, modes = mixer.log_poles.shape[:2]
    if mixer.log_poles.ndim == 2:
        return [
            Rule("log_poles", "filter.log_poles", (count, modes, 1), lambda log_poles: log_poles[..., 0]),
            Rule("residues", "filter.residues", (count, modes)),
        ]
    return [
        Rule("log_poles", "filter.poles", (count, modes, 1, 2), _logarithm),
        Rule("residues", "filter.residues", (count, modes, 1, 2), lambda residues: residues[:, :, 0]),
    ]


def _logarithm(poles: Tensor) -> Tensor:
    """log of complex numbers (f, n, 1, 2), as pairs (f, n, 2)."""
    return torch.view_as_real(torch.complex(poles[:, :, 0, 0], poles[:, :, 0, 1]).log())
