//! Effects of a forward jump of the counter on a Linux guest on arm64: the lengths from which it feels the jump, the
//! reasons, and its scheduler's account of it.
//!
//! `docs/limits.md` describes the effects, kernel by kernel. Most of the limits are the guest's settings, at the
//! kernel's defaults unless the caller knows better. Two follow from the kernel's conversion of counts into nanoseconds,
//! `(count * mult) >> shift` in 64 bits, and so from the counter's frequency.

use crate::time::{Frequency, NS_PER_S};
use alloc::vec::Vec;
use core::num::NonZeroU64;

/// Settings of a Linux guest that decide how it takes a jump. The default is the kernel's, without a software watchdog
/// and without a CPU quota.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LinuxGuest {
    /// `kernel.watchdog_thresh` in seconds: half of a soft lockup's threshold; 0 where the detector is off.
    pub watchdog_thresh_s: u32,
    /// `rcupdate.rcu_cpu_stall_timeout` in seconds; 0 where stalls are suppressed.
    pub rcu_stall_s: u32,
    /// `workqueue.watchdog_thresh` in seconds; 0 where workqueues aren't watched.
    pub workqueue_s: u32,
    /// `kernel.hung_task_timeout_secs` in seconds; 0 where the detector is off.
    pub hung_task_s: u32,
    /// The guest's software watchdog, where it has one.
    pub softdog: Option<Softdog>,
    /// The shortest CPU quota of the guest's cgroups (`cpu.max`), where they have one.
    pub cpu_quota: Option<CpuQuota>,
}

/// Watchdog of a guest that resets it by a timer of its own clock (drivers/watchdog/softdog.c).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Softdog {
    /// Time after which it resets the guest, in seconds.
    pub timeout_s: u32,
    /// Longest time between two feedings, in seconds. systemd feeds after half of the timeout.
    pub fed_every_s: u32,
}

/// Quota of a cgroup: CPU time in each period (`cpu.max`, Documentation/admin-guide/cgroup-v2.rst).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CpuQuota {
    /// CPU time that the group gets in a period, in microseconds.
    pub quota_us: NonZeroU64,
    /// The period, in microseconds.
    pub period_us: NonZeroU64,
}

impl Default for LinuxGuest {
    fn default() -> Self {
        Self {
            watchdog_thresh_s: 10,
            rcu_stall_s: 21,
            workqueue_s: 30,
            hung_task_s: 120,
            softdog: None,
            cpu_quota: None,
        }
    }
}

/// Length of a forward jump from which a guest feels it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Limit {
    /// Effect of the jump.
    pub name: &'static str,
    /// The shortest jump that can have the effect, in nanoseconds, rounded down: the guest may already have counted some
    /// time between its last read of the clock and its stop.
    pub earliest_ns: u64,
    /// The length from which the guest's last read of its clock no longer matters, in nanoseconds. A length in ticks is
    /// rounded up: the ticks pass within that time, and not within a nanosecond less.
    pub at_ns: u64,
    /// Guests that have the effect: all of these from `at_ns` on where it is `certain`, and none but these.
    pub of: &'static str,
    /// True if every guest of that kind has the effect, from `at_ns` on.
    pub certain: bool,
}

/// Relation of a jump to a limit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Reached {
    /// The jump doesn't have the effect on a [healthy guest](LinuxGuest::limits).
    No,
    /// The jump can have the effect.
    Possible,
    /// The jump has the effect on every guest of the limit's kind.
    Certain,
}

impl Reached {
    /// Name of the relation: "not crossed", "possible" or "certain".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "not crossed",
            Self::Possible => "possible",
            Self::Certain => "certain",
        }
    }
}

impl Limit {
    /// Returns whether a jump of `jump_ns` nanoseconds has the effect.
    #[must_use]
    pub fn reached_by(&self, jump_ns: u128) -> Reached {
        if jump_ns < self.earliest_ns.into() {
            Reached::No
        } else if self.certain && jump_ns >= self.at_ns.into() {
            Reached::Certain
        } else {
            Reached::Possible
        }
    }
}

/// Range of a clocksource of more than 32 bits (`__clocksource_update_freq_scale`, kernel/time/clocksource.c).
const CLOCKSOURCE_RANGE_S: u64 = 600;

/// Range of sched_clock (`sched_clock_register`, kernel/time/sched_clock.c).
const SCHED_CLOCK_RANGE_S: u64 = 3600;

/// Most that NTP may add to `mult`, in percent (`clocksource_max_adjustment`, kernel/time/clocksource.c).
const MAX_ADJUSTMENT: u64 = 11;

/// Length of the watchdog's second: 2^30 ns (`get_timestamp`, kernel/watchdog.c).
const WATCHDOG_SECOND_NS: u64 = 1 << 30;

impl LinuxGuest {
    /// Returns the limits of the guest, whose counter has this frequency.
    ///
    /// They hold for a healthy guest: an RCU grace period that has already lasted, work that is already pending or a task
    /// that is already blocked is nearer to its limit by that time. A guest's CNTFRQ_EL0 has 32 bits, and a higher frequency counts as 2^32 - 1 Hz.
    ///
    /// ```
    /// use guestclock_core::guest::LinuxGuest;
    /// use guestclock_core::time::Frequency;
    /// let limits = LinuxGuest::default().limits(Frequency::new(24_000_000).unwrap());
    /// assert_eq!((limits[0].name, limits[0].at_ns), ("soft lockup", 21 << 30));
    /// assert_eq!(limits[5].at_ns, 8_796_093_055_792);
    /// ```
    #[must_use]
    pub fn limits(&self, frequency: Frequency) -> Vec<Limit> {
        let hz = frequency.cntfrq().unwrap_or(u32::MAX);
        let clocksource = Conversion::of_clocksource(hz);
        let sched_clock = Conversion::new(hz, SCHED_CLOCK_RANGE_S);
        let setting = |name, s: u32, of| {
            let ns = u64::from(s) * NS_PER_S;
            (s != 0).then_some(Limit { name, earliest_ns: ns, at_ns: ns, of, certain: false })
        };
        [
            self.soft_lockup(),
            setting("RCU stall", self.rcu_stall_s, "a guest with a grace period under way"),
            setting("workqueue lockup", self.workqueue_s, "a guest with work pending"),
            setting("hung task", self.hung_task_s, "a guest with a task in uninterruptible sleep"),
            self.softdog.map(Softdog::limit),
            Some(Limit {
                name: "timekeeping overflow",
                // The most that NTP may have added to `mult`, less the longest sleep that the kernel allows its tick.
                earliest_ns: clocksource.ns(clocksource.max_cycles(MAX_ADJUSTMENT))
                    - clocksource.max_idle_ns(MAX_ADJUSTMENT),
                at_ns: clocksource.overflow_ns(),
                of: "a guest that reads its clock before its first tick, by a kernel before 6.10 or by the vDSO",
                certain: false,
            }),
            Some(Limit {
                name: "sched_clock wrap",
                // The kernel advances sched_clock's epoch each time half of its range has passed.
                earliest_ns: sched_clock.overflow_ns() - sched_clock.max_idle_ns(0),
                at_ns: sched_clock.overflow_ns(),
                of: "every guest",
                certain: true,
            }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Returns the limit of the soft lockup detector (kernel/watchdog.c).
    ///
    /// It reports where more of the watchdog's seconds have begun since a task last touched it than twice the threshold
    /// (`get_softlockup_thresh`), and looks once in a fifth of that (`set_sample_period`), so that the last touch may be
    /// a sample period old at the stop. From one second more on, the jump alone is enough. A vCPU that was idle without
    /// a tick has touched it when it leaves idle (`tick_nohz_update_jiffies`).
    fn soft_lockup(&self) -> Option<Limit> {
        let seconds = 2 * u64::from(self.watchdog_thresh_s);
        (seconds != 0).then(|| Limit {
            name: "soft lockup",
            earliest_ns: seconds * WATCHDOG_SECOND_NS + 1 - seconds * (NS_PER_S / 5),
            at_ns: (seconds + 1) * WATCHDOG_SECOND_NS,
            of: "a busy vCPU",
            certain: true,
        })
    }

    /// Returns the time for which the quota's group is throttled, in nanoseconds, where the task that ran on one vCPU
    /// during the jump is the group's: the kernel charges it the jump, and the group pays it back from the quotas of
    /// later periods. It is less by what was left of a quota, and more by each period whose timer comes late, since a
    /// refill is one quota however many periods it is for (`do_sched_cfs_period_timer`, kernel/sched/fair.c). `None`
    /// without a quota.
    #[must_use]
    pub fn throttled_ns(&self, jump_ns: u128) -> Option<u128> {
        let CpuQuota { quota_us, period_us } = self.cpu_quota?;
        let periods = jump_ns.div_ceil(1000).div_ceil(quota_us.get().into());
        Some(periods.saturating_mul(period_us.get().into()).saturating_mul(1000))
    }
}

/// Steps suggested instead of a jump. A busy Linux guest answered a shell within 0.3 s while such steps were made.
pub const SUGGESTED_STEP_NS: u64 = 400_000_000;

/// Interval of the suggested steps.
pub const SUGGESTED_INTERVAL_NS: u64 = NS_PER_S;

/// A jump made in steps instead, as `CatchUp` does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InSteps {
    /// Length of a step, in nanoseconds: the most that a task is charged at a time.
    pub step_ns: u64,
    /// Time between two steps, in nanoseconds.
    pub interval_ns: u64,
    /// Time until the last step, in nanoseconds.
    pub duration_ns: u128,
}

impl InSteps {
    /// Returns the suggested steps for a jump of `jump_ns` nanoseconds; `None` for one that is no longer than a step.
    #[must_use]
    pub fn of(jump_ns: u128) -> Option<Self> {
        let (step_ns, interval_ns) = (SUGGESTED_STEP_NS, SUGGESTED_INTERVAL_NS);
        let duration_ns = jump_ns.div_ceil(step_ns.into()).saturating_mul(interval_ns.into());
        (jump_ns > step_ns.into()).then_some(Self { step_ns, interval_ns, duration_ns })
    }
}

impl Softdog {
    fn limit(self) -> Limit {
        let left_s = self.timeout_s.saturating_sub(self.fed_every_s);
        Limit {
            name: "softdog",
            earliest_ns: u64::from(left_s) * NS_PER_S,
            at_ns: u64::from(self.timeout_s) * NS_PER_S,
            of: "a guest that has armed it",
            certain: true,
        }
    }
}

/// Conversion of counts into nanoseconds as the kernel does it: `(count * mult) >> shift`.
#[derive(Clone, Copy, Debug)]
struct Conversion {
    hz: u32,
    mult: u64,
    shift: u32,
}

impl Conversion {
    /// Returns the largest shift up to 32, the most exact, whose `mult` leaves room for the counts of `range_s` seconds
    /// in 64 bits (`clocks_calc_mult_shift`, kernel/time/clocksource.c).
    fn new(hz: u32, range_s: u64) -> Self {
        let from = u64::from(hz);
        let room = 32 - (64 - ((range_s * from) >> 32).leading_zeros());
        let mult = |shift: u32| ((NS_PER_S << shift) + from / 2) / from;
        let shift = (0..=32).rev().find(|shift| mult(*shift) >> room == 0).unwrap_or(0);
        Self { hz, mult: mult(shift), shift }
    }

    /// Returns a clocksource's conversion, halved until the most that NTP may add fits in its 32 bits too
    /// (`__clocksource_update_freq_scale`). The counter's own width (`arch_counter_get_width`, 56 bits and more)
    /// doesn't matter at any frequency.
    fn of_clocksource(hz: u32) -> Self {
        let mut this = Self::new(hz, CLOCKSOURCE_RANGE_S);
        while this.mult + this.adjustment(MAX_ADJUSTMENT) > u64::from(u32::MAX) {
            this = Self { mult: this.mult >> 1, shift: this.shift - 1, ..this };
        }
        this
    }

    const fn adjustment(self, percent: u64) -> u64 {
        self.mult * percent / 100
    }

    /// Returns the largest count that doesn't overflow with `mult` adjusted upwards (`clocks_calc_max_nsecs`).
    const fn max_cycles(self, percent: u64) -> u64 {
        u64::MAX / (self.mult + self.adjustment(percent))
    }

    /// Returns half of the time that this count takes with `mult` adjusted downwards (the same function).
    const fn max_idle_ns(self, percent: u64) -> u64 {
        (self.max_cycles(percent) * (self.mult - self.adjustment(percent))) >> self.shift >> 1
    }

    /// Returns the time until the first count whose product with `mult` leaves 64 bits, rounded up.
    fn overflow_ns(self) -> u64 {
        let count = (1_u128 << 64).div_ceil(self.mult.into());
        let ns = (count * u128::from(NS_PER_S)).div_ceil(self.hz.into());
        u64::try_from(ns).expect("it is about 2^(64 - shift), and shift is at least 1")
    }

    /// Returns the time that `count` takes, rounded down.
    fn ns(self, count: u64) -> u64 {
        let ns = u128::from(count) * u128::from(NS_PER_S) / u128::from(self.hz);
        u64::try_from(ns).expect("no more than until the overflow")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use proptest::prelude::*;

    fn of(hz: u64) -> [Limit; 6] {
        LinuxGuest::default().limits(Frequency::new(hz).unwrap()).try_into().unwrap()
    }

    /// Kernels print these at boot, in logs that people have published: `max_cycles` and `max_idle_ns` of
    /// `arch_sys_counter`, and the time after which `sched_clock` "wraps".
    #[test]
    fn kernels_have_printed_the_same() {
        let logs = [
            (8_000_000, 0x1d85_4df40, 440_795_202_120, 2_199_023_255_500),
            (10_000_000, 0x2_4e6a_1710, 440_795_202_120, 4_398_046_511_100),
            (13_000_000, 0x2_ff89_eacb, 440_795_202_429, 4_398_046_511_101),
            (19_200_000, 0x4_6d98_7e47, 440_795_202_767, 4_398_046_511_078),
            (24_000_000, 0x5_88fe_9dc0, 440_795_202_592, 4_398_046_511_097),
            (50_000_000, 0xb_8812_736b, 440_795_202_655, 4_398_046_511_100),
            (54_000_000, 0xc_743c_e346, 440_795_203_123, 4_398_046_511_102),
            (62_500_000, 0x1c_d42e_208c, 881_590_405_314, 4_398_046_511_096),
            (1_200_000_000, 0x114_c1bb_beec, 440_795_229_572, 2_199_023_255_551),
        ];
        for (hz, max_cycles, max_idle_ns, wraps_every_ns) in logs {
            let clocksource = Conversion::of_clocksource(hz);
            let printed = (clocksource.max_cycles(MAX_ADJUSTMENT), clocksource.max_idle_ns(MAX_ADJUSTMENT));
            assert_eq!(printed, (max_cycles, max_idle_ns), "{hz} Hz");
            assert_eq!(Conversion::new(hz, SCHED_CLOCK_RANGE_S).max_idle_ns(0), wraps_every_ns, "{hz} Hz");
        }
    }

    /// Computed from the kernel's text, statement by statement, in Python's integers.
    const TABLE: [(u64, [u64; 4]); 7] = [
        (24_000_000, [1_099_511_627_292, 549_755_813_408, 8_796_093_055_792, 4_398_046_544_695]),
        (25_000_000, [1_099_511_627_800, 549_755_813_874, 8_796_093_022_240, 4_398_046_511_140]),
        (62_500_000, [2_199_023_255_552, 1_099_511_627_774, 8_796_093_022_208, 4_398_046_511_112]),
        (83_333_333, [1_099_511_626_723, 549_755_812_929, 8_796_093_057_397, 4_398_046_546_297]),
        (100_000_000, [1_099_511_627_780, 549_755_813_885, 8_796_093_022_210, 4_398_046_511_110]),
        (1_000_000_000, [2_199_023_255_552, 1_099_511_627_776, 8_796_093_022_208, 4_398_046_511_105]),
        (1_050_000_000, [1_099_511_624_500, 549_755_810_936, 4_398_046_773_249, 2_199_023_517_698]),
    ];

    #[test]
    fn the_table_holds() {
        for (hz, expected) in TABLE {
            let [.., timekeeping, sched_clock] = of(hz);
            let ours = [timekeeping.at_ns, timekeeping.earliest_ns, sched_clock.at_ns, sched_clock.earliest_ns];
            assert_eq!(ours, expected, "{hz} Hz");
        }
    }

    #[test]
    fn the_page_has_the_values() {
        let page = include_str!("../../../../docs/limits.md").split_whitespace().collect::<Vec<_>>().join(" ");
        let seconds = |ns: u64| {
            let tenths = (ns + 50_000_000) / 100_000_000;
            format!("{} {:03}.{}", tenths / 10_000, tenths / 10 % 1000, tenths % 10)
        };
        let values = |limit: usize| {
            let all = TABLE.map(|(hz, _)| of(hz)[limit].at_ns);
            let (least, most) = (all.into_iter().min().unwrap(), all.into_iter().max().unwrap());
            let between = |ns: &u64| [least, most].map(seconds).contains(&seconds(*ns));
            assert!(all.iter().all(between));
            [least, most].map(seconds)
        };
        let ([least, most], [soonest, latest]) = (values(4), values(5));
        let told = format!("{least} or {most} s for timekeeping, {latest} or {soonest} s for sched_clock");
        assert!(page.contains(&told), "docs/limits.md doesn't say {told:?}");
    }

    #[test]
    fn settings_are_the_kernels_at_any_frequency() {
        let [soft_lockup, rcu, workqueue, hung, ..] = of(1);
        assert_eq!((soft_lockup.at_ns, soft_lockup.earliest_ns), (22_548_578_304, 17_474_836_481));
        let earliest = [rcu, workqueue, hung].map(|limit| limit.earliest_ns);
        assert_eq!(earliest, [21_000_000_000, 30_000_000_000, 120_000_000_000]);
        let names = of(1).map(|limit| limit.name);
        let (detectors, conversions) = names.split_at(4);
        assert_eq!(detectors, ["soft lockup", "RCU stall", "workqueue lockup", "hung task"]);
        assert_eq!(conversions, ["timekeeping overflow", "sched_clock wrap"]);
    }

    /// The watchdog to the nanosecond: no jump below the earliest fires, the earliest can, and the limit always does.
    #[test]
    fn the_soft_lockup_may_come_a_sample_period_early() {
        for thresh in [1, 10, 30, 60] {
            let fires = |touched: u64, jump: u64, age: u64| (touched + age + jump) >> 30 > (touched >> 30) + 2 * thresh;
            let guest = LinuxGuest { watchdog_thresh_s: u32::try_from(thresh).unwrap(), ..LinuxGuest::default() };
            let Limit { earliest_ns, at_ns, .. } = guest.limits(Frequency::new(1).unwrap())[0];
            let sample_period_ns = 2 * thresh * NS_PER_S / 5;
            // The watchdog was touched at the very end of one of its seconds, and the guest stopped just before the
            // next sample.
            let touched = (5 << 30) - 1;
            assert!(fires(touched, earliest_ns, sample_period_ns));
            assert!(!fires(touched, earliest_ns - 1, sample_period_ns));
            // It was touched at the very beginning of one, just before the stop.
            assert!(fires(5 << 30, at_ns, 0));
            assert!(!fires(5 << 30, at_ns - 1, 0));
        }
    }

    #[test]
    fn detectors_that_are_off_have_no_limit() {
        let guest = LinuxGuest::default();
        let off = LinuxGuest { watchdog_thresh_s: 0, rcu_stall_s: 0, workqueue_s: 0, hung_task_s: 0, ..guest };
        let names = off.limits(Frequency::new(1).unwrap()).iter().map(|limit| limit.name).collect::<Vec<_>>();
        assert_eq!(names, ["timekeeping overflow", "sched_clock wrap"]);
    }

    #[test]
    fn a_watchdog_resets_the_guest_between_what_may_be_left_and_its_timeout() {
        let softdog = Some(Softdog { timeout_s: 60, fed_every_s: 30 });
        let limits = LinuxGuest { softdog, ..LinuxGuest::default() }.limits(Frequency::new(1).unwrap());
        let reached = |jump_s: u128| limits[4].reached_by(jump_s * u128::from(NS_PER_S)).name();
        assert_eq!((limits[4].name, limits.len()), ("softdog", 7));
        assert_eq!([29, 30, 59, 60].map(reached), ["not crossed", "possible", "possible", "certain"]);
    }

    #[test]
    fn only_what_depends_on_the_jump_alone_is_certain() {
        let reached = of(62_500_000).map(|limit| limit.reached_by(u128::MAX).name());
        assert_eq!(reached, ["certain", "possible", "possible", "possible", "possible", "certain"]);
    }

    /// One busy loop in a group of `cpu.max 50000 100000` was throttled for 9.88 s after a jump of 5 s.
    #[test]
    fn a_quota_is_paid_back_from_later_periods() {
        let [quota_us, period_us] = [50_000, 100_000].map(|us| NonZeroU64::new(us).unwrap());
        let guest = LinuxGuest { cpu_quota: Some(CpuQuota { quota_us, period_us }), ..LinuxGuest::default() };
        assert_eq!(guest.throttled_ns(5_000_000_000), Some(10_000_000_000));
        assert_eq!((guest.throttled_ns(0), guest.throttled_ns(1)), (Some(0), Some(100_000_000)));
        assert_eq!(LinuxGuest::default().throttled_ns(5_000_000_000), None);
    }

    #[test]
    fn steps_take_an_interval_each() {
        assert_eq!(InSteps::of(SUGGESTED_STEP_NS.into()), None);
        let steps = InSteps::of(u128::from(SUGGESTED_STEP_NS) + 1).unwrap();
        assert_eq!((steps.step_ns, steps.duration_ns), (SUGGESTED_STEP_NS, 2 * u128::from(SUGGESTED_INTERVAL_NS)));
    }

    #[test]
    fn higher_frequencies_count_as_the_highest_that_a_guest_can_have() {
        assert_eq!(of(u64::MAX), of(u32::MAX.into()));
    }

    fn frequencies() -> impl Strategy<Value = u32> {
        prop_oneof![1..=u32::MAX, 1_000_000..=1_100_000_000_u32, 1..=1000_u32, Just(u32::MAX)]
    }

    proptest! {
        /// With `mult` as it is, nothing overflows just below the limit, and at the limit it does.
        #[test]
        fn overflows_at_the_limit_and_not_below(hz in frequencies()) {
            let frequency = Frequency::new(hz.into()).unwrap();
            let [.., timekeeping, sched_clock] = of(hz.into());
            for (limit, conversion) in [
                (timekeeping, Conversion::of_clocksource(hz)),
                (sched_clock, Conversion::new(hz, SCHED_CLOCK_RANGE_S)),
            ] {
                let product = |ns| frequency.ns_to_ticks(ns) * u128::from(conversion.mult);
                prop_assert!(product(limit.at_ns) > u128::from(u64::MAX));
                prop_assert!(product(limit.at_ns - 1) <= u128::from(u64::MAX));
                prop_assert!(limit.earliest_ns < limit.at_ns);
                prop_assert!(u32::try_from(conversion.mult).is_ok());
            }
            prop_assert!(timekeeping.at_ns > CLOCKSOURCE_RANGE_S * NS_PER_S);
            prop_assert!(sched_clock.at_ns > SCHED_CLOCK_RANGE_S * NS_PER_S);
        }

        /// Nothing overflows before the earliest, with all that NTP may add, after the longest sleep, and with no room
        /// to spare.
        #[test]
        fn an_adjusted_clock_holds_until_the_earliest(hz in frequencies()) {
            let conversion = Conversion::of_clocksource(hz);
            let frequency = Frequency::new(hz.into()).unwrap();
            let longest = of(hz.into())[3].earliest_ns + conversion.max_idle_ns(MAX_ADJUSTMENT);
            let mult = conversion.mult + conversion.adjustment(MAX_ADJUSTMENT);
            prop_assert!(u32::try_from(mult).is_ok());
            prop_assert!(frequency.ns_to_ticks(longest) * u128::from(mult) <= u128::from(u64::MAX));
        }

        /// The conversion is exact to half a unit of `mult`, and no larger shift leaves room.
        #[test]
        fn the_conversion_is_the_most_exact_one(
            hz in frequencies(), range_s in prop::sample::select(alloc::vec![600, 3600]),
        ) {
            let Conversion { mult, shift, .. } = Conversion::new(hz, range_s);
            let exact = u128::from(NS_PER_S) << shift;
            prop_assert!((u128::from(mult) * u128::from(hz)).abs_diff(exact) <= u128::from(hz / 2));
            let in_range = u128::from(range_s) * u128::from(hz) * u128::from(mult);
            prop_assert!(in_range <= u128::from(u64::MAX));
            // A `mult` that is twice as exact would need one bit more than the range leaves.
            prop_assert!(shift == 32 || 2 * u128::from(mult) + 1 >= 1 << (32 - bits((range_s * u64::from(hz)) >> 32)));
        }
    }

    fn bits(value: u64) -> u32 {
        64 - value.leading_zeros()
    }
}
