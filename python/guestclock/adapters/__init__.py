"""Adapters that put a `ModelVm`'s guest time into an emulator, each imported with its extra when it is used."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from guestclock.adapters import unicorn as unicorn

__all__ = ["unicorn"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> "ModuleType":
        if name in __all__:
            return importlib.import_module(f"guestclock.adapters.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
