//! A VM to plan for: it can hold what `bare()` has, with a physical timer.

use super::bare;
use guestclock_core::arch::Abilities;
use guestclock_core::arch::arm64::{Registers, Role, Timer, View, one_reg_id};
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::restore::{Plan, Policy, Refusal, Request, Target, plan};
use guestclock_core::time::{HostCount, SourceName, Stamp};

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
        cntfrq_hz: bare().cntfrq_hz,
        abilities: Abilities { counter_offset: true, physical_offset_untrapped: Some(true), counter_bits: Some(64) },
        opted_in: true,
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

/// The checkpoint's own counter, so many ticks after it: 16 ns each.
pub(crate) fn here(ticks: u64) -> Stamp {
    bare().host.at(HostCount(300 + ticks)).unwrap()
}

/// The checkpoint taken by a counter of another machine than [`there`]'s, which knows TAI, within 30 ns.
pub(crate) fn abroad() -> Checkpoint {
    let source = SourceName::fixed("cntvct_el0");
    let host = Stamp { source, machine_id: Some([1; 16]), tai_offset_s: Some(37), width_ns: 30, ..bare().host };
    Checkpoint { host, ..bare() }
}

/// Another machine's counter, `ns` after [`abroad`] by its wall clock, within 50 ns.
pub(crate) fn there(ns: i64) -> Stamp {
    let host = abroad().host;
    Stamp { machine_id: Some([9; 16]), count: HostCount(5), realtime_ns: ns, width_ns: 50, ..host }
}

/// A plan for [`target`], so many ticks later.
pub(crate) fn later(checkpoint: &Checkpoint, ticks: u64, request: Request) -> Result<Plan, Refusal> {
    plan(checkpoint, &target(), here(ticks), request)
}

/// A request of this policy alone.
pub(crate) fn asks(policy: Policy) -> Request {
    Request { policy, ..Request::default() }
}
