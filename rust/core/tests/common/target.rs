//! A VM to plan for: it can hold what `bare()` has, with a physical timer.

use super::Contents;
use guestclock_core::arch::Abilities;
use guestclock_core::arch::arm64::{Registers, Role, Timer, View, one_reg_id};
use guestclock_core::restore::{Plan, Policy, Refusal, Request, Saved, Target, planning};
use guestclock_core::time::{NamespaceTicks, SourceName, Stamp, StampCount};

/// Timer registers of a plain guest, and those of these roles.
pub(crate) fn registers(more: &[Role]) -> Registers {
    let plain = [
        Role::Count(View::Virtual),
        Role::Count(View::Physical),
        Role::Ctl(Timer::Vtimer),
        Role::Cval(Timer::Vtimer),
        Role::Ctl(Timer::Ptimer),
        Role::Cval(Timer::Ptimer),
    ];
    plain.iter().chain(more).map(|role| one_reg_id(*role)).collect::<Vec<_>>().into()
}

/// A VM of one vCPU that has opted in, on hardware with everything.
pub(crate) fn target() -> Target {
    Target {
        vcpus: 1,
        registers: registers(&[]),
        cntfrq_hz: 62_500_000,
        abilities: Abilities { counter_offset: true, physical_offset_untrapped: Some(true), counter_bits: Some(64) },
        opted_in: true,
        namespace_ticks: NamespaceTicks::NONE,
        generation: 7,
    }
}

/// The VM that hasn't opted in.
pub(crate) fn not_opted_in() -> Target {
    Target { opted_in: false, ..target() }
}

/// The VM of a kernel before 6.4: no offset, and no physical counter that can be set.
pub(crate) fn old() -> Target {
    let abilities = Abilities { counter_offset: false, ..target().abilities };
    let registers = [Role::Count(View::Virtual), Role::Ctl(Timer::Vtimer), Role::Cval(Timer::Vtimer)];
    let registers = registers.map(one_reg_id).to_vec().into();
    Target { opted_in: false, abilities, registers, ..target() }
}

/// The checkpoint of a host whose boot id is known.
pub(crate) fn bare() -> Contents {
    let contents = super::bare();
    let stamp = Stamp { boot_id: Some([0xb0; 16]), ..contents.stamp };
    contents.at(stamp)
}

/// The checkpoint's own counter, so many ticks after it: 16 ns each.
pub(crate) fn here(ticks: u64) -> Stamp {
    bare().stamp.at(StampCount(300 + ticks)).unwrap()
}

/// The checkpoint taken by a counter of another host than [`there`]'s, which knows TAI, within 30 ns.
pub(crate) fn abroad() -> Contents {
    let source = SourceName::fixed("cntvct_el0");
    let stamp = Stamp { source, machine_id: Some([1; 16]), tai_offset_s: Some(37), width_ns: 30, ..bare().stamp };
    bare().at(stamp)
}

/// Another host's counter, `ns` after [`abroad`] by its wall clock, within 50 ns.
pub(crate) fn there(ns: i64) -> Stamp {
    Stamp {
        machine_id: Some([9; 16]),
        boot_id: Some([9; 16]),
        count: StampCount(5),
        realtime_ns: ns,
        width_ns: 50,
        ..abroad().stamp
    }
}

/// A plan for the one VM of a checkpoint; for a VM that stayed where it is, of its time alone.
pub(crate) fn plan(saved: &Contents, to: &Target, at: Stamp, request: Request) -> Result<Plan, Refusal> {
    let checkpoint = saved.made();
    let vm = checkpoint.only().unwrap();
    let saved = if request.in_place { Saved::in_place(vm.stamp(), vm.time()) } else { Saved::from(&vm) };
    planning::plan(&saved, to, at, request)
}

/// A plan for [`target`], so many ticks later.
pub(crate) fn later(saved: &Contents, ticks: u64, request: Request) -> Result<Plan, Refusal> {
    plan(saved, &target(), here(ticks), request)
}

/// A request of this policy alone.
pub(crate) fn asks(policy: Policy) -> Request {
    Request { policy, ..Request::default() }
}
