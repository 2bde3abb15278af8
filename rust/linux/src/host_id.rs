//! Ids of the installation (machine-id(5)) and of the boot (random(4)).
//!
//! Equal ids are evidence that two checkpoints share a counter, and no proof: containers may have a machine id of their
//! own or none, clones may share one, and a kexec gives a new boot id to the same counter. Each is kept for the
//! life of the process once it was found, and looked for again until then: a process may have no descriptor left at one
//! moment, or enter its root later.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fs;
use std::sync::OnceLock;

/// A 128-bit id: its bytes in the order of the text.
pub type Id = [u8; 16];

/// Application id that the machine's id is hashed with: the result is as good for comparing, and doesn't reveal the
/// machine's id.
///
/// machine-id(5) asks for the id itself to be kept confidential, and checkpoints travel.
const APPLICATION: Id = 0x7a6f_31c5_08d2_4c1e_9b57_e30c_c4a1_62d8_u128.to_be_bytes();

/// Id of this installation, for guestclock alone; `None` where /etc/machine-id is missing or has no id.
///
/// `systemd-id128 machine-id --app-specific=7a6f31c508d24c1e9b57e30cc4a162d8` prints the same id.
#[must_use]
pub fn machine_id() -> Option<Id> {
    static ID: OnceLock<Id> = OnceLock::new();
    found(&ID, || Some(for_guestclock(parse_machine_id(&fs::read_to_string("/etc/machine-id").ok()?)?)))
}

/// `sd_id128_get_machine_app_specific` (sd_id128_get_machine(3)): the start of HMAC-SHA256 over the application's id,
/// keyed with the machine's, marked as a random UUID (RFC 9562, version 4).
fn for_guestclock(machine: Id) -> Id {
    let mut mac = Hmac::<Sha256>::new_from_slice(&machine).expect("HMAC takes a key of any length");
    mac.update(&APPLICATION);
    let mut id = Id::default();
    id.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

/// Id of this boot, from /proc/sys/kernel/random/boot_id; `None` where /proc isn't mounted.
#[must_use]
pub fn boot_id() -> Option<Id> {
    static ID: OnceLock<Id> = OnceLock::new();
    found(&ID, || parse_boot_id(&fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?))
}

/// Returns the id that was found before, or looks for it.
fn found(known: &OnceLock<Id>, look: impl FnOnce() -> Option<Id>) -> Option<Id> {
    known.get().copied().or_else(|| look().map(|id| *known.get_or_init(|| id)))
}

/// Parses a machine id: 32 hexadecimal digits and perhaps a newline, not all zero.
#[must_use]
pub fn parse_machine_id(text: &str) -> Option<Id> {
    digits(text.strip_suffix('\n').unwrap_or(text))
}

/// Parses a boot id: a UUID in groups of 8-4-4-4-12 hexadecimal digits and perhaps a newline, not all zero.
#[must_use]
pub fn parse_boot_id(text: &str) -> Option<Id> {
    let groups: Vec<&str> = text.strip_suffix('\n').unwrap_or(text).split('-').collect();
    let grouped = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
    grouped.then(|| digits(&groups.concat())).flatten()
}

fn digits(text: &str) -> Option<Id> {
    // `from_str_radix` alone would take a sign.
    let is_id = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = is_id.then(|| u128::from_str_radix(text, 16).ok()).flatten()?;
    (id != 0).then(|| id.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];

    /// Expected: Python's hmac and hashlib.
    #[test]
    fn the_machine_id_itself_is_not_told() {
        let expected = 0xcdb4_2c28_8b7f_4664_a4fb_c6e1_a063_a830_u128.to_be_bytes();
        assert_eq!(for_guestclock(ID), expected);
    }

    #[test]
    fn ids_are_bytes_in_the_order_written() {
        assert_eq!(parse_machine_id("00112233445566778899aabbccddeeff\n"), Some(ID));
        assert_eq!(parse_machine_id("00112233445566778899aabbccddeeff"), Some(ID));
        assert_eq!(parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n"), Some(ID));
    }

    #[test]
    fn what_is_not_an_id_is_none() {
        for text in [
            "",
            "\n",
            "uninitialized\n",
            "00000000000000000000000000000000\n",
            "00112233445566778899aabbccddeef\n",
            "00112233445566778899aabbccddeeff0\n",
            "00112233445566778899aabbccddeeff\n\n",
            "+0112233445566778899aabbccddeeff\n",
            "0011223344556677 899aabbccddeeff\n",
            "00112233-4455-6677-8899-aabbccddeeff\n",
            "\u{e9}0112233445566778899aabbccddeef\n",
        ] {
            assert_eq!(parse_machine_id(text), None, "{text:?}");
        }
        for text in [
            "",
            "00112233445566778899aabbccddeeff\n",
            "001122334455-6677-8899-aabb-ccddeeff\n",
            "00112233-4455-6677-8899-aabbccddeeff-\n",
            "00000000-0000-0000-0000-000000000000\n",
            "0011223g-4455-6677-8899-aabbccddeeff\n",
        ] {
            assert_eq!(parse_boot_id(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_an_id_that_was_found_is_kept() {
        let known = OnceLock::new();
        assert_eq!(found(&known, || None), None);
        assert_eq!(found(&known, || Some(ID)), Some(ID));
        assert_eq!(found(&known, || panic!("it is known")), Some(ID));
    }

    #[test]
    fn the_kernels_own_boot_id_is_one() {
        // Every Linux has it, wherever /proc is mounted.
        assert_eq!(boot_id().is_some(), fs::exists("/proc/sys/kernel/random/boot_id").unwrap());
    }
}
