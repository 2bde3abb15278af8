"""The optional extras: the distributions of each, and the command that installs a missing one."""

from __future__ import annotations

from importlib import metadata
from typing import Final

# Extra -> its distributions and their modules. The versions stand in pyproject.toml.
_UNICORN: Final = {"unicorn": "unicorn"}
_PLOT: Final = {"matplotlib": "matplotlib"}
_CLI: Final = {"rich": "rich", "typer": "typer"}
EXTRAS: Final[dict[str, dict[str, str]]] = {
    "unicorn": _UNICORN,
    "plot": _PLOT,
    "cli": _CLI,
    "demo": {**_UNICORN, "keystone-engine": "keystone", **_PLOT, **_CLI},
}


def pip_line(extra: str) -> str:
    """Returns the command that installs an extra."""
    return f"pip install 'guestclock[{extra}]'"


def provides(extra: str, module: str | None) -> bool:
    """True if an extra installs `module` (a dotted name, as in `ModuleNotFoundError.name`)."""
    return module is not None and module.partition(".")[0] in EXTRAS[extra].values()


def installed(extra: str) -> dict[str, str | None]:
    """Returns the version of each of an extra's distributions; None where it isn't installed. Imports none of them."""
    return {name: _version(name) for name in EXTRAS[extra]}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
