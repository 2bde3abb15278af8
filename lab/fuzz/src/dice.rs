//! Random numbers by a seed, and what the command line asks for.

/// A generator of random numbers (splitmix64): one seed, one sequence.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Returns the generator of a seed's sequence.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns a number below `end`, which isn't 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.word() >> 32).expect("32 bits") % end
    }

    /// Returns a byte.
    pub fn byte(&mut self) -> u8 {
        self.word().to_be_bytes()[0]
    }
}

/// Returns the number of runs, the program's first argument, and the generator of the seed, its second.
pub fn asked() -> (u64, Dice) {
    let numbers: Vec<u64> = std::env::args().skip(1).map_while(|number| number.parse().ok()).collect();
    let [runs, seed] = numbers[..] else { panic!("two arguments: the number of runs, and the seed") };
    (runs, Dice::new(seed))
}
