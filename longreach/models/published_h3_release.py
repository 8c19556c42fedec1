"""How the released H3 language models are stored: as longreach.models.published_safari says, under older names.

    embedding.*               backbone.embeddings.word_embeddings.*
    s4seq.encoder.*           backbone.*
    s4seq.encoder.norm.*      backbone.ln_f.*                              where a norm comes before each branch
    s4seq.encoder.ln_0.*      backbone.layers.0.norm1.*                    where a norm comes after each sum, so that
    ... layers.i.norm1.*      backbone.layers.i.norm2.*                    each belongs to the branch that follows
    ... layers.i.norm2.*      backbone.layers.(i + 1).norm1.*              (after the last layer: backbone.ln_f.*)

Published: HazyResearch/H3 src/models/ssm_seq.py, which renames them too.
"""

import re
from typing import Any, get_args

from longreach.models import published_safari
from longreach.models.language_model import LanguageModel
from longreach.models.learned_positions import LearnedPositions
from longreach.models.published_hyena import Variant
from longreach.models.published_layout import Config, Layout, Rule, Shapes


def _layout(root: str, *, norms_after: bool) -> Layout:
    """The layout in which norms come after the sums, or that in which they come before the branches."""

    def essential(shapes: Shapes) -> dict[str, int]:
        """The tensors that `infer` looks at, and their numbers of axes; none of them is a norm."""
        needed = published_safari.essential(_renamed(shapes))
        return {_older(name, 0, norms_after=norms_after): axes for name, axes in needed.items()}

    def infer(shapes: Shapes) -> dict[str, Any]:
        """The options of a published model that can be read off its tensors."""
        return published_safari.infer(_renamed(shapes))

    def rules(model: LanguageModel, variant: Variant, config: Config) -> list[Rule]:
        """Where every tensor of a model comes from."""
        backbone: Any = model.backbone
        stack: Any = backbone.inner if isinstance(backbone, LearnedPositions) else backbone
        last = len(stack.blocks) - 1
        found = published_safari.rules(model, variant, config)
        return [rule._replace(theirs=_older(rule.theirs, last, norms_after=norms_after)) for rule in found]

    def tied(shapes: Shapes) -> dict[str, str]:
        """Published names of the same tensor -> the one that the rules read."""
        return {name: "embedding.weight" for name in ("lm_head.weight",) if name in shapes}

    return Layout(
        root, get_args(Variant), essential, infer, published_safari.merge, published_safari.build, rules, tied,
        published_safari.ignored,
    )  # fmt: skip


def _renamed(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes under newer names, but for norms."""
    newer = ((r"^embedding\.", "backbone.embeddings.word_embeddings."), (r"^s4seq\.encoder\.", "backbone."))
    found = dict(shapes)
    for pattern, name in newer:
        found = {re.sub(pattern, name, old): shape for old, shape in found.items()}
    return found


def _older(name: str, last: int, *, norms_after: bool) -> str:
    """The older name of a tensor of a model whose last layer is `last`."""
    if norms_after:
        if match := re.fullmatch(r"backbone\.layers\.(\d+)\.norm([12])\.(\w+)", name):
            layer, norm, kind = int(match[1]), match[2], match[3]
            before = f"layers.{layer - 1}.norm2" if layer else "ln_0"
            name = f"backbone.{before if norm == '1' else f'layers.{layer}.norm1'}.{kind}"
        name = name.replace("backbone.ln_f.", f"backbone.layers.{last}.norm2.")
    name = name.replace("backbone.ln_f.", "backbone.norm.")
    name = name.replace("backbone.embeddings.word_embeddings.", "embedding.")
    return re.sub(r"^backbone\.", "s4seq.encoder.", name)


LAYOUTS = {
    "h3-release": _layout("s4seq.encoder.ln_0.weight", norms_after=True),
    "h3-release-pre-norm": _layout("s4seq.encoder.norm.weight", norms_after=False),
}
