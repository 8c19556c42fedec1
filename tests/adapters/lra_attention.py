"""The attention variants and encoders of github.com/google-research/long-range-arena, with their relatives.

What a file holds is named in its metadata's "source": a class or function of the published code, or the phrase by which
an independent reference describes itself.  The tables map these names to adapters:

    adapters.lra.blocks     full attention, block patterns, sorting and hashing
    adapters.lra.encoders   the models around full attention
    adapters.lra.kernels    linear, low-rank, synthetic and Fourier variants
    adapters.lra.gated      Luna and the gated attention unit
"""

import re
from typing import Any

from adapters import Declined, Published
from adapters.lra import blocks, encoders, gated, kernels

TABLE = blocks.TABLE | encoders.TABLE | kernels.TABLE | gated.TABLE


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for the one entry of the tables that the source names."""
    names = [name for name in TABLE if re.search(rf"\b{re.escape(name)}\b", metadata["source"])]
    assert len(names) == 1, f"{len(names)} adapters ({names}) for {metadata['source']!r}"
    return TABLE[names[0]](config, metadata)
