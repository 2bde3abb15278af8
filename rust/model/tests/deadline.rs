//! The deadline queue against the obvious: every timer looked at, in integers without bounds.

use guestclock_core::arch::arm64::timer::ticks_until;
use guestclock_core::time::{HostCount, NO_DEADLINE, Offset, deadline};
use guestclock_model::deadlines::{DeadlineQueue, Fired, QueueError};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SIZE: i128 = 1 << 64;

/// Armed timers by id, each with its compare value, under the offset of its group.
#[derive(Default)]
struct Model {
    offsets: BTreeMap<u32, u64>,
    armed: BTreeMap<u32, (u32, u64)>,
    held: BTreeSet<u32>,
}

impl Model {
    fn guest(&self, group: u32, now: u64) -> i128 {
        (i128::from(now) - i128::from(self.offsets[&group])).rem_euclid(SIZE)
    }

    fn next_deadline(&self, now: u64) -> u64 {
        let ahead = |(group, cval): &(u32, u64)| (i128::from(*cval) - self.guest(*group, now)).max(0);
        let free = self.armed.values().filter(|(group, _)| !self.held.contains(group));
        let next = free.map(|timer| i128::from(now) + ahead(timer)).min();
        next.map_or(u64::MAX, |next| u64::try_from(next.min(SIZE - 2)).unwrap())
    }

    fn expire(&mut self, now: u64) -> Vec<Fired> {
        let mut fired = BTreeSet::new();
        for (id, (group, cval)) in &self.armed {
            let late = self.guest(*group, now) - i128::from(*cval);
            if late >= 0 && !self.held.contains(group) {
                fired.insert((u64::try_from((i128::from(now) - late).max(0)).unwrap(), *id));
            }
        }
        for (_, id) in &fired {
            self.armed.remove(id);
        }
        fired.into_iter().map(|(deadline, timer)| Fired { deadline, timer }).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add {
        timers: u32,
        offset: u64,
    },
    Remove {
        group: usize,
    },
    Offset {
        group: usize,
        offset: u64,
    },
    /// A compare value as it is, or so far from the guest's count.
    Arm {
        timers: Vec<(usize, u64, bool)>,
    },
    Disarm {
        timers: Vec<usize>,
    },
    Hold {
        group: usize,
        held: bool,
    },
    /// So far on, or back.
    Move {
        ticks: u64,
    },
    Next,
    Expire,
}

/// All 64 bits, and both ends of everything.
fn word() -> impl Strategy<Value = u64> {
    let edge = prop_oneof![Just(0), Just(1 << 63), Just(u64::MAX), Just(1 << 32)];
    prop_oneof![
        any::<u64>(),
        (edge, -3_i64..=3).prop_map(|(edge, by)| u64::wrapping_add_signed(edge, by)),
        0_u64..20,
        (0_u32..64, any::<u64>()).prop_map(|(bits, word)| word >> bits),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (1_u32..=40, word()).prop_map(|(timers, offset)| Step::Add { timers, offset }),
        1 => any::<usize>().prop_map(|group| Step::Remove { group }),
        3 => (any::<usize>(), word()).prop_map(|(group, offset)| Step::Offset { group, offset }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(group, held)| Step::Hold { group, held }),
        6 => vec((any::<usize>(), word(), any::<bool>()), 1..20).prop_map(|timers| Step::Arm { timers }),
        2 => vec(any::<usize>(), 1..10).prop_map(|timers| Step::Disarm { timers }),
        4 => word().prop_map(|ticks| Step::Move { ticks }),
        4 => Just(Step::Next),
        2 => Just(Step::Expire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_is_the_obvious_model(now in word(), steps in vec(step(), 1..40)) {
        let (mut queue, mut model, mut now) = (DeadlineQueue::new(), Model::default(), now);
        let mut fired = Vec::new();
        for step in steps {
            let groups: Vec<u32> = model.offsets.keys().copied().collect();
            let ids: Vec<(u32, u32)> =
                groups.iter().flat_map(|group| queue.timers(*group).unwrap().map(|id| (id, *group))).collect();
            let group = |number: usize| groups.get(number % groups.len().max(1)).copied();
            for (id, group) in &ids {
                let index = id - queue.timers(*group).unwrap().start;
                prop_assert_eq!(queue.place_of(*id), Ok((*group, index)));
            }
            match step {
                Step::Add { timers, offset } => {
                    let group = queue.add_group(timers, Offset(offset)).unwrap();
                    prop_assert!(model.offsets.insert(group, offset).is_none());
                    let added = queue.timers(group).unwrap();
                    prop_assert_eq!(added.len(), timers as usize);
                    prop_assert!(ids.iter().all(|(id, _)| !added.contains(id)));
                }
                Step::Remove { group: number } => if let Some(group) = group(number) {
                    queue.remove_group(group).unwrap();
                    model.offsets.remove(&group);
                    model.armed.retain(|_, timer| timer.0 != group);
                    model.held.remove(&group);
                    prop_assert_eq!(queue.timers(group), Err(QueueError::NoSuchGroup { group }));
                },
                Step::Offset { group: number, offset } => if let Some(group) = group(number) {
                    queue.set_offset(group, Offset(offset)).unwrap();
                    model.offsets.insert(group, offset);
                },
                Step::Hold { group: number, held } => if let Some(group) = group(number) {
                    queue.hold(group, held).unwrap();
                    if held { model.held.insert(group) } else { model.held.remove(&group) };
                },
                Step::Arm { timers } if !ids.is_empty() => {
                    let mut batch = (Vec::new(), Vec::new());
                    for (number, cval, relative) in timers {
                        let (id, group) = ids[number % ids.len()];
                        let guest = HostCount(now).guest(Offset(model.offsets[&group])).0;
                        let cval = if relative { guest.wrapping_add(cval) } else { cval };
                        batch.0.push(id);
                        batch.1.push(cval);
                        model.armed.insert(id, (group, cval));
                    }
                    queue.arm(&batch.0, &batch.1).unwrap();
                }
                Step::Disarm { timers } if !ids.is_empty() => {
                    let timers: Vec<u32> = timers.iter().map(|number| ids[number % ids.len()].0).collect();
                    queue.disarm(&timers).unwrap();
                    model.armed.retain(|id, _| !timers.contains(id));
                }
                Step::Move { ticks } => now = now.wrapping_add(ticks),
                Step::Next => prop_assert_eq!(queue.next_deadline(HostCount(now)), model.next_deadline(now)),
                Step::Expire => {
                    queue.expire(HostCount(now), &mut fired);
                    prop_assert_eq!(&fired, &model.expire(now));
                }
                Step::Arm { .. } | Step::Disarm { .. } => {}
            }
            let pending = model.armed.values().filter(|(group, _)| !model.held.contains(group));
            prop_assert_eq!(queue.len(), pending.count());
        }
        prop_assert_eq!(queue.next_deadline(HostCount(now)), model.next_deadline(now));
        queue.expire(HostCount(now), &mut fired);
        prop_assert_eq!(fired, model.expire(now));
    }

    /// One timer is the rule that the model VM has.
    #[test]
    fn one_timer_is_as_in_the_model_vm(cval in word(), offset in word(), now in word()) {
        let mut queue = DeadlineQueue::new();
        let group = queue.add_group(1, Offset(offset)).unwrap();
        queue.arm(&[queue.timers(group).unwrap().start], &[cval]).unwrap();
        let now = HostCount(now);
        prop_assert_eq!(queue.next_deadline(now), deadline(now, Some(ticks_until(cval, now.guest(Offset(offset))))));
    }

    /// Large groups, several levels deep, and what fires at once.
    #[test]
    fn a_large_group_fires_in_order(cvals in vec(0_u64..3000, 1..1000), offset in word(), late in 0_u64..4000) {
        let mut queue = DeadlineQueue::new();
        let group = queue.add_group(u32::try_from(cvals.len()).unwrap(), Offset(offset)).unwrap();
        let ids: Vec<u32> = queue.timers(group).unwrap().collect();
        queue.arm(&ids, &cvals).unwrap();
        let now = offset.wrapping_add(late);
        let mut model = Model::default();
        model.offsets.insert(group, offset);
        model.armed = ids.iter().copied().zip(cvals.iter().map(|cval| (group, *cval))).collect();
        prop_assert_eq!(queue.next_deadline(HostCount(now)), model.next_deadline(now));
        let mut fired = Vec::new();
        queue.expire(HostCount(now), &mut fired);
        prop_assert_eq!(fired, model.expire(now));
        prop_assert_eq!(queue.next_deadline(HostCount(now)), model.next_deadline(now));
    }
}

fn queue_of(timers: u32, offset: u64) -> (DeadlineQueue, u32, u32) {
    let mut queue = DeadlineQueue::new();
    let group = queue.add_group(timers, Offset(offset)).unwrap();
    let first = queue.timers(group).unwrap().start;
    (queue, group, first)
}

/// The guest's count begins at 0 again at host count 100. A timer that was due until then isn't, and is to be again.
#[test]
fn a_guest_count_that_wraps_takes_expiry_back() {
    let (mut queue, _, timer) = queue_of(2, 100);
    queue.arm(&[timer], &[10]).unwrap();
    assert_eq!(queue.next_deadline(HostCount(99)), 99);
    assert_eq!(queue.next_deadline(HostCount(100)), 110);
    let mut fired = Vec::new();
    queue.expire(HostCount(109), &mut fired);
    assert_eq!(fired, []);
    queue.expire(HostCount(110), &mut fired);
    assert_eq!(fired, [Fired { deadline: 110, timer }]);
}

/// A compare value of 2^64 - 1 is a real one, reached at that very count, in VMs of every size.
#[test]
fn the_last_count_is_a_deadline() {
    for timers in [1, 8, 20, 40, 1000] {
        let (mut queue, _, timer) = queue_of(timers, 50);
        queue.arm(&[timer], &[u64::MAX]).unwrap();
        assert_eq!(queue.next_deadline(HostCount(0)), 49);
        assert_eq!(queue.next_deadline(HostCount(50)), NO_DEADLINE - 1);
        let mut fired = Vec::new();
        queue.expire(HostCount(u64::MAX), &mut fired);
        assert_eq!((fired.len(), queue.len()), (0, 1));
        queue.disarm(&[timer]).unwrap();
        assert_eq!(queue.next_deadline(HostCount(0)), NO_DEADLINE);
        queue.arm(&[timer], &[u64::MAX]).unwrap();
        queue.expire(HostCount(49), &mut fired);
        assert_eq!((fired.len(), queue.next_deadline(HostCount(49))), (1, NO_DEADLINE));
    }
}

/// Behind a large VM's timers are ids that its tree takes; nobody's, as is the rest of a row.
#[test]
fn a_tree_has_no_timers() {
    for timers in [3, 12, 40, 1000] {
        let (mut queue, group, first) = queue_of(timers, 0);
        let next = queue.add_group(9, Offset(0)).unwrap();
        queue.arm(&[first], &[7]).unwrap();
        let behind = first + timers..queue.timers(next).unwrap().start;
        assert!(!behind.is_empty());
        for timer in behind {
            assert_eq!(queue.place_of(timer), Err(QueueError::NoSuchTimer { timer }));
            assert_eq!(queue.arm(&[timer], &[1]), Err(QueueError::NoSuchTimer { timer }));
        }
        assert_eq!(queue.place_of(first + timers - 1), Ok((group, timers - 1)));
        assert_eq!((queue.next_deadline(HostCount(0)), queue.len()), (7, 1));
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let (mut queue, group, first) = queue_of(3, 0);
    queue.arm(&[first], &[7]).unwrap();
    // The fourth place of the row is nobody's.
    for unknown in [first + 3, first + 100, u32::MAX] {
        let refused = Err(QueueError::NoSuchTimer { timer: unknown });
        assert_eq!(queue.arm(&[first, unknown], &[1, 1]), refused);
        assert_eq!(queue.disarm(&[first, unknown]), refused);
    }
    assert_eq!(queue.arm(&[first], &[]), Err(QueueError::Unequal { named: 1, values: 0 }));
    assert_eq!(queue.set_offsets(&[group, 1], &[5, 5]), Err(QueueError::NoSuchGroup { group: 1 }));
    assert_eq!(queue.add_group(0, Offset(0)), Err(QueueError::EmptyGroup));
    assert!(matches!(queue.add_group(u32::MAX, Offset(0)), Err(QueueError::TooManyTimers { .. })));
    assert_eq!((queue.next_deadline(HostCount(0)), queue.len()), (7, 1));
}

/// Ids and numbers of what was removed are taken again, so that a queue doesn't grow with what comes and goes.
#[test]
fn memory_is_taken_again() {
    let mut queue = DeadlineQueue::new();
    let sizes = [1, 2, 3, 8, 9, 40];
    let groups: Vec<u32> = sizes.map(|timers| queue.add_group(timers, Offset(0)).unwrap()).to_vec();
    let bytes = queue.bytes();
    for _ in 0..50 {
        for group in &groups {
            queue.remove_group(*group).unwrap();
        }
        for timers in sizes {
            queue.add_group(timers, Offset(0)).unwrap();
        }
    }
    // The lists of what is free are in it too.
    assert!(queue.bytes() <= bytes + 1024, "{bytes} -> {}", queue.bytes());
}

/// docs/performance.md promises it.
#[test]
fn a_thousand_vms_are_small() {
    for (timers, most) in [(2, 36), (4, 24), (8, 18), (16, 16), (40, 18)] {
        let mut queue = DeadlineQueue::new();
        for _ in 0..1024 {
            queue.add_group(timers, Offset(0)).unwrap();
        }
        assert!(queue.bytes() / 1024 <= most * timers as usize);
    }
}
