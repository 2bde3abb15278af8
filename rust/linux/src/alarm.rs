//! A descriptor that becomes readable when it is time to look at a counter: for select, poll, epoll and event loops.
//!
//! Being readable is only a hint: the counter says whether a deadline has passed. The two may disagree, since a timer
//! goes by CLOCK_MONOTONIC, which NTP slews by up to 500 ppm (adjtimex(2)), and a host's counter doesn't. So a timer is
//! never set more than [`MOST_NS`] ahead, and a consumer that it wakes looks at the counter and sets it anew.
//!
//! No wake is lost as long as each side keeps its order. The side that changes a deadline calls [`set`](Alarm::set)
//! afterwards. The side that was woken calls [`drain`](Alarm::drain), looks at the counter, and calls
//! [`set_again`](Alarm::set_again). Until it is drained, an alarm moves to earlier times alone, so neither side waits
//! for the other.

use crate::clock;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use guestclock_core::time::NS_PER_S;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_gettime,
    timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longest time for which a timer is set, in nanoseconds: the limit of its lateness after the host was suspended, or
/// its clock was slewed.
pub const MOST_NS: u64 = NS_PER_S;

/// Shortest time until a timer that woke too early wakes again, in nanoseconds. It doubles with each early wake in a
/// row, up to [`BACKED_OFF_NS`], so that a counter that stands still makes no busy loop.
const LEAST_NS: u64 = 1_000;

/// Longest time until a timer that woke too early wakes again, after many early wakes in a row.
const BACKED_OFF_NS: u64 = 1_000_000;

/// Instant of a timer that isn't set, in nanoseconds of CLOCK_MONOTONIC.
const NEVER: u64 = u64::MAX;

/// Reasons why an alarm can't be used now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AlarmError {
    /// The alarm was closed.
    #[error("this alarm is closed: make another one")]
    Closed,
    /// Another consumer waits on the alarm, or takes expired timers from it.
    #[error("this alarm has a consumer already, and expiries go to one: end that one first, or make another alarm")]
    InUse,
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Source of an alarm's wakes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum WakeKind {
    /// CLOCK_MONOTONIC: a timerfd.
    Timer,
    /// A counter that is moved by hand: an eventfd.
    Event,
}

impl WakeKind {
    fn open(self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Timer => timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?,
            Self::Event => eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }
}

/// A timerfd or an eventfd, close-on-exec and non-blocking, that is closed once. Any thread may use it.
#[derive(Debug)]
pub struct Alarm {
    kind: WakeKind,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once the alarm is closed.
    fd: Option<Arc<OwnedFd>>,
    /// Closed for all callers except the consumer, which keeps the descriptor until it has woken.
    closing: bool,
    /// Claimed by a consumer.
    claimed: bool,
    /// Instant at which the timer fires or has fired, in nanoseconds of CLOCK_MONOTONIC.
    fires_at: u64,
    /// Number of wakes in a row that came too early.
    early: u32,
    /// Number of forks that the process had gone through when the descriptor was made.
    forks: u64,
}

/// Number of forks on the way to this process, as far as [`forked`] was called.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Says that this is a child that fork(2) has just made.
///
/// An open file is the parent's too, and a read of it would take the parent's wake. So at its next use in the child
/// each alarm makes a descriptor of its own, which is readable at once, and that consumer looks; whoever waited in the
/// parent isn't here. An alarm for which the kernel has no descriptor left is closed here.
pub fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

impl State {
    fn fd(&self) -> Result<&Arc<OwnedFd>, AlarmError> {
        self.fd.as_ref().filter(|_| !self.closing).ok_or(AlarmError::Closed)
    }
}

impl Alarm {
    /// Makes an alarm that CLOCK_MONOTONIC wakes.
    pub fn timer() -> io::Result<Self> {
        Ok(Self::new(WakeKind::Timer, WakeKind::Timer.open()?))
    }

    /// Makes an alarm that no clock wakes: [`ring`](Self::ring) does, or a deadline that has passed when it is set.
    pub fn event() -> io::Result<Self> {
        Ok(Self::new(WakeKind::Event, WakeKind::Event.open()?))
    }

    fn new(kind: WakeKind, fd: OwnedFd) -> Self {
        let forks = FORKS.load(Ordering::Relaxed);
        let state = State { fd: Some(Arc::new(fd)), closing: false, claimed: false, fires_at: NEVER, early: 0, forks };
        Self { kind, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let forks = FORKS.load(Ordering::Relaxed);
        if state.forks != forks {
            state.forks = forks;
            self.renew(&mut state);
        }
        state
    }

    /// Gives the alarm of a child process a descriptor of its own, which is readable.
    fn renew(&self, state: &mut State) {
        let open = state.fd.is_some() && !state.closing;
        let fresh = if open { self.kind.open().ok() } else { None };
        *state = State { fd: fresh.map(Arc::new), closing: false, claimed: false, fires_at: NEVER, early: 0, ..*state };
        if state.fd.is_some() && self.fire(state).is_err() {
            state.fd = None;
        }
    }

    /// The descriptor, to wait on for reading: always the same one, shared with this alarm.
    ///
    /// [`close`](Self::close) takes the alarm's share. The descriptor itself is closed with the last share, so that its
    /// number can't become another file's while a caller waits on it.
    pub fn fd(&self) -> Result<Arc<OwnedFd>, AlarmError> {
        Ok(Arc::clone(self.lock().fd()?))
    }

    /// Makes the descriptor readable at once.
    pub fn ring(&self) -> Result<(), AlarmError> {
        self.fire(&mut self.lock())
    }

    fn fire(&self, state: &mut State) -> Result<(), AlarmError> {
        match self.kind {
            WakeKind::Timer => set_timer(state, clock::monotonic().unsigned_ns()),
            WakeKind::Event => match write(state.fd()?, &1_u64.to_ne_bytes()) {
                // EAGAIN: rung 2^64 - 2 times since it was drained, so it is readable.
                Ok(_) | Err(Errno::AGAIN) => Ok(()),
                Err(error) => Err(io::Error::from(error).into()),
            },
        }
    }

    /// Sets the wake to a deadline that is `left_ns` ahead, unless it is set to an earlier one. `None` is no deadline.
    ///
    /// An alarm that no clock wakes becomes readable if the deadline has passed, and stays as it is otherwise.
    pub fn set(&self, left_ns: Option<u128>) -> Result<(), AlarmError> {
        let mut state = self.lock();
        state.early = 0;
        self.move_up(&mut state, left_ns)
    }

    /// Does the same as [`set`](Self::set) for the consumer, after [`drain`](Self::drain) and a look at the counter.
    /// `early` says that no timer had expired at the last wake.
    pub fn set_again(&self, left_ns: Option<u128>, early: bool) -> Result<(), AlarmError> {
        let mut state = self.lock();
        let least = (LEAST_NS << state.early.min(u64::BITS - 1 - LEAST_NS.ilog2())).min(BACKED_OFF_NS);
        let far = left_ns.is_none_or(|left| left >= u128::from(MOST_NS));
        // A wake on the way to a deadline that is further ahead than a timer is ever set isn't too early.
        state.early = if early && !far { state.early.saturating_add(1) } else { 0 };
        self.move_up(&mut state, left_ns.map(|left| if early { left.max(least.into()) } else { left }))
    }

    fn move_up(&self, state: &mut State, left_ns: Option<u128>) -> Result<(), AlarmError> {
        let Some(left) = left_ns else { return Ok(()) };
        match self.kind {
            WakeKind::Event if left > 0 => Ok(()),
            WakeKind::Event => self.fire(state),
            WakeKind::Timer => {
                let left = u64::try_from(left).unwrap_or(MOST_NS).min(MOST_NS);
                let at = clock::monotonic().unsigned_ns().saturating_add(left);
                if at < state.fires_at { set_timer(state, at) } else { Ok(()) }
            }
        }
    }

    /// Makes the descriptor unreadable until the alarm is set or rung again. Returns whether it was readable.
    pub fn drain(&self) -> Result<bool, AlarmError> {
        let mut state = self.lock();
        match read(state.fd()?, &mut [0_u8; size_of::<u64>()]) {
            Ok(_) => {
                state.fires_at = NEVER;
                Ok(true)
            }
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    /// Nanoseconds until the kernel makes the descriptor readable; `None` where it won't by itself, or has done so.
    pub fn left_ns(&self) -> Result<Option<u64>, AlarmError> {
        let state = self.lock();
        let fd = state.fd()?;
        if self.kind == WakeKind::Event {
            return Ok(None);
        }
        let left = timerfd_gettime(fd).map_err(io::Error::from)?.it_value;
        let left = left.tv_sec.cast_unsigned() * NS_PER_S + left.tv_nsec.cast_unsigned();
        Ok((left > 0).then_some(left))
    }

    /// Makes the caller the alarm's only consumer, for as long as the claim lives, or until [`release`](Self::release)
    /// where it is forgotten.
    pub fn claim(&self) -> Result<Claim<'_>, AlarmError> {
        let mut state = self.lock();
        state.fd()?;
        if state.claimed {
            return Err(AlarmError::InUse);
        }
        state.claimed = true;
        Ok(Claim { alarm: self })
    }

    /// Ends the consumer's claim. Lets go of the descriptor if the alarm was closed meanwhile.
    pub fn release(&self) {
        let mut state = self.lock();
        state.claimed = false;
        if state.closing {
            state.fd = None;
        }
    }

    /// Closes the alarm: every later call is an error. A consumer is woken, and the alarm keeps the descriptor until
    /// the consumer calls [`release`](Self::release).
    pub fn close(&self) -> Result<(), AlarmError> {
        let mut state = self.lock();
        if !state.claimed {
            state.fd = None;
        } else if !state.closing {
            let rung = self.fire(&mut state);
            state.closing = true;
            return rung;
        }
        Ok(())
    }
}

/// A consumer's claim of an alarm, which a panic ends too.
#[derive(Debug)]
#[must_use = "the claim ends when this is dropped"]
pub struct Claim<'a> {
    alarm: &'a Alarm,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.alarm.release();
    }
}

/// Sets the timer to an instant of CLOCK_MONOTONIC, in nanoseconds. An instant that has passed makes it readable at
/// once.
fn set_timer(state: &mut State, at: u64) -> Result<(), AlarmError> {
    let fd = state.fd()?;
    // An instant of zero would disarm it.
    let at_least_one = Duration::from_nanos(at.max(1));
    let value = Timespec::try_from(at_least_one).expect("64 bits of nanoseconds are 585 years");
    let spec = Itimerspec { it_interval: Timespec::default(), it_value: value };
    timerfd_settime(fd, TimerfdTimerFlags::ABSTIME, &spec).map_err(io::Error::from)?;
    state.fires_at = at;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::{FdFlags, fcntl_getfd};
    use std::os::fd::AsRawFd;

    const S: u128 = NS_PER_S as u128;

    fn readable(alarm: &Alarm) -> bool {
        let state = alarm.lock();
        let mut polled = [PollFd::new(state.fd.as_ref().unwrap(), PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).unwrap() == 1
    }

    fn wait(alarm: &Alarm) {
        let state = alarm.lock();
        let mut polled = [PollFd::new(state.fd.as_ref().unwrap(), PollFlags::IN)];
        assert_eq!(poll(&mut polled, None).unwrap(), 1);
    }

    /// Nanoseconds from `before`, a reading of its clock, until the timer fires.
    fn after(alarm: &Alarm, before: u64) -> u64 {
        alarm.lock().fires_at - before
    }

    #[test]
    fn a_timer_is_set_a_second_ahead_at_most() {
        for (left, most) in [(S / 2, NS_PER_S / 2), (S, NS_PER_S), (5 * S, NS_PER_S), (u128::MAX, NS_PER_S)] {
            let alarm = Alarm::timer().unwrap();
            let before = clock::monotonic().unsigned_ns();
            alarm.set(Some(left)).unwrap();
            assert!(after(&alarm, before) >= most, "{left}");
            assert!(alarm.left_ns().unwrap().is_none_or(|left| left <= most), "{left}");
        }
    }

    #[test]
    fn it_only_moves_to_earlier_times_until_it_is_drained() {
        let alarm = Alarm::timer().unwrap();
        alarm.set(Some(S / 2)).unwrap();
        let half = alarm.lock().fires_at;
        alarm.set(Some(5 * S)).unwrap();
        alarm.set(None).unwrap();
        assert_eq!(alarm.lock().fires_at, half);
        let fired = alarm.drain().unwrap();
        assert_eq!(alarm.lock().fires_at, if fired { NEVER } else { half }, "what wasn't readable is still set");
        alarm.set(Some(0)).unwrap();
        assert!(alarm.lock().fires_at <= half.max(clock::monotonic().unsigned_ns()));
        wait(&alarm);
        alarm.set(Some(5 * S)).unwrap();
        assert!(readable(&alarm), "what nobody has heard yet isn't put off");
        assert!(alarm.drain().unwrap());
        assert!(!readable(&alarm) && alarm.left_ns().unwrap().is_none());
        alarm.set_again(None, false).unwrap();
        assert_eq!(alarm.lock().fires_at, NEVER);
    }

    #[test]
    fn a_counter_that_stands_still_makes_no_busy_loop() {
        let alarm = Alarm::timer().unwrap();
        let mut least = LEAST_NS;
        for _ in 0..70 {
            alarm.lock().fires_at = NEVER;
            let before = clock::monotonic().unsigned_ns();
            alarm.set_again(Some(1), true).unwrap();
            assert!(after(&alarm, before) >= least);
            least = (2 * least).min(BACKED_OFF_NS);
        }
        // It has backed off by no more than that, and does so no more once a deadline has moved.
        let after_a_change = |alarm: &Alarm| alarm.lock().early;
        assert_ne!(after_a_change(&alarm), 0);
        alarm.set(Some(1)).unwrap();
        assert_eq!(after_a_change(&alarm), 0);
    }

    #[test]
    fn waking_each_second_on_the_way_is_not_too_early() {
        let alarm = Alarm::timer().unwrap();
        for (left, early) in [(5 * S, 0), (S, 0), (S / 2000, 1), (250, 2), (5 * S, 0)] {
            alarm.set_again(Some(left), true).unwrap();
            assert_eq!(alarm.lock().early, early, "{left}");
        }
        alarm.set_again(Some(1), true).unwrap();
        alarm.set_again(Some(1), false).unwrap();
        assert_eq!(alarm.lock().early, 0, "it was woken for something");
    }

    #[test]
    fn one_that_is_rung_by_hand_goes_by_no_clock() {
        let alarm = Alarm::event().unwrap();
        alarm.set(Some(1)).unwrap();
        alarm.set(None).unwrap();
        assert!(!readable(&alarm) && !alarm.drain().unwrap());
        alarm.set(Some(0)).unwrap();
        alarm.ring().unwrap();
        assert!(readable(&alarm) && alarm.left_ns().unwrap().is_none());
        assert!(alarm.drain().unwrap());
        assert!(!readable(&alarm) && !alarm.drain().unwrap());
    }

    #[test]
    fn it_is_not_inherited() {
        for alarm in [Alarm::timer().unwrap(), Alarm::event().unwrap()] {
            let state = alarm.lock();
            assert!(fcntl_getfd(state.fd().unwrap()).unwrap().contains(FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn the_descriptor_outlives_the_alarm_where_somebody_waits_on_it() {
        for alarm in [Alarm::timer().unwrap(), Alarm::event().unwrap()] {
            let fd = alarm.fd().unwrap();
            assert_eq!(alarm.fd().unwrap().as_raw_fd(), fd.as_raw_fd());
            alarm.close().unwrap();
            assert!(fcntl_getfd(&fd).is_ok());
            assert_eq!(Arc::strong_count(&fd), 1, "the alarm has let go of it");
        }
    }

    #[test]
    fn it_has_one_consumer() {
        let alarm = Alarm::event().unwrap();
        let claim = alarm.claim().unwrap();
        assert!(matches!(alarm.claim(), Err(AlarmError::InUse)));
        drop(claim);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _claim = alarm.claim().unwrap();
            panic!("with the claim");
        }));
        assert!(panicked.is_err());
        core::mem::forget(alarm.claim().unwrap());
        assert!(matches!(alarm.claim(), Err(AlarmError::InUse)));
        alarm.release();
        drop(alarm.claim().unwrap());
    }

    #[test]
    fn closing_wakes_the_consumer_and_waits_for_it() {
        for alarm in [Alarm::timer().unwrap(), Alarm::event().unwrap()] {
            let claim = alarm.claim().unwrap();
            alarm.close().unwrap();
            alarm.close().unwrap();
            wait(&alarm);
            assert!(matches!(alarm.fd(), Err(AlarmError::Closed)));
            assert!(matches!(alarm.drain(), Err(AlarmError::Closed)));
            drop(claim);
            assert!(alarm.lock().fd.is_none());
        }
        let alarm = Alarm::timer().unwrap();
        alarm.close().unwrap();
        assert!(alarm.lock().fd.is_none());
        let claimed = alarm.claim().map(drop);
        for answer in [alarm.ring(), alarm.set(Some(0)), alarm.set_again(Some(0), true), claimed] {
            assert!(matches!(answer, Err(AlarmError::Closed)));
        }
        assert!(alarm.close().is_ok());
    }
}
