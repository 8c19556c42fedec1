"""The configurations in which every mixer is tested; whoever adds a mixer or an option adds a line.

Every public mixer has a case, and every option of its constructor is set to each of its choices in some case:
test_mixers.py looks at the signatures.  Sequence lengths in the tests reach 40; options should be smaller than that
where they can be, so that they bite.
"""

from collections.abc import Callable

from longreach.mixers import SequenceMixer

WIDTH = 8
"""d_model in every case."""

CASES: dict[str, Callable[[], SequenceMixer]] = {}

FINITE_STATE: set[str] = set()
"""Cases whose state does not grow with the length of what was read."""
