//! Which structure the deadline queue is made of: candidates, fed one trace in interleaved rounds.
//!
//! `cargo bench -p guestclock-core --bench structures`. Every step takes the next deadline, expires 64 timers, arms them
//! again, moves 3 others and cancels 3, which the next step arms again.
#![allow(missing_docs, clippy::pedantic, clippy::float_arithmetic)]

use guestclock_core::counter::{HostCount, Offset};
use guestclock_core::deadline::{self as queued, DeadlineQueue};
use std::collections::BTreeSet;
use std::time::Instant;

const NONE: u32 = u32::MAX;
type Fired = Vec<(u64, u32)>;

trait Queue {
    fn new(n: usize) -> Self;
    fn set(&mut self, id: u32, key: u64);
    fn clear(&mut self, id: u32);
    fn next(&mut self) -> u64;
    fn expire(&mut self, now: u64, out: &mut Fired);
}

/// By deadline, then by id; in one word each where they lie near enough.
fn order(fired: &mut [(u64, u32)]) {
    let (low, high) = fired.iter().fold((u64::MAX, 0), |(low, high), it| (low.min(it.0), high.max(it.0)));
    if high.wrapping_sub(low) >> 32 != 0 {
        fired.sort_unstable();
        return;
    }
    let mut words = [0; 256];
    if fired.len() > words.len() {
        fired.sort_unstable();
        return;
    }
    let words = &mut words[..fired.len()];
    for (word, it) in words.iter_mut().zip(fired.iter()) {
        *word = (it.0 - low) << 32 | u64::from(it.1);
    }
    words.sort_unstable();
    for (word, it) in words.iter().zip(fired.iter_mut()) {
        *it = (low + (word >> 32), *word as u32);
    }
}

/// The obvious one.
struct Tree {
    keys: Vec<u64>,
    set: BTreeSet<(u64, u32)>,
}

impl Queue for Tree {
    fn new(n: usize) -> Self {
        Self { keys: vec![u64::MAX; n], set: BTreeSet::new() }
    }
    fn set(&mut self, id: u32, key: u64) {
        self.clear(id);
        self.keys[id as usize] = key;
        self.set.insert((key, id));
    }
    fn clear(&mut self, id: u32) {
        let old = std::mem::replace(&mut self.keys[id as usize], u64::MAX);
        if old != u64::MAX {
            self.set.remove(&(old, id));
        }
    }
    fn next(&mut self) -> u64 {
        self.set.first().map_or(u64::MAX, |first| first.0)
    }
    fn expire(&mut self, now: u64, out: &mut Fired) {
        while let Some(&(key, id)) = self.set.first() {
            if key > now {
                break;
            }
            self.set.pop_first();
            self.keys[id as usize] = u64::MAX;
            out.push((key, id));
        }
    }
}

/// One column, read from end to end.
struct Scan {
    keys: Vec<u64>,
    min: Option<u64>,
}

impl Queue for Scan {
    fn new(n: usize) -> Self {
        Self { keys: vec![u64::MAX; n], min: None }
    }
    fn set(&mut self, id: u32, key: u64) {
        let old = std::mem::replace(&mut self.keys[id as usize], key);
        match self.min {
            Some(min) if key <= min => self.min = Some(key),
            Some(min) if old == min => self.min = None,
            _ => {}
        }
    }
    fn clear(&mut self, id: u32) {
        self.set(id, u64::MAX);
    }
    fn next(&mut self) -> u64 {
        *self.min.get_or_insert_with(|| self.keys.iter().copied().min().unwrap_or(u64::MAX))
    }
    fn expire(&mut self, now: u64, out: &mut Fired) {
        let from = out.len();
        let mut min = u64::MAX;
        for (block, keys) in self.keys.chunks_mut(64).enumerate() {
            let mut least = keys.iter().copied().fold(u64::MAX, u64::min);
            if least <= now {
                least = u64::MAX;
                for (index, key) in keys.iter_mut().enumerate() {
                    if *key <= now {
                        out.push((*key, (block * 64 + index) as u32));
                        *key = u64::MAX;
                    }
                    least = least.min(*key);
                }
            }
            min = min.min(least);
        }
        self.min = Some(min);
        order(&mut out[from..]);
    }
}

/// A heap of D children a node, with every timer's place in it.
struct Heap<const D: usize> {
    heap: Vec<(u64, u32)>,
    place: Vec<u32>,
}

impl<const D: usize> Heap<D> {
    fn put(&mut self, at: usize, entry: (u64, u32)) {
        self.heap[at] = entry;
        self.place[entry.1 as usize] = at as u32;
    }
    fn up(&mut self, mut at: usize, entry: (u64, u32)) {
        while at > 0 {
            let parent = (at - 1) / D;
            if self.heap[parent] <= entry {
                break;
            }
            self.put(at, self.heap[parent]);
            at = parent;
        }
        self.put(at, entry);
    }
    fn down(&mut self, mut at: usize, entry: (u64, u32)) {
        loop {
            let first = at * D + 1;
            if first >= self.heap.len() {
                break;
            }
            let last = (first + D).min(self.heap.len());
            let mut least = first;
            for child in first + 1..last {
                if self.heap[child] < self.heap[least] {
                    least = child;
                }
            }
            if self.heap[least] >= entry {
                break;
            }
            self.put(at, self.heap[least]);
            at = least;
        }
        self.put(at, entry);
    }
    fn remove(&mut self, at: usize) {
        let gone = self.heap[at];
        self.place[gone.1 as usize] = NONE;
        let last = self.heap.pop().unwrap();
        if at < self.heap.len() {
            if last < gone { self.up(at, last) } else { self.down(at, last) }
        }
    }
}

impl<const D: usize> Queue for Heap<D> {
    fn new(n: usize) -> Self {
        Self { heap: Vec::with_capacity(n), place: vec![NONE; n] }
    }
    fn set(&mut self, id: u32, key: u64) {
        let at = self.place[id as usize];
        if at == NONE {
            self.heap.push((key, id));
            self.up(self.heap.len() - 1, (key, id));
        } else if key < self.heap[at as usize].0 {
            self.up(at as usize, (key, id));
        } else {
            self.down(at as usize, (key, id));
        }
    }
    fn clear(&mut self, id: u32) {
        let at = self.place[id as usize];
        if at != NONE {
            self.remove(at as usize);
        }
    }
    fn next(&mut self) -> u64 {
        self.heap.first().map_or(u64::MAX, |first| first.0)
    }
    fn expire(&mut self, now: u64, out: &mut Fired) {
        while let Some(&first) = self.heap.first() {
            if first.0 > now {
                break;
            }
            self.remove(0);
            out.push(first);
        }
    }
}

/// A hierarchical timing wheel: a timer stands at the level of the highest digit in which it differs from the cursor.
struct Wheel<const BITS: u32> {
    nodes: Vec<Node>,
    heads: Vec<u32>,
    used: Vec<[u64; 4]>,
    cursor: u64,
    min: Option<u64>,
}

#[derive(Clone, Copy)]
struct Node {
    key: u64,
    next: u32,
    prev: u32,
    slot: u32,
}

impl<const BITS: u32> Wheel<BITS> {
    const SLOTS: usize = 1 << BITS;

    fn slot(&self, key: u64) -> usize {
        let differs = key ^ self.cursor;
        let level = (63 - (differs | 1).leading_zeros()) / BITS;
        level as usize * Self::SLOTS + (key >> (level * BITS)) as usize % Self::SLOTS
    }
    fn link(&mut self, id: u32, key: u64) {
        let slot = self.slot(key);
        let head = self.heads[slot];
        self.nodes[id as usize] = Node { key, next: head, prev: NONE, slot: slot as u32 };
        if head == NONE {
            self.used[slot / Self::SLOTS][slot % Self::SLOTS / 64] |= 1 << (slot % 64);
        } else {
            self.nodes[head as usize].prev = id;
        }
        self.heads[slot] = id;
    }
    fn unlink(&mut self, id: u32) {
        let Node { next, prev, slot, .. } = self.nodes[id as usize];
        self.nodes[id as usize].slot = NONE;
        if next != NONE {
            self.nodes[next as usize].prev = prev;
        }
        if prev == NONE {
            self.heads[slot as usize] = next;
            if next == NONE {
                let slot = slot as usize;
                self.used[slot / Self::SLOTS][slot % Self::SLOTS / 64] &= !(1 << (slot % 64));
            }
        } else {
            self.nodes[prev as usize].next = next;
        }
    }
    fn first(&self) -> Option<usize> {
        self.used.iter().enumerate().find_map(|(level, words)| {
            words
                .iter()
                .enumerate()
                .find(|(_, word)| **word != 0)
                .map(|(at, word)| level * Self::SLOTS + at * 64 + word.trailing_zeros() as usize)
        })
    }
    /// The first count that a slot holds.
    fn start(&self, slot: usize) -> u64 {
        let (level, digit) = ((slot / Self::SLOTS) as u32, (slot % Self::SLOTS) as u64);
        let above =
            if (level + 1) * BITS >= 64 { 0 } else { self.cursor >> ((level + 1) * BITS) << ((level + 1) * BITS) };
        above | digit << (level * BITS)
    }
}

impl<const BITS: u32> Queue for Wheel<BITS> {
    fn new(n: usize) -> Self {
        let levels = 64usize.div_ceil(BITS as usize);
        Self {
            nodes: vec![Node { key: 0, next: NONE, prev: NONE, slot: NONE }; n],
            heads: vec![NONE; levels << BITS],
            used: vec![[0; 4]; levels],
            cursor: 0,
            min: None,
        }
    }
    fn set(&mut self, id: u32, key: u64) {
        self.clear(id);
        self.link(id, key.max(self.cursor));
        if self.min.is_some_and(|min| key < min) {
            self.min = Some(key);
        }
    }
    fn clear(&mut self, id: u32) {
        let Node { key, slot, .. } = self.nodes[id as usize];
        if slot != NONE {
            self.unlink(id);
            if self.min == Some(key) {
                self.min = None;
            }
        }
    }
    fn next(&mut self) -> u64 {
        if self.min.is_none() {
            let mut min = u64::MAX;
            if let Some(slot) = self.first() {
                let mut id = self.heads[slot];
                while id != NONE {
                    min = min.min(self.nodes[id as usize].key);
                    id = self.nodes[id as usize].next;
                }
            }
            self.min = Some(min);
        }
        self.min.unwrap()
    }
    fn expire(&mut self, now: u64, out: &mut Fired) {
        let from = out.len();
        while let Some(slot) = self.first() {
            let start = self.start(slot);
            if start > now {
                break;
            }
            self.cursor = self.cursor.max(start);
            let mut id = std::mem::replace(&mut self.heads[slot], NONE);
            self.used[slot / Self::SLOTS][slot % Self::SLOTS / 64] &= !(1 << (slot % 64));
            while id != NONE {
                let Node { key, next, .. } = self.nodes[id as usize];
                if key <= now {
                    self.nodes[id as usize].slot = NONE;
                    out.push((key, id));
                } else {
                    // The cursor is in this slot, so it is at a lower level now.
                    self.link(id, key);
                }
                id = next;
            }
        }
        // Whatever is left lies after `now`, at the level that it is on seen from `now` too.
        self.cursor = now;
        self.min = None;
        order(&mut out[from..]);
    }
}

/// The column itself, the least of every B of it, the least of every B of those, and so on.
struct Winners<const B: usize> {
    levels: Vec<Vec<u64>>,
    due: Vec<Vec<u32>>,
}

fn least(keys: &[u64]) -> u64 {
    keys.iter().copied().fold(u64::MAX, u64::min)
}

fn due_of(keys: &[u64], now: u64) -> u32 {
    keys.iter().enumerate().fold(0, |due, (index, key)| due | u32::from(*key <= now) << index)
}

impl<const B: usize> Winners<B> {
    fn expire_all(&mut self, now: u64, out: &mut Fired) {
        let top = self.levels.len() - 1;
        self.due[top].clear();
        self.due[top].push(0);
        for level in (1..=top).rev() {
            let (below, here) = self.due.split_at_mut(level);
            let list = &mut below[level - 1];
            list.clear();
            for block in &here[0] {
                let at = *block as usize * B;
                let mut due = due_of(&self.levels[level][at..][..B], now);
                while due != 0 {
                    list.push(at as u32 + due.trailing_zeros());
                    due &= due - 1;
                }
            }
        }
        for level in 0..=top {
            let (keys, above) = self.levels.split_at_mut(level + 1);
            let keys = keys.last_mut().unwrap();
            for block in &self.due[level] {
                let at = *block as usize * B;
                let block_keys = &mut keys[at..][..B];
                if level == 0 {
                    let mut due = due_of(block_keys, now);
                    while due != 0 {
                        let index = due.trailing_zeros() as usize;
                        out.push((block_keys[index], (at + index) as u32));
                        block_keys[index] = u64::MAX;
                        due &= due - 1;
                    }
                }
                if let Some(above) = above.first_mut() {
                    above[*block as usize] = least(block_keys);
                }
            }
        }
    }
}

impl<const B: usize> Queue for Winners<B> {
    fn new(n: usize) -> Self {
        let mut levels = vec![vec![u64::MAX; n.next_multiple_of(B)]];
        while levels.last().unwrap().len() > B {
            let blocks = levels.last().unwrap().len() / B;
            levels.push(vec![u64::MAX; blocks.next_multiple_of(B)]);
        }
        let due = vec![Vec::new(); levels.len()];
        Self { levels, due }
    }
    fn set(&mut self, id: u32, key: u64) {
        let (mut at, mut key) = (id as usize, key);
        let (leaves, above) = self.levels.split_first_mut().unwrap();
        let mut below = leaves;
        let mut old = std::mem::replace(&mut below[at], key);
        for level in above {
            let block = at / B;
            let held = level[block];
            if key < held {
            } else if old == held {
                key = least(&below[block * B..][..B]);
                if key == held {
                    return;
                }
            } else {
                return;
            }
            level[block] = key;
            old = held;
            at = block;
            below = level;
        }
    }
    fn clear(&mut self, id: u32) {
        self.set(id, u64::MAX);
    }
    fn next(&mut self) -> u64 {
        least(self.levels.last().unwrap())
    }
    fn expire(&mut self, now: u64, out: &mut Fired) {
        let from = out.len();
        self.expire_all(now, out);
        order(&mut out[from..]);
    }
}

/// The queue itself: all timers in one group, or in groups of VM.
struct Queued<const VM: usize> {
    queue: DeadlineQueue,
    last: u64,
    buffer: Vec<queued::Fired>,
}

impl<const VM: usize> Queue for Queued<VM> {
    fn new(n: usize) -> Self {
        let mut queue = DeadlineQueue::new();
        for group in 0..if VM == 0 { 1 } else { n / VM } {
            queue.add_group(if VM == 0 { n } else { VM } as u32, Offset(group as u64 * 1000)).unwrap();
        }
        queue.next_deadline(HostCount(BEGIN));
        Self { queue, last: BEGIN, buffer: Vec::new() }
    }
    fn set(&mut self, id: u32, key: u64) {
        let offset = if VM == 0 { 0 } else { u64::from(id) / VM as u64 * 1000 };
        self.queue.arm(&[id], &[key.wrapping_sub(offset)]).unwrap();
    }
    fn clear(&mut self, id: u32) {
        self.queue.disarm(&[id]).unwrap();
    }
    fn next(&mut self) -> u64 {
        self.queue.next_deadline(HostCount(self.last))
    }
    fn expire(&mut self, now: u64, out: &mut Fired) {
        self.last = now;
        self.queue.expire(HostCount(now), &mut self.buffer);
        out.extend(self.buffer.iter().map(|it| (it.deadline, it.timer)));
    }
}

/// Past every offset, so that no guest's count wraps.
const BEGIN: u64 = 1 << 40;

struct Step {
    next: u64,
    now: u64,
    fired: Fired,
    armed: Fired,
    moved: [(u64, u32); 3],
    cancelled: [u32; 3],
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
    fn distance(&mut self, spread: bool) -> u64 {
        if spread {
            // Each power of two up to 2^40 is as likely as any other.
            let bits = self.below(31) + 10;
            (1 << bits) + self.below(1 << bits)
        } else {
            1 + self.below(1 << 30)
        }
    }
}

fn trace(n: usize, steps: usize, spread: bool) -> (Vec<u64>, Vec<Step>) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut model = Tree::new(n);
    let first: Vec<u64> = (0..n).map(|_| BEGIN + random.distance(spread)).collect();
    for (id, key) in first.iter().enumerate() {
        model.set(id as u32, *key);
    }
    let mut cancelled: Vec<u32> = Vec::new();
    let steps = (0..steps)
        .map(|_| {
            let next = model.next();
            let now = model.set.iter().nth(63).unwrap().0;
            let mut fired = Vec::new();
            model.expire(now, &mut fired);
            let ids = fired.iter().map(|fired| fired.1).chain(cancelled.iter().copied());
            let armed: Fired = ids.map(|id| (now + random.distance(spread), id)).collect();
            for (key, id) in &armed {
                model.set(*id, *key);
            }
            let moved = [(); 3].map(|()| (now + random.distance(spread), random.below(n as u64) as u32));
            for (key, id) in &moved {
                model.set(*id, *key);
            }
            let dropped = [(); 3].map(|()| random.below(n as u64) as u32);
            for id in &dropped {
                model.clear(*id);
            }
            cancelled = dropped.to_vec();
            Step { next, now, fired, armed, moved, cancelled: dropped }
        })
        .collect();
    (first, steps)
}

fn step<Q: Queue>(queue: &mut Q, step: &Step, out: &mut Fired) -> u64 {
    let next = queue.next();
    out.clear();
    queue.expire(step.now, out);
    for (key, id) in &step.armed {
        queue.set(*id, *key);
    }
    for (key, id) in &step.moved {
        queue.set(*id, *key);
    }
    for id in &step.cancelled {
        queue.clear(*id);
    }
    next
}

trait Run {
    fn run(&mut self, steps: &[Step], check: bool);
}

impl<Q: Queue> Run for (Q, Fired) {
    fn run(&mut self, steps: &[Step], check: bool) {
        for it in steps {
            let next = step(&mut self.0, it, &mut self.1);
            if check {
                assert_eq!(next, it.next);
                assert_eq!(self.1, it.fired);
            } else {
                std::hint::black_box((next, &self.1));
            }
        }
    }
}

fn filled<Q: Queue + 'static>(first: &[u64]) -> Box<dyn Run> {
    let mut queue = Q::new(first.len());
    for (id, key) in first.iter().enumerate() {
        queue.set(id as u32, *key);
    }
    Box::new((queue, Vec::new()))
}

fn main() {
    const ROUNDS: usize = 15;
    const WARM: usize = 300;
    for spread in [false, true] {
        println!("{}", if spread { "distances 2^10 to 2^41, log-uniform" } else { "distances uniform to 2^30" });
        for n in [1_000, 100_000, 1_000_000] {
            let a_round = if n > 100_000 { WARM + 500 } else { WARM + 100 };
            let (first, steps) = trace(n, a_round * (ROUNDS + 1), spread);
            let makers: [(&str, fn(&[u64]) -> Box<dyn Run>); 8] = [
                ("BTreeSet", filled::<Tree>),
                ("binary heap", filled::<Heap<2>>),
                ("4-ary heap", filled::<Heap<4>>),
                ("wheel 64", filled::<Wheel<6>>),
                ("wheel 256", filled::<Wheel<8>>),
                ("winners 8", filled::<Winners<8>>),
                ("queue, one VM", filled::<Queued<0>>),
                ("queue, VMs of 8", filled::<Queued<8>>),
            ];
            let mut queues: Vec<_> = makers.iter().map(|(name, make)| (*name, make(&first), Vec::new())).collect();
            for (round, steps) in steps.chunks(a_round).enumerate() {
                for (_, queue, costs) in &mut queues {
                    // The others emptied the caches.
                    let (warming, timed) = steps.split_at(WARM);
                    queue.run(warming, round == 0);
                    let start = Instant::now();
                    queue.run(timed, round == 0);
                    costs.push(start.elapsed().as_nanos() as f64 / (timed.len() * 64) as f64);
                }
            }
            for (name, _, costs) in &mut queues {
                costs.remove(0);
                costs.sort_by(f64::total_cmp);
                println!("{n:>9} {name:<15} {:7.1} ns per timer that fires", costs[costs.len() / 2]);
            }
        }
    }
}
