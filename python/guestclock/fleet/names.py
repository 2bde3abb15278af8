"""Names of a fleet's VMs: which are fit, how a checkpoint's are matched with them, and how a message lists them."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from guestclock._core import GuestVm, _vm_name
from guestclock.errors import NamesDiffer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from guestclock._core import Checkpoint

_Value = TypeVar("_Value")

By: TypeAlias = Literal["name", "position"]
"""Rule by which a checkpoint's VMs are matched with a fleet's."""


def checked(vms: Mapping[str, GuestVm]) -> dict[str, GuestVm]:
    """Returns the VMs, if each is one, and has one name."""
    if not isinstance(vms, Mapping):
        raise TypeError(f"a fleet is a mapping of names to VMs, or a ClockBank, and {reprlib.repr(vms)} is neither")
    names: dict[int, str] = {}
    for name, vm in vms.items():
        if not isinstance(vm, GuestVm):
            raise TypeError(f"the VM {reprlib.repr(name)} is a {type(vm).__name__}, and a fleet is of GuestVms")
        if (other := names.setdefault(id(vm), name)) != name:
            raise ValueError(f"{other!r} and {name!r} are one VM: give it one name")
    return {_vm_name(name): vm for name, vm in vms.items()}


def by_name(values: Mapping[str, _Value] | None) -> Mapping[str, _Value]:
    """Returns the values, if they are by name; none without any."""
    if values is not None and not isinstance(values, Mapping):
        raise TypeError(f"{reprlib.repr(values)} isn't a mapping of names")
    return values or {}


def named(checkpoint: Checkpoint) -> dict[str, Checkpoint]:
    """The saved VM of each name."""
    return dict(zip(checkpoint.names, checkpoint, strict=True))


def saved_by_name(checkpoint: Checkpoint, matched: Mapping[str, str]) -> dict[str, Checkpoint]:
    """The saved VM of each name."""
    saved = named(checkpoint)
    return {name: saved[of] for name, of in matched.items()}


def in_order(names: Iterable[str], values: Mapping[str, _Value]) -> dict[str, _Value]:
    """Returns the values in the order of their names here."""
    return {name: values[name] for name in names if name in values}


def given_twice(names: Sequence[str]) -> list[str]:
    """Returns the names that stand in the list more than once."""
    return [name for name, times in Counter(names).items() if times > 1]


def raise_where_names_differ(
    *, missing: Sequence[str] = (), extra: Sequence[str] = (), unknown: Sequence[str] = (), equal: Sequence[str] = ()
) -> None:
    """Raises NamesDiffer where there is such a name."""
    said = [
        f"{what} {listed(names)}"
        for what, names in (
            ("the checkpoint has no", missing),
            ("the fleet has no", [*extra, *unknown]),
            ("given twice:", equal),
        )
        if names
    ]
    if said:
        way_out = "" if equal or unknown else ': name those that both have with only=, or say by="position"'
        raise NamesDiffer(
            "; ".join(said) + way_out,
            missing=list(missing),
            extra=list(extra),
            unknown=list(unknown),
            equal=list(equal),
        )


_SOME: Final = 8
"""Names in a message; an error's attributes have all."""


def listed(names: Iterable[str]) -> str:
    """Returns the first names for a message, and how many there are besides."""
    every = [reprlib.repr(name) for name in names]
    more = f" and {len(every) - _SOME} more" if len(every) > _SOME else ""
    return ", ".join(every[:_SOME]) + more
