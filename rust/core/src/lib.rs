//! The semantics of guest time, for guestclock: counters, timers, the model VM, checkpoints and restore plans.
//!
//! No I/O, no clock and no Python: time comes in as an argument or through the [`Counter`](counter::Counter) trait, so a
//! VMM written in Rust can use this crate alone. `no_std` + `alloc` without the default feature `std`.
//!
//! Data flows one way: counter -> checkpoint -> plan -> report. A VMM implements [`Backend`](backend::Backend), which is three
//! of KVM's ioctls and what the VM is; here the model does:
//!
//! ```
//! use guestclock_core::backend::Model;
//! use guestclock_core::capture::{Timers, capture};
//! use guestclock_core::counter::{Counter, Frequency, GuestCount, HostCount, Offset};
//! use guestclock_core::manual::ManualCounter;
//! use guestclock_core::plan::{Policy, Request, Target, plan, same_topology};
//! use guestclock_core::restore::Restore;
//! use guestclock_core::sysreg::View;
//! use guestclock_core::kernel::Behaviours;
//! use guestclock_core::vm::{Config, Vm};
//! use guestclock_core::wire;
//!
//! # fn main() -> Result<(), Box<dyn core::error::Error>> {
//! let counter = ManualCounter::new(HostCount(5000), Frequency::new(62_500_000).unwrap(), 0);
//! let kernel = Behaviours::named("6.12").unwrap();
//! let mut source = Vm::new(counter.frequency(), kernel, Config::default())?;
//! source.create_vcpu(counter.count())?;
//! source.set_counter_offset(Offset(4000), 0)?;
//!
//! let saved = capture(&mut Model { vm: &mut source, counter: &counter }, Timers::Saved)?;
//! let bytes = wire::encode(&saved);
//! counter.advance(1_000_000);
//!
//! let saved = wire::decode(&bytes)?;
//! let mut vm = Vm::new(counter.frequency(), kernel, Config::default())?;
//! vm.create_vcpu(counter.count())?;
//! let mut backend = Model { vm: &mut vm, counter: &counter };
//! let target = Target::of(&mut backend)?;
//! same_topology(&saved, &target)?;
//! let request = Request { policy: Policy::Freeze, ..Request::default() };
//! let intended = plan(&saved, &target, counter.cross_timestamp(), request)?;
//! let mut restore = Restore::prepare(intended, &mut backend)?;
//! restore.apply(&saved, &mut backend)?;
//! let report = restore.release(&saved, 0, &mut backend)?;
//!
//! assert_eq!(report.outcome.cntvct, GuestCount(1000));
//! assert_eq!(vm.count(0, View::Virtual, counter.count())?, GuestCount(1000));
//! # Ok(())
//! # }
//! ```
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]
extern crate alloc;

pub mod access;
mod advice;
pub mod backend;
pub mod bank;
pub mod capture;
pub mod checkpoint;
pub mod checkpoint_set;
pub mod counter;
pub mod deadline;
pub mod debt;
mod display;
pub mod elapsed;
pub mod faulty;
pub mod gate;
pub mod interchange;
pub mod irq;
pub mod kernel;
pub mod lateness;
pub mod limits;
#[cfg(feature = "std")]
pub mod live;
pub mod manual;
pub mod measure;
#[cfg(feature = "std")]
pub mod mirror;
pub mod outlook;
pub mod plan;
pub mod pvtime;
pub mod refusal;
pub mod restore;
pub mod scaled;
mod sync;
pub mod sysreg;
pub mod timer;
pub mod vm;
pub mod vmclock;
pub mod wake;
pub mod wall_clock;
pub mod wire;
mod word;
