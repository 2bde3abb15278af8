//! A set as a value: one VM of it is what the VM's own checkpoint would be.

mod common;

use common::{bare, full_set, plain_set, set};
use guestclock_core::arch::arm64::Timer;
use guestclock_core::checkpoint::codec::{decode, encode};
use guestclock_core::checkpoint::{Checkpoint, CheckpointSet, Column, CtlColumn, TimerColumns};
use guestclock_core::time::{Frequency, GuestCount, HostCount, Ratio};
use proptest::prelude::*;

/// The checkpoints of all VMs by walking through the columns from their beginning.
fn walked(set: &CheckpointSet) -> Vec<(u64, Checkpoint)> {
    let mut found = Vec::new();
    for group in &set.groups {
        let ratio = Ratio::new(set.host.frequency, Frequency::new(group.cntfrq_hz.into()).unwrap());
        let mut row = 0;
        for (vm, &name) in group.names.iter().enumerate() {
            let vcpus = usize::from(group.vcpus.get(vm).unwrap());
            let rows = row..row + vcpus;
            row = rows.end;
            let timers = group.timers.iter().map(|columns| TimerColumns {
                timer: columns.timer,
                cval: columns.cval[rows.clone()].to_vec(),
                ctl: CtlColumn::new(rows.clone().map(|row| columns.ctl.get(row).unwrap())),
            });
            let checkpoint = Checkpoint {
                cntfrq_hz: group.cntfrq_hz,
                cntvct: GuestCount(group.cntvct[vm]),
                cntpct: GuestCount(group.cntpct.as_ref().unwrap_or(&group.cntvct)[vm]),
                opted_in: group.opted_in.get(vm).unwrap(),
                width_ticks: 0,
                host: ratio.instant(set.host),
                stopped_at: set.stopped_at.map(|count| ratio.at(HostCount(count)).0),
                backlog: group.backlogs.iter().find(|(owed, _)| *owed == vm).map(|(_, backlog)| *backlog),
                vcpus,
                cntvoff: group
                    .cntvoff
                    .as_ref()
                    .map(|cntvoff| rows.clone().map(|row| cntvoff.get(row).unwrap()).collect()),
                timers: timers.collect(),
                others: Vec::new(),
                unknown: Vec::new(),
            };
            found.push((name, checkpoint));
        }
    }
    found
}

proptest! {
    #[test]
    fn each_vm_is_as_its_columns_say(set in set()) {
        let walked = walked(&set);
        prop_assert_eq!(set.len(), walked.len());
        prop_assert_eq!(set.is_empty(), walked.is_empty());
        prop_assert_eq!(set.vcpus(), walked.iter().map(|(_, checkpoint)| checkpoint.vcpus).sum::<usize>());
        for (index, (name, expected)) in walked.iter().enumerate() {
            prop_assert_eq!(set.find(*name), Some(index));
            prop_assert_eq!(&set.get(index).unwrap(), expected);
            prop_assert_eq!(&decode(&encode(expected)).unwrap(), expected);
            let other = name.wrapping_add(1);
            prop_assert_eq!(set.find(other).is_some(), walked.iter().any(|(name, _)| *name == other));
        }
        prop_assert_eq!(set.get(walked.len()), None);
    }

    #[test]
    fn a_column_has_one_form(values in prop::collection::vec(0u8..2, 1..6)) {
        let column = Column::new(values.clone());
        prop_assert!(column.is_canonical(values.len()));
        prop_assert_eq!(matches!(column, Column::Same(_)), values.iter().all(|value| *value == values[0]));
        for (row, value) in values.iter().enumerate() {
            prop_assert_eq!(column.get(row), Some(*value));
        }
        let each = Column::Each(values.clone());
        prop_assert_eq!(each.is_canonical(values.len()), each == column);
        prop_assert!(!each.is_canonical(values.len() + 1));
    }
}

/// 300 ticks at 62.5 MHz are 115.2 at 24 MHz, and a tick more may hide 42 ns.
#[test]
fn a_vm_of_another_frequency_has_its_own_instant() {
    let set = full_set(3);
    let (theirs, own) = (set.get(0).unwrap(), set.get(3).unwrap());
    assert_eq!((theirs.host.count, theirs.host.frequency.hz()), (HostCount(115), 24_000_000));
    assert_eq!((theirs.host.width_ns, theirs.stopped_at), (42, Some(114)));
    assert_eq!((own.host, own.stopped_at), (set.host, Some(299)));
}

#[test]
fn what_doesnt_fit_together_is_named() {
    let flaw = |change: fn(&mut CheckpointSet)| {
        let mut set = full_set(3);
        change(&mut set);
        set.validate().unwrap_err()
    };
    assert_eq!(full_set(3).validate(), Ok(()));
    assert!(flaw(|set| set.groups.reverse()).contains("groups aren't in the order"));
    assert!(flaw(|set| set.groups[1].names[0] += 1).contains("a VM of the same name"));
    assert!(flaw(|set| set.groups[1].names[2] = set.groups[0].names[2]).contains("a VM of the same name"));
    assert!(flaw(|set| set.groups[0].names.reverse()).contains("names aren't ascending"));
    assert!(flaw(|set| set.groups[0].vcpus = Column::Same(513)).contains("1 to 512"));
    assert!(flaw(|set| set.groups[0].vcpus = Column::Each(vec![0, 3, 5])).contains("1 to 512"));
    assert!(flaw(|set| set.groups[0].vcpus = Column::Each(vec![3; 3])).contains("of which some differ"));
    assert!(flaw(|set| set.groups[0].vcpus = Column::Each(vec![3, 2, 2])).contains("nor one a vCPU"));
    assert!(flaw(|set| set.groups[0].backlogs[0].0 = 2).contains("the rows of backlogs"));
    assert!(flaw(|set| set.groups[0].backlogs[1].0 = 3).contains("the rows of backlogs"));
    assert!(flaw(|set| drop(set.groups[0].timers.remove(0))).contains("without vtimer"));
    // Two groups of one kind would be two forms of one set.
    let mut twice = plain_set(2);
    let mut other = twice.groups[0].clone();
    other.names = vec![1, 2];
    twice.groups.push(other);
    assert!(twice.validate().unwrap_err().contains("each once"));
}

#[test]
fn groups_are_in_the_order_of_frequency_timers_and_nesting() {
    let group = |name, cntfrq_hz, timers: &[Timer], nested: bool| {
        let mut group = plain_set(1).groups.remove(0);
        (group.names, group.cntfrq_hz) = (vec![name], cntfrq_hz);
        group.timers = timers.iter().map(|&timer| common::timer(timer, &[0, 0], &[0, 0])).collect();
        group.cntvoff = nested.then_some(Column::Same(0));
        group
    };
    let two = [Timer::Vtimer, Timer::Ptimer];
    let groups = vec![
        group(5, 1, &Timer::ALL, true),
        group(4, 2, &[Timer::Vtimer], false),
        group(3, 2, &two, false),
        group(2, 2, &two, true),
        group(1, 2, &Timer::ALL, false),
    ];
    let set = CheckpointSet { host: bare().host, stopped_at: None, groups, unknown: Vec::new() };
    assert_eq!(set.validate(), Ok(()));
    for place in 1..set.groups.len() {
        let mut other = set.clone();
        other.groups.swap(place - 1, place);
        assert!(other.validate().is_err());
    }
}
