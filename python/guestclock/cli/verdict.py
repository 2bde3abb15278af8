"""The verdict on a payload's log as tables, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from guestclock.cli.shared import shown
from guestclock.units import S

if TYPE_CHECKING:
    from rich.text import Text

    from guestclock.payload import Verdict


def print_verdict(verdict: Verdict) -> None:
    """Prints the measurements, then the findings, on standard output."""
    console = Console()
    hz = verdict.frequency_hz
    vcpus = _table("vCPUs", "samples", "alarms", "interrupts", "longest step, µs", "latest interrupt, µs")
    for figures in verdict.vcpus:
        latest = figures.latest_interrupt_ticks
        vcpus.add_row(
            str(figures.vcpu),
            str(figures.samples),
            str(figures.alarms),
            str(figures.interrupts),
            _us(figures.longest_step_ticks, hz),
            "" if latest is None else _us(latest, hz),
        )
    console.print(vcpus)
    if verdict.skews:
        skews = _table("between", "skew, ticks", "known to, ticks")
        for skew in verdict.skews:
            skews.add_row(skew.between, _marked(skew.error_ticks), str(skew.width_ticks))
        console.print(skews)
    if verdict.gaps:
        gaps = _table("pause", "vCPU", "counter", "guest measured, µs", "hidden, µs", "promised, µs", "error, ticks")
        for gap in verdict.gaps:
            gaps.add_row(
                f"{gap.pause}, step {gap.step}" if gap.step else str(gap.pause),
                str(gap.vcpu),
                gap.view.upper(),
                _us(gap.guest_gap_ticks, hz),
                _range(gap.shift_ticks, hz),
                "" if gap.promised_ticks is None else _range(gap.promised_ticks, hz),
                shown("not judged") if gap.error_ticks is None else _marked(gap.error_ticks),
            )
        console.print(gaps)
    for finding in verdict.findings:
        who = "" if finding.vcpu is None else f"vCPU {finding.vcpu}: "
        much = "" if finding.ticks is None else f" (at least {finding.ticks} ticks, {_us(finding.ticks, hz)} µs)"
        console.print(shown(f"{finding.kind}: ", style="bold red") + shown(f"{who}{finding.what}{much}"))
    if verdict.ok:
        console.print(shown("Nothing is wrong.", style="green"))


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _marked(error: int) -> Text:
    return shown(str(error), style="red" if error else "green")


def _range(ticks: tuple[int, int], hz: int) -> str:
    low, high = (_us(end, hz) for end in ticks)
    return low if low == high else f"{low} to {high}"


def _us(ticks: int, hz: int) -> str:
    return f"{ticks * S // hz // 1_000:,}" if hz else ""
