"""The examples of safari's `src/dataloaders/synthetics.py`, whose random numbers are not ours: ours solves theirs.

The inputs are read as questions.  Our solutions are the published answers; with the inputs they are the published
labels, of training at every position and of testing where something is asked.  The inputs must be such as ours are:
of the same length, and with the same tokens in the same places.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors
from longreach.tasks.recall import AssociativeRecall, InductionHead
from longreach.tasks.recall.synthetic import IGNORED

BLANK = 0
Ours = AssociativeRecall | InductionHead


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published | Declined:
    """Ours for `ICLDataModule` with these arguments."""
    if config.get("split_train_test"):
        return Declined("the published code takes split_train_test, but ignores it or stops")
    test_length = config.get("test_seq_len") or config["input_seq_len"]
    train, test = _task(config, config["input_seq_len"]), _task(config, test_length)
    return Published(nn.Identity(), lambda theirs: {}, partial(_run, train=train, test=test))


def _task(config: dict[str, Any], length: int) -> Ours:
    sizes = {"length": length, "vocabulary": config["vocab_size"]}
    if config["copy_method"] == "induction_head":
        copied, prompts = config.get("induction_len", 1), config.get("induction_num_triggers", 1)
        return InductionHead(**sizes, n_copied=copied, n_prompts=prompts)
    return AssociativeRecall(**sizes, key_length=config.get("num_keys", 1), missing=config.get("allow_dot", False))


def _run(module: nn.Module, tensors: Tensors, *, train: Ours, test: Ours) -> dict[str, Tensor]:
    inputs = tensors["input_ids"]
    answers, asked = _solve(train, inputs), _solve(test, tensors["test_input_ids"])
    following = torch.cat([inputs[:, 1:], answers[:, -1:]], dim=1)
    labels = torch.where(answers == IGNORED, following, answers)
    output = asked[asked != IGNORED].view(len(asked), -1)
    return {"labels": labels, "test_labels": asked, "output": output.view(tensors["output"].shape)}


def _solve(task: Ours, inputs: Tensor) -> Tensor:
    """Our solution of their examples, after a look at whether they could be ours."""
    assert inputs.shape[1] == task.n_positions
    for tokens in (inputs, task.batch(0, 0, 1).inputs):
        if isinstance(task, AssociativeRecall):
            _check_recall(task, tokens)
        else:
            n_prompts = (tokens == task.prompt).sum(1)
            assert tokens.min() > BLANK
            assert tokens.max() == task.prompt
            assert n_prompts.min() >= 2
            assert n_prompts.max() <= 1 + task.n_prompts
    return torch.from_numpy(task.solve(np.ascontiguousarray(inputs.numpy())))


def _check_recall(task: AssociativeRecall, tokens: Tensor) -> None:
    """Keys are from the first half of the tokens and values from the second, a prompt is behind the pairs."""
    width = task.key_length + 1
    pairs = tokens[:, :-width].unflatten(1, (-1, width))
    keys, values = torch.cat([pairs[..., :-1].flatten(1), tokens[:, 1 - width :]], 1), pairs[..., -1]
    assert keys.min() > BLANK
    assert keys.max() < task.first_value <= values.min()
    assert values.max() < task.prompt
    assert (tokens[:, -width] == task.prompt).all()
