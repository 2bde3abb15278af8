//! The vmclock page: the equation's arithmetic against big integers, and the words of the body. Its protocol, under
//! loom: in every interleaving, a reader that follows it sees a body that was written whole.

#[cfg(not(loom))]
mod arithmetic {
    use guestclock_core::guest::vmclock::{
        Body, CounterId, Declared, Equation, EquationError, Header, Period, Status, TIME_MAXERROR_VALID, Time,
        TimeType, realtime_at,
    };
    use guestclock_core::time::{Frequency, GuestCount, Leap, Quality, SourceName, Stamp, StampCount, SyncBound};
    use proptest::prelude::*;

    const NS_PER_S: u64 = 1_000_000_000;

    /// `a * b` compared with `c * d`, where none of them fits in 128 bits.
    fn wide(a: u128, b: u128) -> (u128, u128) {
        let low = u128::from(u64::MAX);
        let (a1, a0, b1, b0) = (a >> 64, a & low, b >> 64, b & low);
        let middle = a1 * b0 + ((a0 * b0) >> 64);
        let (middle, carry) = (middle & low, middle >> 64);
        let middle = middle + a0 * b1;
        (a1 * b1 + carry + (middle >> 64), (middle << 64) | ((a0 * b0) & low))
    }

    /// The count 1000 at this wall-clock time, and nobody to vouch for it.
    fn unvouched(hz: u64, realtime_ns: i64) -> Stamp {
        Stamp::unvouched(StampCount(1000), Frequency::new(hz).unwrap(), SourceName::MANUAL, realtime_ns, 0)
    }

    fn here(hz: u64) -> Stamp {
        Stamp { synchronized: Some(true), ..unvouched(hz, 1_700_000_000_123_456_789) }
    }

    fn equation(hz: u64, declared: Declared) -> Equation {
        Equation::new(TimeType::Utc, &here(hz), GuestCount(500), None, declared).unwrap()
    }

    #[test]
    fn a_nanosecond_is_what_the_specification_says() {
        // UAPI.13, "Calculating time", rounded to the nearest instead of up or down.
        assert_eq!(Period::new(1, 1), Some(Period { frac: 0x8970_5f41_36b4_a597, shift: 29 }));
    }

    #[test]
    fn a_period_is_below_a_second() {
        assert_eq!(Period::new(NS_PER_S, 1), None);
        assert_eq!(Period::new(0, 1), None);
        assert_eq!(Period::new(1, 0), None);
        assert_eq!(Period::new(NS_PER_S, 2), Some(Period { frac: 1 << 63, shift: 0 }));
        // Rounds up to a whole second, which has no place.
        assert_eq!(Period::new(u64::MAX, u64::MAX / NS_PER_S + 1).unwrap().shift, 0);
    }

    #[test]
    fn what_is_not_known_is_not_claimed() {
        let bare = equation(62_500_000, Declared::default());
        assert_eq!(
            (bare.est_error_ns, bare.max_error_ns, bare.rate_est_error, bare.rate_max_error),
            (None, None, None, None)
        );
        assert_eq!((bare.utc_minus_tai_s, bare.max_error_ns_at(0)), (None, None));
        let mut body = Body::new(7, 9, false);
        body.with_clock(&bare, Status::Synchronized, false);
        assert_eq!(body.flags(), 1 << 8);
        let known = equation(62_500_000, Declared { max_error_ns: Some(10), ..Declared::default() });
        body.with_clock(&known, Status::Synchronized, false);
        assert_eq!(body.flags(), 1 << 8 | TIME_MAXERROR_VALID);
        body.without_clock(Status::Unreliable);
        assert_eq!((body.flags(), body.time_at(GuestCount(600))), (1 << 8, None));
        assert_eq!((body.disruption_marker(), body.vm_generation()), (7, 9));
    }

    #[test]
    fn who_vouches_for_the_cross_timestamp_vouches_for_the_equation() {
        let sync = SyncBound {
            max_error_ns: 500,
            age_ns: 1_000_000_000,
            holdover_ppb: 30,
            quality: Quality::Chrony,
            tai_offset_s: Some(37),
        };
        let here = Stamp { synchronized: Some(false), ..here(62_500_000) }.vouched_by(sync);
        let of = |declared| Equation::new(TimeType::Tai, &here, GuestCount(0), None, declared);
        // One more for the rounding of the time.
        assert_eq!(of(Declared::default()).unwrap().max_error_ns, Some(531));
        assert_eq!(of(Declared { max_error_ns: Some(7), ..Declared::default() }).unwrap().max_error_ns, Some(8));
        let denied = of(Declared { synchronized: Some(false), ..Declared::default() });
        assert_eq!(denied, Err(EquationError::Unsynchronized));
    }

    #[test]
    fn an_equation_is_refused_where_it_would_be_a_guess() {
        let make = |time_type, here: &Stamp| {
            Equation::new(time_type, here, GuestCount(0), None, Declared::default()).map(|equation| equation.time)
        };
        let here = here(62_500_000);
        let with = |synchronized| Stamp { synchronized, ..here };
        assert_eq!(make(TimeType::Utc, &with(Some(false))), Err(EquationError::Unsynchronized));
        assert_eq!(make(TimeType::Utc, &with(None)), Err(EquationError::Unsynchronized));
        assert_eq!(make(TimeType::Tai, &here), Err(EquationError::TaiUnknown));
        let leaping = Stamp { leap: Leap::InProgress, ..here };
        assert_eq!(make(TimeType::Utc, &leaping), Err(EquationError::InLeapSecond));
        let early = Stamp { realtime_ns: -1, ..here };
        assert_eq!(make(TimeType::Utc, &early), Err(EquationError::BeforeEpoch { realtime_ns: -1 }));
        let known = Stamp { tai_offset_s: Some(37), ..here };
        let (utc, tai) = (make(TimeType::Utc, &known).unwrap(), make(TimeType::Tai, &known).unwrap());
        assert_eq!((utc.sec + 37, utc.frac), (tai.sec, tai.frac));
    }

    #[test]
    fn a_rate_is_measured_only_where_the_wall_clock_ran_undisturbed() {
        let since = unvouched(1_000_000, 1_000_000_000);
        let measure_at = |count: u64, slewed_ns: i64| {
            let here = since.at(StampCount(count)).unwrap();
            let here = Stamp { realtime_ns: here.realtime_ns + slewed_ns, ..here };
            let declared = Declared { synchronized: Some(true), ..Declared::default() };
            Equation::new(TimeType::Utc, &here, GuestCount(0), Some(&since), declared).map(|equation| equation.period)
        };
        let measure = |slewed_ns| measure_at(60_001_000, slewed_ns);
        assert_eq!(measure(0).ok(), Period::new(1000, 1));
        // 100 ppm fast.
        assert_eq!(measure(6_000_000).ok(), Period::new(1_000_100, 1000));
        assert!(measure(30_000_000).is_ok());
        assert!(matches!(measure(30_000_001), Err(EquationError::Stepped { .. })));
        assert!(matches!(measure(-30_000_001), Err(EquationError::Stepped { .. })));
        assert!(matches!(measure_at(999, 0), Err(EquationError::OtherCounter { .. })));
    }

    proptest! {
        #[test]
        fn a_period_is_the_nearest_of_64_bits(ns in 1_u64.., ticks in 1_u64..) {
            let whole = u128::from(ticks) * u128::from(NS_PER_S);
            let Some(Period { frac, shift }) = Period::new(ns, ticks) else {
                prop_assert!(u128::from(ns) * 2 > whole);
                return Ok(());
            };
            prop_assert!(frac >> 63 == 1 || shift == 0);
            // |frac - ns / whole * 2^(64 + shift)| <= 1/2, times 2 * whole.
            let exact = if shift < 64 {
                wide(u128::from(ns) << 1, 1 << (64 + shift))
            } else {
                wide(u128::from(ns) << (shift - 63), 1 << 127)
            };
            let low = wide(u128::from(frac) * 2 - 1, whole);
            let high = wide(u128::from(frac) * 2 + 1, whole);
            prop_assert!(low <= exact && exact <= high, "{low:?} {exact:?} {high:?}");
        }

        #[test]
        fn a_time_goes_there_and_back(ns: u64) {
            let time = Time::from_ns(ns);
            prop_assert_eq!((time.sec, u64::from(time.nanoseconds())), (ns / NS_PER_S, ns % NS_PER_S));
            let exact = u128::from(ns % NS_PER_S) << 64;
            prop_assert_eq!(u128::from(time.frac), exact.div_ceil(u128::from(NS_PER_S)));
        }

        #[test]
        fn the_page_shows_what_the_equation_says(
            hz in 2_u64..=u64::from(u32::MAX),
            age: u64,
            status in prop::sample::select(vec![Status::Synchronized, Status::FreeRunning]),
        ) {
            let declared = Declared { max_error_ns: Some(5), rate_max_error_ppb: Some(50), ..Declared::default() };
            let equation = equation(hz, declared);
            let mut body = Body::new(0, 0, true);
            body.with_clock(&equation, status, true);
            let at = GuestCount(500).after(age);
            prop_assert_eq!(body.time_at(at), equation.time_at(at));
            prop_assert_eq!(body.status(), status);
        }

        #[test]
        fn the_bound_grows_as_the_rate_says(hz in 2_u64..=u64::from(u32::MAX), age: u64, ppb in 0..=1_000_000_000_u64) {
            let declared = Declared { max_error_ns: Some(5), rate_max_error_ppb: Some(ppb), ..Declared::default() };
            let bound = equation(hz, declared).max_error_ns_at(age).unwrap();
            // The truth, rounded up, and 5 + 1 for the time.
            let drift = (u128::from(age) * u128::from(ppb)).div_ceil(u128::from(hz));
            prop_assert!(bound >= drift + 6, "{bound} {drift}");
            let age_ns = u128::from(age) * u128::from(NS_PER_S) / u128::from(hz);
            // At most 3 for the roundings of the sum. The rate's are below 2.5 units of the period's mantissa: half of
            // one for the period's, of which the rate is a part, one for the part's and one that the bound adds. A unit
            // is at most 2^-63 of the period.
            prop_assert!(bound <= drift + 9 + ((age_ns * 5) >> 64), "{bound} {drift}");
        }

        #[test]
        fn any_bytes_are_looked_at_without_a_panic(words: [u64; 12], count: u64, header: (u64, u32)) {
            if let Some(header_of) = Header::of(header) {
                prop_assert_eq!(header_of.words(), header);
            }
            let seq_count = core::sync::atomic::AtomicU32::new(0);
            let words = words.map(core::sync::atomic::AtomicU64::new);
            let (body, _) = guestclock_core::guest::vmclock::Shared { seq_count: &seq_count, words: &words }.load();
            let _ = body.time_at(GuestCount(count));
        }

        #[test]
        fn a_wall_clock_is_set_exactly(
            hz in 1_u64..=u64::from(u32::MAX),
            cntvct: u64,
            ahead in -(1_i64 << 40)..1 << 40,
        ) {
            let here = here(hz);
            let at = GuestCount(cntvct.wrapping_add_signed(ahead));
            let moved = (i128::from(ahead) * i128::from(NS_PER_S)).div_euclid(i128::from(hz));
            let exact = i128::from(here.realtime_ns) + moved;
            let set = realtime_at(&here, GuestCount(cntvct), at);
            let ns = set.map(|(sec, ns)| i128::from(sec) * i128::from(NS_PER_S) + i128::from(ns));
            let settable = i64::try_from(exact).is_ok_and(|ns| ns >= 0);
            prop_assert_eq!(ns, settable.then_some(exact));
        }
    }

    #[test]
    fn headers_go_there_and_back() {
        for counter in [CounterId::ArmVcnt, CounterId::Invalid] {
            for time_type in [TimeType::Utc, TimeType::Tai] {
                let header = Header { size: 4096, counter, time_type };
                assert_eq!(Header::of(header.words()), Some(header));
            }
        }
        let small = Header { size: 111, counter: CounterId::Invalid, time_type: TimeType::Utc };
        assert_eq!(Header::of(small.words()), None);
    }
}

#[cfg(not(loom))]
mod hammered {
    use core::hint::spin_loop;
    use guestclock_core::guest::vmclock::{Body, Shared, WORDS};
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
    use std::thread;

    const UPDATES: u64 = 200_000;

    /// On this machine's own memory order: a reader that follows the specification, beside a writer that never rests.
    #[test]
    fn no_body_is_read_half() {
        let seq_count = AtomicU32::new(0);
        let words: [AtomicU64; WORDS] = core::array::from_fn(|_| AtomicU64::new(0));
        let (reading, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let accepted = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut accepted = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    let before = seq_count.load(Ordering::Relaxed) & !1;
                    fence(Ordering::Acquire);
                    let marker = words[0].load(Ordering::Relaxed);
                    let generation = words[WORDS - 1].load(Ordering::Relaxed);
                    fence(Ordering::Acquire);
                    if before == seq_count.load(Ordering::Relaxed) {
                        assert_eq!(marker, generation, "torn");
                        accepted += 1;
                    }
                    reading.store(true, Ordering::Relaxed);
                }
                accepted
            });
            while !reading.load(Ordering::Relaxed) {
                spin_loop();
            }
            let shared = Shared { seq_count: &seq_count, words: &words };
            for update in 1..=UPDATES {
                shared.begin();
                shared.end(&Body::new(update, update, false));
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap()
        });
        assert!(accepted > 0);
        assert_eq!(u64::from(seq_count.into_inner()), 2 * UPDATES);
    }
}

#[cfg(loom)]
mod protocol {
    use guestclock_core::guest::vmclock::{Body, Shared, WORDS};
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    use loom::thread;

    struct Page {
        seq_count: AtomicU32,
        words: [AtomicU64; WORDS],
    }

    impl Page {
        fn shared(&self) -> Shared<'_> {
            Shared { seq_count: &self.seq_count, words: &self.words }
        }
    }

    /// The first and the last word of the body, as the specification has a guest read them: one attempt.
    fn read(page: &Page) -> Option<(u64, u64)> {
        let before = page.seq_count.load(Ordering::Relaxed) & !1;
        fence(Ordering::Acquire);
        let read = (page.words[0].load(Ordering::Relaxed), page.words[WORDS - 1].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (before == page.seq_count.load(Ordering::Relaxed)).then_some(read)
    }

    #[test]
    fn no_body_is_read_half() {
        loom::model(|| {
            let words = core::array::from_fn(|_| AtomicU64::new(0));
            let page = Arc::new(Page { seq_count: AtomicU32::new(0), words });
            let reader = {
                let page = Arc::clone(&page);
                thread::spawn(move || {
                    if let Some((marker, generation)) = read(&page) {
                        assert_eq!(marker, generation, "torn");
                    }
                })
            };
            page.shared().begin();
            page.shared().end(&Body::new(1, 1, false));
            reader.join().unwrap();
            assert_eq!(read(&page), Some((1, 1)));
        });
    }

    #[test]
    fn an_update_left_open_is_closed_by_the_next() {
        loom::model(|| {
            let words = core::array::from_fn(|_| AtomicU64::new(0));
            let page = Page { seq_count: AtomicU32::new(5), words };
            assert_eq!(read(&page), None);
            page.shared().begin();
            page.shared().end(&Body::new(1, 1, false));
            assert_eq!((page.seq_count.load(Ordering::Relaxed), read(&page)), (6, Some((1, 1))));
        });
    }
}
