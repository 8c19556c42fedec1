"""Text that grows token by token, given out as soon as it is certain.

Two things can be uncertain at the end of the bytes written so far: a character of several bytes that is not complete,
and the beginning of a stop string.  Both are held back, however the tokens cut them.
"""

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns bytes that arrive in pieces into text.

    Args:
        stop: the text ends before whichever of these is complete first, or of two at once before the longer.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = [text.encode() for text in stop]
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The text that has become certain with `piece`; what is not UTF-8 shows as U+FFFD."""
        if self.stopped:
            return ""
        self._held += piece
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)[1]]
            return self.close()
        certain = len(self._held) - self._uncertain()
        text = self._decoder.decode(self._held[:certain])
        self._held = self._held[certain:]
        return text

    def close(self) -> str:
        """What was held back, when nothing more comes."""
        text = self._decoder.decode(self._held, final=True)
        self._held = b""
        return text

    def _uncertain(self) -> int:
        """The length of the longest end of what is held that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
