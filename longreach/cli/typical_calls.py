"""A call of every operator as models make it, by which `longreach doctor` tells the backend that is taken.

Axes: b batch, l length, d channels, h heads, n modes.
"""

from collections.abc import Callable
from typing import Any

import torch

from longreach.ops import AttentionMask, ModalSystem

WIDTH, LENGTH, HEADS, STATE, VOCABULARY = 256, 8192, 4, 16, 512
"""Sizes of the typical calls."""


def _signal(device: torch.device) -> torch.Tensor:
    return torch.zeros(1, WIDTH, LENGTH, device=device, requires_grad=True)


def _ratio(device: torch.device) -> torch.Tensor:
    return torch.zeros(WIDTH, STATE, dtype=torch.complex64, device=device, requires_grad=True)


def _attention_call(device: torch.device) -> tuple[Any, ...]:
    heads = torch.zeros(1, HEADS, LENGTH, WIDTH // HEADS, device=device, requires_grad=True)
    return heads, heads, heads, AttentionMask(causal=True)


def _heads(device: torch.device) -> torch.Tensor:
    return torch.zeros(1, HEADS, LENGTH, WIDTH // HEADS, device=device, requires_grad=True)


def _matrix_memory(device: torch.device) -> torch.Tensor:
    return torch.zeros(1, HEADS, WIDTH // HEADS, WIDTH // HEADS, device=device)


def _wkv_call(device: torch.device) -> tuple[Any, ...]:
    from longreach.ops.wkv_state import init_wkv

    channels = torch.zeros(WIDTH, device=device, requires_grad=True)
    values = torch.zeros(1, LENGTH, WIDTH, device=device, requires_grad=True)
    return channels, channels, values, values, init_wkv(1, channels)


def _block_attention_call(device: torch.device) -> tuple[Any, ...]:
    from longreach.ops.block_attention import band_of_blocks

    return (*_attention_call(device)[:3], band_of_blocks(LENGTH // STATE, 1, device=device), STATE)


def _relative_attention_call(device: torch.device) -> tuple[Any, ...]:
    size = LENGTH // STATE
    chunks = torch.zeros(STATE, size, WIDTH, device=device, requires_grad=True)
    return chunks, chunks, chunks, chunks.new_zeros(2 * size - 1, requires_grad=True), AttentionMask(causal=True)


def _dplr_call(device: torch.device) -> tuple[Any, ...]:
    from longreach.ops.dplr import DPLRSystem

    modes, some = _ratio(device), _ratio(device)[None]
    return DPLRSystem(modes, some, some, modes, some), LENGTH


TYPICAL_CALLS: dict[str, Callable[[torch.device], tuple[Any, ...]]] = {
    "attention": _attention_call,
    "block_attention": _block_attention_call,
    "butterfly_multiply": lambda device: (
        torch.zeros(LENGTH, 1, WIDTH, device=device, requires_grad=True),
        torch.zeros(1, 1, WIDTH.bit_length() - 1, WIDTH // 2, 2, 2, device=device, requires_grad=True),
    ),
    "cauchy": lambda device: (
        _ratio(device)[None],
        torch.ones(LENGTH, dtype=torch.complex64, device=device),
        _ratio(device),
    ),
    "cooley_tukey": lambda device: (
        _signal(device),
        [torch.zeros(2, 2, dtype=torch.complex64, device=device)] * (LENGTH.bit_length() - 1),
    ),
    "delta_rule": lambda device: (*[_heads(device)] * 6, _matrix_memory(device)),
    "dplr_kernel": _dplr_call,
    "gated_linear_attention": lambda device: (
        *[_heads(device)] * 4,
        torch.zeros(HEADS, WIDTH // HEADS, device=device),
        _matrix_memory(device),
    ),
    "linear": lambda device: (
        torch.zeros(LENGTH, WIDTH, device=device, requires_grad=True),
        torch.zeros(WIDTH, WIDTH, device=device, requires_grad=True),
    ),
    "filter_step": lambda device: (
        torch.zeros(1, WIDTH, device=device),
        torch.zeros(1, WIDTH, 2, device=device),
        torch.zeros(WIDTH, 3, device=device),
        2,
    ),
    "linear_attention": lambda device: _attention_call(device)[:3],
    "block_diagonal": lambda device: (
        torch.zeros(LENGTH, WIDTH, device=device, requires_grad=True),
        torch.zeros(HEADS, WIDTH // HEADS, WIDTH // HEADS, device=device, requires_grad=True),
    ),
    "dense_conv": lambda device: (
        _signal(device)[:, :STATE],
        torch.zeros(STATE, STATE, LENGTH, device=device, requires_grad=True),
    ),
    "linear_cross_entropy": lambda device: (
        torch.zeros(LENGTH, WIDTH, device=device, requires_grad=True),
        torch.zeros(VOCABULARY, WIDTH, device=device, requires_grad=True),
        torch.zeros(LENGTH, dtype=torch.int64, device=device),
    ),
    "linear_scan": lambda device: (
        torch.zeros(1, LENGTH, WIDTH, device=device, requires_grad=True),
        torch.zeros(1, LENGTH, WIDTH, device=device, requires_grad=True),
        torch.zeros(1, WIDTH, device=device),
    ),
    "liquid_scan": lambda device: (
        _signal(device),
        torch.zeros(1, 2, WIDTH, STATE, dtype=torch.complex64, device=device),
        ModalSystem(_ratio(device), _ratio(device), _ratio(device)),
    ),
    "damped_average": lambda device: (
        torch.zeros(1, LENGTH, WIDTH, device=device, requires_grad=True),
        *(torch.zeros(1, WIDTH, STATE, device=device, requires_grad=True) for _ in range(2)),
        torch.zeros(WIDTH, device=device, requires_grad=True),
    ),
    "long_conv": lambda device: (_signal(device), torch.zeros(WIDTH, LENGTH, device=device, requires_grad=True)),
    "memory_step": lambda device: (
        *[torch.zeros(1, HEADS, WIDTH // HEADS, device=device)] * 3,
        _matrix_memory(device),
    ),
    "modal_step": lambda device: (
        torch.zeros(1, WIDTH, device=device),
        *[torch.zeros(1, WIDTH, STATE, dtype=torch.complex64, device=device)] * 3,
        torch.zeros(WIDTH, STATE, dtype=torch.complex64, device=device),
    ),
    "monarch": lambda device: (
        torch.zeros(LENGTH, WIDTH, device=device, requires_grad=True),
        [torch.zeros(HEADS, WIDTH // HEADS, WIDTH // HEADS, device=device, requires_grad=True)] * 2,
    ),
    "relative_attention": _relative_attention_call,
    "short_conv": lambda device: (_signal(device), torch.zeros(WIDTH, 4, device=device, requires_grad=True)),
    "transposed": lambda device: (_signal(device),),
    "vandermonde": lambda device: (_ratio(device), _ratio(device), LENGTH),
    "vandermonde_adjoint": lambda device: (_signal(device), _ratio(device)),
    "wkv": _wkv_call,
}
"""Operator -> the arguments of a call as a model in training makes it: one sequence of 8,192 positions, 256 wide.

Steps are those of generation."""
