"""Judging the model of a run by its own task: what `longreach evaluate` does where there are no documents to score."""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from longreach.disk import replace_text, writing
from longreach.errors import InputError
from longreach.training import LoadedRun


class Judgement(NamedTuple):
    """What was measured, and the file it was written to."""

    metrics: dict[str, float]
    file: Path


def judge_run(loaded: LoadedRun, about: dict[str, object]) -> Judgement:
    """The task's evaluation and test of a model; written into the run's folder `evaluation`, after `about`.

    Raises InputError if the data is not what the run was trained with.
    """
    task, folder = loaded.experiment.task, loaded.folder
    task.prepare()
    now, before = json.loads(json.dumps(task.record())), folder.read_record().get("data", {})
    if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        raise InputError(
            f"{folder.path} was trained on other data: {', '.join(changed)} differ from its record.json; "
            "restore the data"
        )
    model = loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    with torch.no_grad():
        metrics = {**task.evaluate(model).metrics, **task.test(model)}
    path = folder.evaluation / "metrics.json"
    with writing(path):
        folder.evaluation.mkdir(exist_ok=True)
    replace_text(path, json.dumps({**about, **metrics}, indent=1) + "\n")
    return Judgement(metrics, path)
