//! Layout of the vmclock page: sizes, positions and flags, and the constants before `seq_count`.

/// Number of the page's bytes that are defined.
pub const SIZE: usize = 112;

/// Alignment of the page's address, in bytes, so that each field can be stored at once.
pub const ALIGNMENT: usize = 8;

/// Position of `magic` and `size`: one word of 64 bits.
pub const MAGIC_AND_SIZE: usize = 0x00;

/// Position of `version`, `counter_id` and `time_type`: one word of 32 bits.
pub const IDENTITY: usize = 0x08;

/// Position of `seq_count`.
pub const SEQ_COUNT: usize = 0x0c;

/// Position of the body, which extends to the end.
pub const BODY: usize = 0x10;

/// Number of 64-bit words in the body.
pub const WORDS: usize = (SIZE - BODY) / 8;

/// Magic number: "VCLK".
pub const MAGIC: u32 = 0x4b4c_4356;

/// The only version.
pub const VERSION: u16 = 1;

/// Flag VMCLOCK_FLAG_TAI_OFFSET_VALID.
pub const TAI_OFFSET_VALID: u64 = 1 << 0;

/// Flag VMCLOCK_FLAG_PERIOD_ESTERROR_VALID.
pub const PERIOD_ESTERROR_VALID: u64 = 1 << 3;

/// Flag VMCLOCK_FLAG_PERIOD_MAXERROR_VALID.
pub const PERIOD_MAXERROR_VALID: u64 = 1 << 4;

/// Flag VMCLOCK_FLAG_TIME_ESTERROR_VALID.
pub const TIME_ESTERROR_VALID: u64 = 1 << 5;

/// Flag VMCLOCK_FLAG_TIME_MAXERROR_VALID.
pub const TIME_MAXERROR_VALID: u64 = 1 << 6;

/// Flag VMCLOCK_FLAG_TIME_MONOTONIC.
pub const TIME_MONOTONIC: u64 = 1 << 7;

/// Flag VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT.
pub const VM_GEN_COUNTER_PRESENT: u64 = 1 << 8;

/// Flag VMCLOCK_FLAG_NOTIFICATION_PRESENT.
pub const NOTIFICATION_PRESENT: u64 = 1 << 9;

/// Counter of the page's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CounterId {
    /// The Arm virtual counter, as the guest reads it from CNTVCT_EL0.
    ArmVcnt,
    /// No counter: the page has a marker and a generation, and no clock.
    Invalid,
}

impl CounterId {
    /// Status of a page with this counter that has no clock: the one that Linux's driver refuses, if it may have one.
    #[must_use]
    pub const fn without_clock(self) -> Status {
        match self {
            Self::ArmVcnt => Status::Unreliable,
            Self::Invalid => Status::Unknown,
        }
    }
}

/// Time scale of the page's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeType {
    /// UTC, in seconds since 1970.
    Utc,
    /// TAI, in seconds since 1970.
    Tai,
}

/// Status of the page's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// No clock: the page never had one.
    Unknown,
    /// The equation holds, and its source is synchronised.
    Synchronized,
    /// The equation holds, and its source was synchronised and is no longer.
    FreeRunning,
    /// The equation isn't reliable. This is the one status that Linux's driver refuses by itself.
    Unreliable,
}

impl Status {
    pub(super) const ALL: [Self; 4] = [Self::Unknown, Self::Synchronized, Self::FreeRunning, Self::Unreliable];

    /// Code of the status in the page.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Synchronized => 2,
            Self::FreeRunning => 3,
            Self::Unreliable => 4,
        }
    }

    /// Name of the status: `unknown`, `synchronized`, `freerunning` or `unreliable`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Synchronized => "synchronized",
            Self::FreeRunning => "freerunning",
            Self::Unreliable => "unreliable",
        }
    }

    /// Returns whether an equation with this status may be used.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        matches!(self, Self::Synchronized | Self::FreeRunning)
    }
}

/// Content of the page before `seq_count`, in the words at [`MAGIC_AND_SIZE`] and [`IDENTITY`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Size of the region that contains the page, in bytes.
    pub size: u32,
    /// Counter of the clock.
    pub counter: CounterId,
    /// Time scale of the time.
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

    /// Returns the header in these words; `None` if this module doesn't write such a header.
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
