"""Each code of an error or a diagnostic ends its message, and has its place in docs/refused.md."""

from __future__ import annotations

import inspect
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from guestclock import errors
from guestclock.adapters.unicorn import UnhandledException
from guestclock.errors import GuestClockError, Interrupted, KvmError
from guestclock.types import Diagnostic

ROOT = Path(__file__).parent.parent
ERRORS: list[type[GuestClockError]] = [
    *(kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GuestClockError)),
    UnhandledException,
]


def rust(file: str) -> list[str]:
    """The codes of that file's `fn code`, a `match` that the compiler holds to be exhaustive."""
    source = (ROOT / "rust/core/src" / file).read_text(encoding="utf-8")
    (body,) = re.findall(r"pub const fn code\(&self\) -> &'static str \{(.*?)\n    \}", source, re.DOTALL)
    codes = re.findall(r'=> "([a-z-]+)",', body)
    assert len(codes) == body.count("=>") > 0
    return codes


DIAGNOSTICS = [*rust("restore/words.rs"), *rust("time/stamp.rs")]


def test_no_error_is_forgotten() -> None:
    def below(kind: type[GuestClockError]) -> set[type[GuestClockError]]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    assert {kind for kind in below(GuestClockError) if kind.__module__.startswith("guestclock.")} == set(ERRORS)


def places() -> list[str]:
    tokens = MarkdownIt().parse((ROOT / "docs/refused.md").read_text(encoding="utf-8"))
    return [after.content for before, after in pairwise(tokens) if (before.type, before.tag) == ("heading_open", "h3")]


def test_each_code_has_its_place_and_each_place_a_code() -> None:
    codes = [kind.code for kind in ERRORS] + DIAGNOSTICS
    assert len(set(codes)) == len(codes)
    assert sorted(places()) == sorted(codes)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_a_message_ends_with_the_errors_code(kind: type[GuestClockError]) -> None:
    fields: dict[str, Any] = {"errno": 5} if issubclass(kind, KvmError) else {}
    if issubclass(kind, Interrupted):
        fields = {"state": "paused", "step": "resume", "retry": "resume"}
    assert str(kind("what happened", **fields)).endswith(f" [{kind.code}]")
    assert kind.code.replace("-", "") == kind.__name__.lower()


def test_an_error_of_somebody_elses_has_the_code_of_its_base() -> None:
    class OurRefusal(errors.StalePlan):
        pass

    assert str(OurRefusal("no")) == "no [stale-plan]"


def test_a_diagnostic_ends_with_its_code() -> None:
    assert str(Diagnostic("large-jump", "the guest's time jumps")) == "the guest's time jumps [large-jump]"
