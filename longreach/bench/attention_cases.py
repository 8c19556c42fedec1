"""Attention as `longreach bench ops` measures it: beside torch's own kernel, also where that needs quadratic memory."""

from typing import Any

import torch
from torch import Tensor

from longreach import ops
from longreach.bench import baselines
from longreach.bench.operator_case import MIDDLE, OUR_TORCH, WIDTH, Inputs, OperatorCase, leaf, running_on_torch

UP_TO_32K = (1 << 10, 1 << 12, 1 << 15)


def attention_cases() -> list[OperatorCase]:
    """With and without masks, and attention that is linear."""

    def heads(dtype: torch.dtype) -> Inputs:
        def inputs(length: int, elements: int) -> list[Any]:
            n_heads = max(1, min(8, elements // (256 * length)))
            return [leaf(1, n_heads, length, WIDTH, dtype=dtype) for _ in range(3)]

        return inputs

    def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ops.attention(query, key, value, ops.AttentionMask(causal=True))

    def linear(*inputs: Tensor) -> Tensor:
        return ops.linear_attention(*inputs)[0]

    float32, sdpa = heads(torch.float32), {"SDPA": baselines.causal_attention}
    quadratic = {"all pairs": baselines.quadratic_linear_attention}
    return [
        OperatorCase("attention", "float32", UP_TO_32K, float32, causal, sdpa),
        OperatorCase("attention", "bfloat16", UP_TO_32K, heads(torch.bfloat16), causal, sdpa),
        *_masked_attention(float32),
        OperatorCase("linear_attention", "causal", MIDDLE[:2], float32, linear, quadratic),
    ]


def _masked_attention(heads: Inputs) -> list[OperatorCase]:
    """Calls that torch's kernel refuses, or takes with as many numbers in memory as there are pairs."""

    def window(length: int, elements: int) -> list[Any]:
        return [*heads(length, elements), max(1, length // 16)]

    def packed(length: int, elements: int) -> list[Any]:
        return [*heads(length, elements), torch.arange(length)[None] * 8 // length]

    def biased(length: int, elements: int) -> list[Any]:
        inputs = heads(length, elements)
        return [*inputs, leaf(1, inputs[0].shape[1], length, length)]

    def local(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
        return ops.attention(query, key, value, ops.AttentionMask(causal=True, window=window))

    def documents(query: Tensor, key: Tensor, value: Tensor, segment: Tensor) -> Tensor:
        mask = ops.AttentionMask(causal=True, query_segment=segment, key_segment=segment)
        return ops.attention(query, key, value, mask)

    def with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        return ops.attention(query, key, value, ops.AttentionMask(causal=True), bias=bias)

    def dropped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        options = {"dropout": 0.1, "dropout_seed": torch.tensor(7)}
        return ops.attention(query, key, value, ops.AttentionMask(causal=True), **options)

    masked, torch_form = {"SDPA": baselines.window_attention}, {OUR_TORCH: running_on_torch(dropped)}
    return [
        OperatorCase("attention", "window of 1/16", MIDDLE[:2], window, local, masked),
        OperatorCase("attention", "8 documents", MIDDLE[:2], packed, documents, {"SDPA": baselines.packed_attention}),
        OperatorCase("attention", "bias", MIDDLE[:2], biased, with_bias, {"SDPA": baselines.biased_attention}),
        OperatorCase("attention", "dropout", MIDDLE[:2], heads, dropped, torch_form),
    ]
