//! The vmclock page: what the hypervisor tells a guest of its counter, and of real time by it.
//!
//! Linux: include/uapi/linux/vmclock-abi.h, `struct vmclock_abi`; UAPI.13. Where the two disagree this follows Linux's
//! header, as its driver does: VM_GEN_COUNTER_PRESENT is bit 8, and the generation counter stands at 0x68. Little
//! endian:
//!
//! ```text
//! 0x00  u32 magic                  0x28  u64 counter_value
//! 0x04  u32 size                   0x30  u64 counter_period_frac_sec
//! 0x08  u16 version                0x38  u64 counter_period_esterror_rate_frac_sec
//! 0x0a  u8  counter_id             0x40  u64 counter_period_maxerror_rate_frac_sec
//! 0x0b  u8  time_type              0x48  u64 time_sec
//! 0x0c  u32 seq_count              0x50  u64 time_frac_sec
//! 0x10  u64 disruption_marker      0x58  u64 time_esterror_nanosec
//! 0x18  u64 flags                  0x60  u64 time_maxerror_nanosec
//! 0x20  u8  pad[2]                 0x68  u64 vm_generation_counter
//! 0x22  u8  clock_status           0x24  s16 tai_offset_sec
//! 0x23  u8  leap_second_smearing_hint
//! 0x26  u8  leap_indicator         0x27  u8  counter_period_shift
//! ```
//!
//! What stands before `seq_count` is constant for the device's life: a guest looks at it once. The rest is the
//! [`Body`], which [`Shared`] keeps whole for readers that look at any moment.

pub mod equation;

use crate::counter::GuestCount;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::vmclock::equation::{Equation, Period, Time};

/// The bytes of the page that are defined.
pub const SIZE: usize = 112;

/// What the page's address is a multiple of, so that each field can be stored at once.
pub const ALIGNMENT: usize = 8;

/// Where `magic` and `size` are: one word of 64 bits.
pub const MAGIC_AND_SIZE: usize = 0x00;

/// Where `version`, `counter_id` and `time_type` are: one word of 32 bits.
pub const IDENTITY: usize = 0x08;

/// Where `seq_count` is.
pub const SEQ_COUNT: usize = 0x0c;

/// Where the body begins. It goes on to the end.
pub const BODY: usize = 0x10;

/// The 64-bit words of the body.
pub const WORDS: usize = (SIZE - BODY) / 8;

/// "VCLK".
pub const MAGIC: u32 = 0x4b4c_4356;

/// The one version that there is.
pub const VERSION: u16 = 1;

/// VMCLOCK_FLAG_TAI_OFFSET_VALID.
pub const TAI_OFFSET_VALID: u64 = 1 << 0;
/// VMCLOCK_FLAG_PERIOD_ESTERROR_VALID.
pub const PERIOD_ESTERROR_VALID: u64 = 1 << 3;
/// VMCLOCK_FLAG_PERIOD_MAXERROR_VALID.
pub const PERIOD_MAXERROR_VALID: u64 = 1 << 4;
/// VMCLOCK_FLAG_TIME_ESTERROR_VALID.
pub const TIME_ESTERROR_VALID: u64 = 1 << 5;
/// VMCLOCK_FLAG_TIME_MAXERROR_VALID.
pub const TIME_MAXERROR_VALID: u64 = 1 << 6;
/// VMCLOCK_FLAG_TIME_MONOTONIC.
pub const TIME_MONOTONIC: u64 = 1 << 7;
/// VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT.
pub const VM_GEN_COUNTER_PRESENT: u64 = 1 << 8;
/// VMCLOCK_FLAG_NOTIFICATION_PRESENT.
pub const NOTIFICATION_PRESENT: u64 = 1 << 9;

/// What a new equation says anew of the flags.
const OF_AN_EQUATION: u64 = TAI_OFFSET_VALID
    | PERIOD_ESTERROR_VALID
    | PERIOD_MAXERROR_VALID
    | TIME_ESTERROR_VALID
    | TIME_MAXERROR_VALID
    | TIME_MONOTONIC;

/// Which counter the page's clock goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CounterId {
    /// The Arm virtual counter, as the guest reads it from CNTVCT_EL0.
    ArmVcnt,
    /// None: the page has a marker and a generation, and no clock.
    Invalid,
}

/// What the page's time is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeType {
    /// UTC, in seconds since 1970.
    Utc,
    /// TAI, in seconds since 1970.
    Tai,
}

/// How far the page's clock is to be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// No clock: the page never had one.
    Unknown,
    /// The equation holds, and its source is synchronised.
    Synchronized,
    /// The equation holds, and its source was synchronised and is no longer.
    FreeRunning,
    /// Not to be relied on. The one status that Linux's driver refuses by itself.
    Unreliable,
}

impl Status {
    const ALL: [Self; 4] = [Self::Unknown, Self::Synchronized, Self::FreeRunning, Self::Unreliable];

    /// As the page has it.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Synchronized => 2,
            Self::FreeRunning => 3,
            Self::Unreliable => 4,
        }
    }

    /// Its name: `unknown`, `synchronized`, `freerunning` or `unreliable`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Synchronized => "synchronized",
            Self::FreeRunning => "freerunning",
            Self::Unreliable => "unreliable",
        }
    }

    /// Whether an equation under it may be used.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        matches!(self, Self::Synchronized | Self::FreeRunning)
    }
}

/// Why the page is updated, where a guest has to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intent {
    /// The VM moved to another host, and exists once.
    LiveMigration,
    /// The VMM was replaced under a VM that stayed.
    LiveUpdate,
    /// The VM goes on from a saved state, and may have gone on from it before.
    Snapshot,
    /// The VM is one of several from one state.
    Clone,
}

impl Intent {
    /// All of them with their names.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("live-migration", Self::LiveMigration),
        ("live-update", Self::LiveUpdate),
        ("snapshot", Self::Snapshot),
        ("clone", Self::Clone),
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LiveMigration => "live-migration",
            Self::LiveUpdate => "live-update",
            Self::Snapshot => "snapshot",
            Self::Clone => "clone",
        }
    }

    /// Whether the guest is a copy, which changes `vm_generation_counter`: UAPI.13, "VM Generation Count".
    #[must_use]
    pub const fn makes_a_copy(self) -> bool {
        matches!(self, Self::Snapshot | Self::Clone)
    }
}

/// What stands before `seq_count`, as the words at [`MAGIC_AND_SIZE`] and [`IDENTITY`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The size of the region that the page is in, in bytes.
    pub size: u32,
    /// Which counter.
    pub counter: CounterId,
    /// What the time is.
    pub time_type: TimeType,
}

impl Header {
    /// The two words.
    #[must_use]
    pub fn words(self) -> (u64, u32) {
        let counter = match self.counter {
            CounterId::ArmVcnt => 0,
            CounterId::Invalid => 0xff,
        };
        let time_type = match self.time_type {
            TimeType::Utc => 0,
            TimeType::Tai => 1,
        };
        (u64::from(self.size) << 32 | u64::from(MAGIC), time_type << 24 | counter << 16 | u32::from(VERSION))
    }

    /// The header of these words; `None` where it isn't one that this module writes.
    #[must_use]
    pub fn of((magic_and_size, identity): (u64, u32)) -> Option<Self> {
        let size = u32::try_from(magic_and_size >> 32).ok()?;
        let header = [CounterId::ArmVcnt, CounterId::Invalid]
            .into_iter()
            .flat_map(|counter| [TimeType::Utc, TimeType::Tai].map(|time_type| Self { size, counter, time_type }))
            .find(|header| header.words() == (magic_and_size, identity))?;
        (usize::try_from(size).ok()? >= SIZE).then_some(header)
    }
}

/// What stands after `seq_count`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Body([u64; WORDS]);

/// The words of the body that are more than one field, or looked at here.
const DISRUPTION_MARKER: usize = 0;
const FLAGS: usize = 1;
const STATUS_TO_SHIFT: usize = 2;
const COUNTER_VALUE: usize = 3;
const PERIOD: usize = 4;
const PERIOD_ESTERROR: usize = 5;
const PERIOD_MAXERROR: usize = 6;
const TIME_SEC: usize = 7;
const TIME_FRAC: usize = 8;
const TIME_ESTERROR: usize = 9;
const TIME_MAXERROR: usize = 10;
const VM_GENERATION: usize = 11;

impl Body {
    /// A page without a clock. With `notification` the guest is told to expect an interrupt after each update.
    #[must_use]
    pub fn new(disruption_marker: u64, vm_generation: u64, notification: bool) -> Self {
        let mut words = [0; WORDS];
        words[DISRUPTION_MARKER] = disruption_marker;
        words[VM_GENERATION] = vm_generation;
        words[FLAGS] = VM_GEN_COUNTER_PRESENT | if notification { NOTIFICATION_PRESENT } else { 0 };
        Self(words)
    }

    /// The marker that changes when the counter is disrupted.
    #[must_use]
    pub const fn disruption_marker(&self) -> u64 {
        self.0[DISRUPTION_MARKER]
    }

    /// The counter that changes when the guest is a copy.
    #[must_use]
    pub const fn vm_generation(&self) -> u64 {
        self.0[VM_GENERATION]
    }

    /// The flags.
    #[must_use]
    pub const fn flags(&self) -> u64 {
        self.0[FLAGS]
    }

    /// The status; any that this module doesn't write is unreliable.
    #[must_use]
    pub fn status(&self) -> Status {
        let [_, _, code, ..] = self.0[STATUS_TO_SHIFT].to_le_bytes();
        Status::ALL.into_iter().find(|status| status.code() == code).unwrap_or(Status::Unreliable)
    }

    /// The time that a guest works out at this count, as Linux's driver does; `None` where the page has no clock.
    #[must_use]
    pub fn time_at(&self, count: GuestCount) -> Option<Time> {
        let [.., shift] = self.0[STATUS_TO_SHIFT].to_le_bytes();
        let period = Period { frac: self.0[PERIOD], shift };
        let time = Time { sec: self.0[TIME_SEC], frac: self.0[TIME_FRAC] };
        if !self.status().is_valid() {
            return None;
        }
        time.plus(period.times(count.since(GuestCount(self.0[COUNTER_VALUE]))))
    }

    /// The counter was disrupted: another marker.
    pub fn disrupt(&mut self) {
        self.0[DISRUPTION_MARKER] = self.0[DISRUPTION_MARKER].wrapping_add(1);
    }

    /// The guest is a copy.
    pub fn new_generation(&mut self) {
        self.0[VM_GENERATION] = self.0[VM_GENERATION].wrapping_add(1);
    }

    /// Takes the clock away. All of the equation is 0, so that who doesn't look at the status reads a clock that stands
    /// still in 1970, not one that is nearly right.
    pub fn without_clock(&mut self, status: Status) {
        self.0[FLAGS] &= !OF_AN_EQUATION;
        self.0[STATUS_TO_SHIFT] = u64::from_le_bytes([0, 0, status.code(), 0, 0, 0, 0, 0]);
        self.0[COUNTER_VALUE..=TIME_MAXERROR].fill(0);
    }

    /// The guest's counter went forward by so many ticks, and real time didn't: the equation goes along, so that the clock
    /// shows the same as before, and is as sure as before. The counter was disrupted all the same.
    pub fn step(&mut self, ticks: u64) {
        self.disrupt();
        if self.status().is_valid() {
            self.0[COUNTER_VALUE] = self.0[COUNTER_VALUE].wrapping_add(ticks);
        }
    }

    /// Gives the page this clock.
    pub fn with_clock(&mut self, equation: &Equation, status: Status, monotonic: bool) {
        let mut flags = self.0[FLAGS] & !OF_AN_EQUATION;
        let mut claim = |value: Option<u64>, flag| {
            flags |= if value.is_some() { flag } else { 0 };
            value.unwrap_or(0)
        };
        self.0[PERIOD_ESTERROR] = claim(equation.rate_est_error, PERIOD_ESTERROR_VALID);
        self.0[PERIOD_MAXERROR] = claim(equation.rate_max_error, PERIOD_MAXERROR_VALID);
        self.0[TIME_ESTERROR] = claim(equation.est_error_ns, TIME_ESTERROR_VALID);
        self.0[TIME_MAXERROR] = claim(equation.max_error_ns, TIME_MAXERROR_VALID);
        claim(equation.utc_minus_tai_s.map(|_| 0), TAI_OFFSET_VALID);
        self.0[FLAGS] = flags | if monotonic { TIME_MONOTONIC } else { 0 };
        let [tai_low, tai_high] = equation.utc_minus_tai_s.unwrap_or(0).to_le_bytes();
        let (leap, shift) = (equation.leap_indicator, equation.period.shift);
        // The smearing hint stays 0: this time isn't smeared, and what else stands round the guest isn't known here.
        self.0[STATUS_TO_SHIFT] = u64::from_le_bytes([0, 0, status.code(), 0, tai_low, tai_high, leap, shift]);
        self.0[COUNTER_VALUE] = equation.counter_value.0;
        self.0[PERIOD] = equation.period.frac;
        self.0[TIME_SEC] = equation.time.sec;
        self.0[TIME_FRAC] = equation.time.frac;
    }
}

/// A page that others read while it is written: `seq_count`, and the words of the body.
///
/// One thread at a time writes. `seq_count` is odd while it does, and a reader that saw it odd, or saw it change, reads
/// again. Why each ordering is needed:
///
/// - *Odd, then the body.* The fence in [`begin`](Shared::begin) keeps every store of the body behind the odd count:
///   who reads one of them, and then looks at the count past an acquire fence, sees that count or a later one.
/// - *The body, then even.* The last store is a Release: who acquires the even count sees the whole body.
///
/// A guest reads with its architecture's read barriers between, which order no less (`virt_rmb` in Linux's
/// drivers/ptp/ptp_vmclock.c). Sources: C++20 [atomics.fences], which Rust's fences are defined by; UAPI.13, "The
/// vmclock_abi structure".
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// `seq_count`.
    pub seq_count: &'a AtomicU32,
    /// The body.
    pub words: &'a [AtomicU64; WORDS],
}

impl Shared<'_> {
    /// What the page has now, and whether `seq_count` is even. Only where nobody writes.
    #[must_use]
    pub fn load(&self) -> (Body, bool) {
        let whole = u32::from_le(self.seq_count.load(Ordering::Acquire)) & 1 == 0;
        (Body(core::array::from_fn(|at| u64::from_le(self.words[at].load(Ordering::Relaxed)))), whole)
    }

    /// Opens an update: from here to its end readers wait. A count that is odd already stays: nobody closed that
    /// update.
    pub fn begin(&self) {
        let odd = u32::from_le(self.seq_count.load(Ordering::Relaxed)) | 1;
        self.seq_count.store(odd.to_le(), Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// Writes the body, and closes the update.
    pub fn end(&self, body: &Body) {
        for (word, value) in self.words.iter().zip(body.0) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        let odd = u32::from_le(self.seq_count.load(Ordering::Relaxed)) | 1;
        self.seq_count.store(odd.wrapping_add(1).to_le(), Ordering::Release);
    }
}
