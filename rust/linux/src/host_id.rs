//! Which installation (machine-id(5)) and which boot (random(4)) this is.
//!
//! Evidence that two checkpoints share a counter, and no more than that: containers may have a machine id of their own
//! or none, clones may share one, and a kexec gives a new boot id to the same counter. Both are read once, and kept for
//! the life of the process.

use std::fs;
use std::sync::OnceLock;

/// A 128-bit id, in the order in which it is written.
pub type Id = [u8; 16];

/// /etc/machine-id; `None` where there is none yet, or what is there is not an id.
#[must_use]
pub fn machine_id() -> Option<Id> {
    static ID: OnceLock<Option<Id>> = OnceLock::new();
    *ID.get_or_init(|| parse_machine_id(&fs::read_to_string("/etc/machine-id").ok()?))
}

/// /proc/sys/kernel/random/boot_id; `None` where /proc isn't mounted.
#[must_use]
pub fn boot_id() -> Option<Id> {
    static ID: OnceLock<Option<Id>> = OnceLock::new();
    *ID.get_or_init(|| parse_boot_id(&fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?))
}

/// A machine id as text: 32 hexadecimal digits and perhaps a newline, not all zero.
#[must_use]
pub fn parse_machine_id(text: &str) -> Option<Id> {
    digits(text.strip_suffix('\n').unwrap_or(text))
}

/// A boot id as text: a UUID in groups of 8-4-4-4-12 hexadecimal digits and perhaps a newline, not all zero.
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
    fn the_kernels_own_boot_id_is_one() {
        // Every Linux has it, wherever /proc is mounted.
        assert_eq!(boot_id().is_some(), fs::exists("/proc/sys/kernel/random/boot_id").unwrap());
    }
}
