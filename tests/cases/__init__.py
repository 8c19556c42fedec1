"""The configurations in which mixers are tested: one module for each system or family of systems.

A module defines

    CASES           name -> builds a mixer of width WIDTH; every option of its constructor is set to each of its choices
                    in some case, which test_mixers.py finds out from the signatures
    FINITE_STATE    names of the cases whose state does not grow with what was read; left out if there are none
    LEARNERS        class name -> builds a mixer of a given width that test_learning.py trains to repeat the past
    DETECTORS       the same for mixers that know no positions, which it trains to say what was there; left out if there
                    are none.  Every class is in LEARNERS or DETECTORS

Lengths in the tests reach 40; options should be smaller than that where they can be, so that they bite.
"""

from collections.abc import Callable

from longreach.mixers import SequenceMixer

WIDTH = 8
"""d_model in every case."""

Cases = dict[str, Callable[[], SequenceMixer]]
Learners = dict[str, Callable[[int], SequenceMixer]]
