//! Checkpoint files with damage at random, half of them with the checksum of what they became: `make damage`.
//!
//! No coverage leads it, and one whole file of eight is restored, so it tries many more files than the fuzzer. It prints
//! how many it tried, a million at a time, and how many were whole all the same; the seed gives the same files again.

use guestclock_fuzz::dice::{Dice, asked};
use guestclock_fuzz::{START, check, enveloped, sealed};
use std::fs::{read, read_dir};
use std::path::Path;

/// Folders of whole files and of payloads, from this package's folder.
const CORPORA: [&str; 2] = ["../../tests/golden", "corpus/checkpoint"];

/// Files after which the counts are printed; the night adds them up.
const A_TIME: u64 = 1_000_000;

fn main() {
    let (runs, mut dice) = asked();
    let files = files();
    let (mut tried, mut whole) = (0_u64, 0_u64);
    for run in 1..=runs {
        let mut file = files[dice.below(files.len())].clone();
        for _ in 0..=dice.below(4) {
            damage(&mut file, &mut dice);
        }
        let file = if dice.below(2) == 0 { file } else { sealed(file) };
        whole += u64::from(check(&file, dice.below(8) == 0));
        tried += 1;
        // So that what was tried counts, if time runs out.
        if run % A_TIME == 0 || run == runs {
            println!("count: damaged files = {tried}");
            println!("count: damaged files that are whole = {whole}");
            (tried, whole) = (0, 0);
        }
    }
}

/// Reads the files to damage, in an order that doesn't depend on the file system.
fn files() -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = CORPORA
        .iter()
        .flat_map(|folder| read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("the corpus is there"))
        .map(|entry| entry.expect("the folder is read").path())
        .filter(|path| path.is_file() && path.extension().is_none_or(|extension| extension == "cbor"))
        .collect();
    paths.sort_unstable();
    let bytes = paths.iter().map(|path| read(path).expect("the file is read"));
    bytes.map(|bytes| if bytes.starts_with(START) { bytes } else { enveloped(&bytes) }).collect()
}

/// Numbers at which the format's lengths, counts and types change.
const EDGES: [u8; 16] = [0, 1, 0x17, 0x18, 0x1b, 0x1f, 0x20, 0x40, 0x5f, 0x80, 0x9f, 0xa0, 0xbf, 0xd8, 0xf6, 0xff];

/// Damages a file once: a byte or a bit, bytes put in, taken out, or copied from elsewhere in it, or its end cut off.
fn damage(file: &mut Vec<u8>, dice: &mut Dice) {
    if file.is_empty() {
        return;
    }
    let at = dice.below(file.len());
    let end = (at + dice.below(16)).min(file.len());
    match dice.below(8) {
        0 | 1 => file[at] = dice.byte(),
        2 => file[at] ^= 1 << dice.below(8),
        3 => file[at] = EDGES[dice.below(EDGES.len())],
        4 => file.insert(at, dice.byte()),
        5 => drop(file.drain(at..end)),
        6 => {
            let copied = file[at..end].to_vec();
            let to = dice.below(file.len());
            drop(file.splice(to..to, copied));
        }
        _ => file.truncate(file.len() - dice.below(file.len().min(64))),
    }
}
