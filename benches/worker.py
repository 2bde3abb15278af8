"""One build's side of `compare.py`: answers each line of JSON with one.

`{"where": true}`: where the package that is measured stands. `{"row": NAME, "round_ns": N}`: gets that row ready, and
answers with null, or why it can't be. `{"round": true}`: the ns a call of its subject.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import guestclock
from measure import Ratio, calls_within
from rows import ROWS


def ready(name: str, round_ns: int) -> Callable[[], float]:
    """A round of a row's subject."""
    [row] = (row for row in ROWS if isinstance(row, Ratio) and row.name == name)
    sides = row.make()
    several = [side.timed() for side in (sides.subject, *(sides.less or ())[:1])]
    numbers = [calls_within(timed, round_ns) for timed in several]

    def one() -> float:
        taken: list[float] = [timed(number) / number for timed, number in zip(several, numbers, strict=True)]
        return taken[0] - sum(taken[1:])

    return one


def main() -> None:
    """Answer until there are no more questions."""
    one: Callable[[], float] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any
        if "where" in question:
            answer = guestclock.__file__
        elif "row" in question:
            try:
                one, answer = ready(question["row"], question["round_ns"]), None
            except Exception as error:  # noqa: BLE001 (another build may do otherwise than these rows ask)
                one, answer = None, f"{type(error).__name__}: {error}"
        else:
            answer = one() if one is not None else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
