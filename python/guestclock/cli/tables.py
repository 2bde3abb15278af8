"""The documents of `guestclock.inspection` as tables, for people."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from guestclock.cli.shared import shown
from guestclock.inspection.words import duration, instant, to_ns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestclock.inspection import (
        Difference,
        DryRun,
        Inspection,
        Recognised,
        Timeline,
        TimerRecord,
        Verification,
        VmDifference,
        VmRecord,
    )
    from guestclock.inspection.elapsed import Elapsed

_PIPE_COLUMNS = 150
"""A pipe has no width of its own, and 80 columns would break every row."""
_MANY = 40
"""The most rows that a table shows; the rest is counted. --json has all."""
_STYLES = {"off": "dim", "masked": "cyan", "armed": "green", "overdue": "bold red"}


def print_inspection(document: Inspection) -> None:
    """Prints a checkpoint's instant, then its VM, or a row each VM where there are many."""
    stamp, vms, console = document["stamp"], document["vms"], _console()
    one = vms[0] if len(vms) == 1 else None
    rows = [] if one else [("guests", f"{_plural(len(vms), 'VM')}, {_plural(document['vcpus'], 'vCPU')}")]
    rows += _guest(one, stamp) if one else []
    rows = _recognised(document["snapshot"]) + rows if document["snapshot"] else rows
    if stamp is None:
        read = one["reading"] if one else None
        if read is None:
            rows.append(("taken", "nobody knows when: --policy freeze needs no more, and another the --elapsed time"))
        else:
            rows.append(("count and wall clock", f"{read['count']:,} at {instant(read['realtime_ns'])}"))
    else:
        rows += _stamp(stamp)
        rows += [("lacks", lack["text"]) for lack in document["lacks"]]
    rows.append(("size", _plural(document["size_bytes"], "byte")))
    rows += [("register", f"{reg}, which this version doesn't know") for reg in (one["other_registers"] if one else ())]
    rows += [("key", f"{key!r}, which this version doesn't know") for key in document["unknown"]]
    _print_facts(console, "Checkpoint", rows)
    if one is None:
        _print_vms(console, vms)
        return
    _print_timers(console, one["timers"], "Timers, as of the checkpoint")
    first = one["next_deadline"]
    if first is not None:
        when = f"in {duration(first['remaining_ns'])}, by the {first['timer']} of vCPU {first['vcpu']}"
        console.print(shown(f"The next interrupt is due {when}."))


def _recognised(snapshot: Recognised) -> list[tuple[str, str]]:
    ids = {"kvm": "by KVM's ids", "arm": "by Arm's encodings, as they stand"}
    rows = [("recognised", f"{snapshot['format']}, registers {ids.get(snapshot['ids'] or '', 'unnamed')}")]
    rows += [("lacks", lack["text"]) for lack in snapshot["lacks"]]
    rows += [("left out", f"{reg}, which reads 0 and this version doesn't know") for reg in snapshot["left_out"]]
    return rows


def _guest(vm: VmRecord, stamp: dict[str, Any] | None) -> list[tuple[str, str]]:
    hz = vm["frequency_hz"]
    el2 = ", with EL2" if vm["nested"] else ""
    widths = vm["virtual_width_ticks"], vm["physical_width_ticks"]
    known = " and ".join(_ticks(width, hz) for width in dict.fromkeys(widths)) if any(widths) else "the tick"
    rows = [("VM", vm["name"])] if vm["name"] else []
    rows += [
        ("guest", f"{_plural(vm['vcpus'], 'vCPU')}{el2}, counters at {hz:,} Hz"),
        ("CNTVCT_EL0", _count(vm["cntvct"], hz)),
        ("CNTPCT_EL0", _count(vm["cntpct"], hz)),
        ("between the two", _ticks(vm["skew_ticks"], hz) if vm["skew_ticks"] else "nothing: they are equal"),
        ("known to", known),
        (
            "counter offset",
            "one for both: the VM had opted in" if vm["opted_in"] else "each its own: the VM never opted in",
        ),
    ]
    if vm["cntvoff"]:
        low, high = min(vm["cntvoff"]), max(vm["cntvoff"])
        rows.append(("CNTVOFF_EL2", f"{low:,} ticks" if low == high else f"{low:,} to {high:,} ticks"))
    if vm["backlog"]:
        rows.append(("backlog", _ticks(vm["backlog"]["remaining_ticks"], hz)))
    if vm["interrupts"]:
        rows.append(("interrupts", ", ".join(f"{timer} {irq}" for timer, irq in vm["interrupts"].items())))
    if vm["vmclock_address"] is not None:
        rows.append(("vmclock page", f"at {vm['vmclock_address']:#x}"))
    stolen = [f"{address:#x}" for address in vm["stolen_time"] if address is not None]
    if stolen:
        rows.append(("stolen time", f"{_plural(len(stolen), 'record')}, the first at {stolen[0]}"))
    if vm["stopped_before_ticks"] is not None and stamp is not None:
        rows.append(("last vCPU stopped", f"{_ticks(vm['stopped_before_ticks'], stamp['frequency_hz'])} before"))
    return rows


def _print_vms(console: Console, vms: list[VmRecord]) -> None:
    """Prints a row each VM."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("VM", overflow="fold")
    for heading in ("vCPUs", "Hz", "CNTVCT_EL0"):
        table.add_column(heading, justify="right")
    table.add_column("opted in")
    for heading in ("timers on", "next due", "backlog"):
        table.add_column(heading, justify="right")
    for vm in vms[:_MANY]:
        first, backlog = vm["next_deadline"], vm["backlog"]
        table.add_row(
            shown(vm["name"] or "(no name)"),
            f"{vm['vcpus']:,}{', with EL2' if vm['nested'] else ''}",
            f"{vm['frequency_hz']:,}",
            f"{vm['cntvct']:,}",
            "yes" if vm["opted_in"] else "no",
            f"{sum(timer['state'] != 'off' for timer in vm['timers']):,}",
            f"in {duration(first['remaining_ns'])}" if first else "",
            duration(to_ns(backlog["remaining_ticks"], vm["frequency_hz"])) if backlog else "",
        )
    if vms:
        console.print(table)
    _print_rest(console, len(vms), "VMs")


def print_dry_run(document: DryRun) -> None:
    """Prints what a restore would do, or why it is refused."""
    console = _console()
    target, planned = document["target"], document["plan"]
    el2 = ", with EL2" if target["nested"] else ""
    vm = f"a model of {_plural(target['vcpus'], 'vCPU')}{el2} under Linux {target['kernel']}"
    rows = [("target", f"{vm}, over the counter {target['counter']} at {target['frequency_hz']:,} Hz")]
    if planned is not None:
        rows += _plan(planned)
    _print_facts(console, "A dry run: nothing is restored", rows)
    refused = document["refused"]
    if refused is not None:
        console.print(shown(f"Refused: {refused['error']}. ", style="bold red") + shown(refused["message"]))
    if planned is not None:
        for warning in planned["warnings"]:
            console.print(shown("Warning: ", style="yellow") + shown(warning["text"]))
        _print_timers(console, document["timers"], "Timers, as the guest would find them")


def print_difference(document: Difference) -> None:
    """Prints the time between two checkpoints of each VM, and each value that differs."""
    console, vms = _console(), document["vms"]
    if len(vms) == 1:
        _print_facts(console, "From A to B", _elapsed(vms[0]["elapsed"]))
    elif vms:
        _print_elapsed(console, vms)
    for alone, where in ((document["only_in_one"], "A"), (document["only_in_other"], "B")):
        if alone:
            more = f", and {len(alone) - _MANY:,} more" if len(alone) > _MANY else ""
            said = ", ".join(name or "(no name)" for name in alone[:_MANY])
            console.print(shown(f"Only in {where}: {said}{more}."))
    if document["equal"]:
        console.print(shown("They are equal.", style="green"))
        return
    rows = [("", entry) for entry in document["differences"]]
    rows += [(vm["name"], entry) for vm in vms for entry in vm["differences"]]
    table = Table(box=box.SIMPLE_HEAD)
    if len(vms) > 1:
        table.add_column("VM", overflow="fold")
    table.add_column("what", overflow="fold")
    for heading in ("A", "B", "B - A"):
        table.add_column(heading, justify="right", overflow="fold")
    for name, entry in rows[:_MANY]:
        difference = entry["difference"]
        table.add_row(
            *([shown(name)] if len(vms) > 1 else []),
            shown(entry["what"]),
            shown(_value(entry["one"])),
            shown(_value(entry["other"])),
            "" if difference is None else f"{difference:+,}",
        )
    if rows:
        console.print(table)
    _print_rest(console, len(rows), "differences")


def _print_elapsed(console: Console, vms: list[VmDifference]) -> None:
    """Prints a row each VM: what passed on its host, and what it saw."""
    table = Table(title="From A to B", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("VM", overflow="fold")
    for heading in ("host", "guest", "hidden from it", "known to", "differences"):
        table.add_column(heading, justify="right")
    for vm in vms[:_MANY]:
        passed = vm["elapsed"]
        times = (passed["host_ns"], passed["guest_ns"], passed["hidden_ns"], passed["known_to_ns"])
        said = ("" if ns is None else duration(ns) for ns in times)
        table.add_row(shown(vm["name"] or "(no name)"), *said, f"{len(vm['differences']):,}")
    console.print(table)
    _print_rest(console, len(vms), "VMs")


def print_verification(document: Verification) -> None:
    """Prints a row a file."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("file", overflow="fold")
    table.add_column("")
    for heading in ("bytes", "VMs", "vCPUs"):
        table.add_column(heading, justify="right")
    table.add_column("why", overflow="fold")
    words = {True: ("intact", "green"), False: ("not intact", "bold red"), None: ("unreadable", "yellow")}
    for record in document["files"]:
        word, style = words[record["intact"]]
        why = f"{record['error']}: {record['message']}" if record["error"] else "; ".join(record["notes"])
        numbers = ("" if n is None else f"{n:,}" for n in (record["size_bytes"], record["vms"], record["vcpus"]))
        table.add_row(shown(record["file"]), shown(word, style=style), *numbers, shown(why))
    _console().print(table)


def print_timeline(document: Timeline) -> None:
    """Prints the stretches between the checkpoints."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("from", overflow="fold")
    table.add_column("to", overflow="fold")
    for heading in ("host", "guest", "hidden from it", "known to"):
        table.add_column(heading, justify="right")
    table.add_column("the guest")
    names = [point["name"] for point in document["points"]]
    styles = {"ran": "green", "paused": "cyan", "gained": "yellow", "went back": "bold red"}
    for stretch, one, other in zip(document["stretches"], names, names[1:], strict=False):
        times = (stretch[key] for key in ("host_ns", "guest_ns", "hidden_ns", "known_to_ns"))
        said = ("" if ns is None else duration(ns) for ns in times)
        table.add_row(shown(one), shown(other), *said, shown(stretch["kind"], style=styles[stretch["kind"]]))
    _console().print(table)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def _print_facts(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(shown(name), shown(value))
    console.print(table)


def _print_timers(console: Console, timers: list[TimerRecord], title: str) -> None:
    """Prints the timers that are on, the overdue first, and the number of the others."""
    order = list(reversed(_STYLES))
    on = sorted(
        (timer for timer in timers if timer["state"] != "off"),
        key=lambda timer: (order.index(timer["state"]), timer["remaining_ticks"]),
    )
    if on:
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("vCPU", justify="right")
        for heading in ("timer", "state"):
            table.add_column(heading)
        for heading in ("CVAL", "ticks left", "due"):
            table.add_column(heading, justify="right")
        for timer in on[:_MANY]:
            table.add_row(
                str(timer["vcpu"]),
                timer["timer"],
                shown(timer["state"], style=_STYLES[timer["state"]]),
                f"{timer['cval']:,}",
                f"{timer['remaining_ticks']:,}",
                _due(timer["remaining_ticks"], timer["remaining_ns"]),
            )
        console.print(table)
        _print_rest(console, len(on), "timers that are on")
    off = sum(timer["state"] == "off" for timer in timers)
    if off:
        console.print(shown(f"{_plural(off, 'timer')} off.", style="dim"))


def _print_rest(console: Console, count: int, what: str) -> None:
    if count > _MANY:
        console.print(shown(f"... and {count - _MANY:,} more {what}: --json has them all.", style="dim"))


def _due(ticks: int, ns: int) -> str:
    if ticks > 0:
        return f"in {duration(ns)}"
    return f"{duration(-ns)} ago" if ticks else "now"


def _stamp(stamp: dict[str, Any]) -> list[tuple[str, str]]:
    synchronised = {True: "synchronised", False: "not synchronised", None: "nobody asked whether it is synchronised"}
    most = stamp["max_error_ns"]
    error = "" if most is None else f", at most {duration(most)} off by its own account"
    leap = "" if stamp["leap"] in {"none", "unknown"} else f", leap second: {stamp['leap']}"
    return [
        ("taken", stamp["realtime"]),
        ("host's counter", f"{stamp['source']} at {stamp['frequency_hz']:,} Hz: {stamp['count']:,}"),
        ("read within", duration(stamp["width_ns"])),
        ("wall clock", f"{synchronised[stamp['synchronized']]}{error}{leap}"),
    ]


def _plan(planned: dict[str, Any]) -> list[tuple[str, str]]:
    hz = planned["frequency_hz"]
    policy = planned["policy"]
    cap = policy.get("max_ns")
    evidence = planned["evidence"]
    known = {True: "yes", False: "no", None: "unknown"}
    cut = ", cut short by the policy" if planned["capped"] else ""
    backlog = planned["backlog"]
    rows = [
        ("policy", policy["name"] if cap is None else f"{policy['name']}, at most {duration(cap)}"),
        ("intent", planned["intent"] or "not said"),
        ("method", planned["method"]),
        ("elapsed time by", (planned["elapsed_by"] or "nobody knows").replace("-", " ")),
        (
            "its evidence",
            ", ".join(
                f"{name.replace('_', ' ')}: {known[said]}"
                for name, said in evidence.items()
                if name[-3:] != "_ns" and said in known
            ),
        ),
        (
            "",
            f"the host slept: {evidence['slept']}",
        ),
        (
            "",
            f"off the wall clock by {duration(evidence['disagreement_ns'])} of {duration(evidence['allowed_ns'])}",
        ),
        ("added guest time", f"{_ticks(planned['added_ticks'], hz)}{cut}" if planned["added_ticks"] else "none"),
        ("CNTVCT_EL0", f"{planned['saved']['cntvct']:,} -> {_count(planned['cntvct'], hz)}"),
        ("CNTPCT_EL0", f"{planned['saved']['cntpct']:,} -> {_count(planned['cntpct'], hz)}"),
    ]
    behind = planned["behind_ns"]
    error = "" if behind is None else f", within {duration(planned['behind_error_ns'])}"
    rows.append(("falls behind by", "nobody knows" if behind is None else f"{duration(behind)}{error}"))
    if backlog:
        step, interval = duration(backlog["step_ns"]), duration(backlog["interval_ns"])
        # Until the release the backlog grows, but for a freeze, which keeps an old one.
        more = "" if planned["policy"]["name"] == "freeze" else "at least "
        back = f"{more}{_plural(backlog['steps'], 'step')} of {step}, one every {interval}"
        rate = _thousandths(backlog["rate_permille"])
        rows += [
            ("backlog", _ticks(backlog["remaining_ticks"], hz)),
            ("paid back", f"in {back}: {duration(backlog['duration_ns'])}, at {rate} times the speed"),
        ]
    if planned["jump_ns"]:
        rows.append(("jumps at once by", duration(planned["jump_ns"])))
        rows.append(("", "a Linux guest charges it to the task that ran on each vCPU, which then waits as long"))
        if planned["throttled_ns"] is not None:
            rows.append(("", f"its CPU quota throttles that task for about {duration(planned['throttled_ns'])}"))
        for limit in planned["limits"]:
            certain = limit["reached"] == "certain"
            of = "" if limit["reached"] == "not crossed" else f" for {limit['of']}"
            start = duration(limit["at_ns" if certain else "earliest_ns"])
            rows.append(("", f"{limit['name']} of a Linux guest, from {start}: {limit['reached']}{of}"))
        if steps := planned["in_steps"]:
            step, interval = duration(steps["step_ns"]), duration(steps["interval_ns"])
            back = f"{step} at a time, one every {interval}: {duration(steps['duration_ns'])}"
            rows.append(("", f"by catch-up, instead, it would be {back}"))
    rows.append(("error bound", _ticks(planned["error_bound_ticks"], hz)))
    for term in planned["error_bound_terms"]:
        ticks, ns = term.get("ticks", 0), term.get("ns", 0)
        if ticks or ns:
            size = _plural(ticks, "tick") if ticks else duration(ns)
            rows.append(("", f"{term['what']}: {size} ({term['ground']})"))
    if planned["rate_step_ppb"]:
        size = abs(planned["rate_step_ppb"])
        sign = "-" if planned["rate_step_ppb"] < 0 else "+"
        rows.append(("step in rate", f"{sign}{_thousandths(size)} ppm"))
    for label, facts in (("provided that", "assumptions"), ("can't be kept", "unsupported"), ("slower", "degraded")):
        rows += [
            (label, fact["text"] + (f" ({fact['ground']})" if "ground" in fact else "")) for fact in planned[facts]
        ]
    return rows


def _elapsed(passed: Elapsed) -> list[tuple[str, str]]:
    rows = []
    if passed["host_ns"] is None:
        rows.append(("host", "not known"))
    else:
        rows.append(("host", f"{duration(passed['host_ns'])} by its {passed['host_by']}"))
    guest = "at another frequency" if passed["guest_ns"] is None else duration(passed["guest_ns"])
    rows.append(("guest", f"{passed['guest_ticks']:,} ticks, {guest}"))
    if passed["hidden_ns"] is not None and passed["known_to_ns"] is not None:
        rows.append(("hidden from it", f"{duration(passed['hidden_ns'])}, known to {duration(passed['known_to_ns'])}"))
    return rows


def _count(count: int, hz: int) -> str:
    return f"{count:,}: {duration(to_ns(count, hz))} from 0"


def _ticks(ticks: int, hz: int) -> str:
    return f"{_plural(ticks, 'tick')}, {duration(to_ns(ticks, hz))}"


def _thousandths(number: int) -> str:
    return f"{number // 1000}.{number % 1000:03}"


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}" if abs(count) == 1 else f"{count:,} {what}s"


def _value(value: object) -> str:
    return (
        "none"
        if value is None
        else f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else str(value)
    )
