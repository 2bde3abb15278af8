"""Draws of numbers near the ends, where a bound is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random


class Drawing:
    """Something in the making, by dice."""

    dice: random.Random

    def _log(self, most: int, least: int = 0) -> int:
        """From `least` to `most`: each power of two as likely as the next, and the ends more so."""
        ends = self.dice.random()
        if ends < 1 / 20:
            return least if ends < 1 / 40 else most
        return max(least, self.dice.randint(0, most >> self.dice.randrange(most.bit_length())))

    def _within(self, most: int) -> int:
        """Anything from -most to most; the ends every other time, since that is where a bound is broken."""
        return self.dice.choice((-most, most)) if self.dice.random() < 1 / 2 else self.dice.randint(-most, most)
