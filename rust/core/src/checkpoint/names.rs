//! Names of VMs: text that is safe to print, one a line.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;

/// The longest name of a VM, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 64;

/// Name of a VM: at most 64 bytes of UTF-8 without control characters. The name of a VM that nobody named is empty.
///
/// Names are printed as they are, so a name from a file must not bring escape sequences, end the line, or change the
/// direction of what follows.
///
/// ```
/// use guestclock_core::checkpoint::VmName;
/// assert_eq!(VmName::new("web-1").unwrap().as_str(), "web-1");
/// assert_eq!(VmName::new("\x1b[2J"), None);
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct VmName(String);

impl VmName {
    /// A name; `None` if the text is too long or has a character that isn't allowed.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        is_name(text).then(|| Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES && text.chars().all(|c| !is_forbidden(c))
}

/// Returns whether a name can't have this character: control characters, separators of lines, and the characters that
/// change the direction of text (Unicode Bidirectional Algorithm, UAX #9, 2).
fn is_forbidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Order of names, and of keys in deterministic CBOR (RFC 8949, 4.2.1): shorter text first, then bytewise.
pub(crate) fn text_order(one: &str, other: &str) -> Ordering {
    one.len().cmp(&other.len()).then_with(|| one.as_bytes().cmp(other.as_bytes()))
}

/// Names of one VM or more, in their order, each once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// One name a line, without a newline at the end.
    text: String,
    count: usize,
    /// The names of each length, in order: a name's place among them tells where it begins.
    blocks: Vec<Block>,
}

/// Names of one length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Block {
    /// Number of bytes of each name.
    length: usize,
    /// Place of the first name.
    first: usize,
    /// Where the first name begins in the text.
    start: usize,
}

impl Names {
    /// Names in this text, one a line; the text and the reason, if they aren't names in their order.
    pub(crate) fn new(text: String) -> Result<Self, (String, &'static str)> {
        match blocks(&text) {
            Ok((count, blocks)) => Ok(Self { text, count, blocks }),
            Err(why) => Err((text, why)),
        }
    }

    /// Number of names.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The names in their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.text.split('\n')
    }

    /// The numbers whose decimal digits the names are; `None` if one isn't a number's.
    #[must_use]
    pub fn numbers(&self) -> Option<Vec<u64>> {
        let mut numbers = Vec::with_capacity(self.count);
        let ends = self.blocks.iter().skip(1).map(|next| next.start).chain([self.text.len() + 1]);
        for (Block { length, start, .. }, end) in self.blocks.iter().zip(ends) {
            if *length == 0 {
                return None;
            }
            for name in self.text.as_bytes()[*start..end - 1].chunks(length + 1) {
                let (first, name) = name[..*length].split_first()?;
                let digit = |byte: &u8| u64::from(byte.wrapping_sub(b'0'));
                let (mut number, mut strange) = (digit(first), digit(first) > 9);
                for byte in name {
                    number = number.checked_mul(10)?.checked_add(digit(byte))?;
                    strange |= digit(byte) > 9;
                }
                // No number has a zero before other digits.
                if strange || *first == b'0' && !name.is_empty() {
                    return None;
                }
                numbers.push(number);
            }
        }
        Some(numbers)
    }

    /// The name at this place; `None` past the end.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<&str> {
        let number = self.blocks.partition_point(|block| block.first <= place).checked_sub(1)?;
        let Block { length, first, start } = self.blocks[number];
        // Past the last name this is past the end of the text.
        let start = start.checked_add((place - first).checked_mul(length + 1)?)?;
        self.text.get(start..start.checked_add(length)?)
    }

    /// Returns the place of a name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        let number = self.blocks.binary_search_by_key(&name.len(), |block| block.length).ok()?;
        let mut low = self.blocks[number].first;
        let mut high = self.blocks.get(number + 1).map_or(self.count, |next| next.first);
        while low < high {
            let middle = low.midpoint(high);
            match self.get(middle)?.cmp(name) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// Returns whether two lists have a name in common.
    pub(crate) fn meet(&self, other: &Self) -> Option<&str> {
        let (mut ones, mut others) = (self.iter().peekable(), other.iter().peekable());
        while let (Some(one), Some(other)) = (ones.peek(), others.peek()) {
            match text_order(one, other) {
                Ordering::Less => drop(ones.next()),
                Ordering::Greater => drop(others.next()),
                Ordering::Equal => return ones.next(),
            }
        }
        None
    }
}

/// Returns the number of names in this text, one a line, and their blocks; the reason, if they aren't names in their order.
fn blocks(text: &str) -> Result<(usize, Vec<Block>), &'static str> {
    // Without an early end and without a check for overflow, so that it becomes vector code.
    let plain = |byte: u8| byte.wrapping_sub(b' ') <= b'~' - b' ' || byte == b'\n';
    let strange = text.as_bytes().iter().fold(false, |any, byte| any | !plain(*byte));
    if strange && text.chars().any(|c| c != '\n' && is_forbidden(c)) {
        return Err("have a control character");
    }
    if let Some((count, length)) = of_one_length(text.as_bytes()) {
        return Ok((count, vec![Block { length, first: 0, start: 0 }]));
    }
    let mut lines = text.split('\n');
    let mut last = lines.next().unwrap_or_default();
    let (mut count, mut start) = (1, 0);
    let mut blocks = vec![Block { length: last.len(), first: 0, start }];
    for name in lines {
        if text_order(last, name).is_ge() {
            return Err("aren't in their order, shorter ones first, each once");
        }
        start += last.len() + 1;
        if name.len() > last.len() {
            blocks.push(Block { length: name.len(), first: count, start });
        }
        last = name;
        count += 1;
    }
    // The last is the longest.
    if last.len() > MAX_NAME_BYTES { Err("have one of more than 64 bytes") } else { Ok((count, blocks)) }
}

/// Returns the number of names and their length, if all have one length of 8 to 16 bytes, and are in their order: as
/// names are that are numbers. It takes a tenth of the time of the general way.
fn of_one_length(text: &[u8]) -> Option<(usize, usize)> {
    let length = text.iter().position(|byte| *byte == b'\n').filter(|length| (8..=16).contains(length))?;
    let stride = length + 1;
    let count = (text.len() + 1).is_multiple_of(stride).then_some((text.len() + 1) / stride)?;
    // A text is shorter than 2^32 bytes, so nothing wraps: this says so to the compiler, which makes vector code of it.
    let newlines = text.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte == b'\n')));
    if usize::try_from(newlines) != Ok(count - 1) {
        return None;
    }
    // The order of the bytes is that of their numbers, big endian: of the first eight, then of the last eight.
    let number = |name: &[u8], at: usize| name.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    let mut last = None;
    for name in text.chunks(stride) {
        let key = Some((number(name, 0)?, number(name, length - 8)?));
        if name.get(length).is_some_and(|end| *end != b'\n') || last >= key {
            return None;
        }
        last = key;
    }
    Some((count, length))
}

/// Names being gathered, one a line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// UTF-8, which is checked once at the end.
    text: Vec<u8>,
    count: usize,
}

/// The digits of the numbers below 100.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number as usize] = [b'0' + number / 10, b'0' + number % 10];
        number += 1;
    }
    pairs
};

/// Bytes of a name that room is made for.
const USUAL_BYTES: usize = 12;

impl Lines {
    pub(crate) fn reserve(&mut self, names: usize) {
        self.text.reserve(names * USUAL_BYTES);
    }

    pub(crate) fn push(&mut self, name: &str) {
        self.begin();
        self.text.extend_from_slice(name.as_bytes());
    }

    /// Begins a line.
    fn begin(&mut self) {
        if self.count > 0 {
            self.text.push(b'\n');
        }
        self.count += 1;
    }

    /// Adds the decimal digits of a number: many VMs are named so, and a formatter takes longer than all else.
    #[expect(clippy::cast_possible_truncation, reason = "of what is left below 100")]
    pub(crate) fn push_number(&mut self, mut number: u64) {
        const MOST: usize = 20;
        // Of twice the size, so that as many bytes follow any digit: a copy of a size that is known isn't a call.
        let mut digits = [b'0'; 2 * MOST];
        let mut first = MOST;
        // Two digits a division.
        while number >= 100 {
            first -= 2;
            digits[first..first + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
            number /= 100;
        }
        first -= 2;
        digits[first..first + 2].copy_from_slice(&PAIRS[number as usize]);
        first += usize::from(number < 10);
        self.begin();
        let end = self.text.len() + MOST - first;
        self.text.extend_from_slice(digits[first..].first_chunk::<MOST>().expect("as many bytes follow"));
        self.text.truncate(end);
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn into_text(self) -> String {
        String::from_utf8(self.text).expect("names and newlines")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;

    /// Names of all lengths, some of which no name has.
    #[test]
    fn each_name_is_found_at_its_place() {
        let mut texts: Vec<String> = [0, 1, 3, 8, 16, 63, 64].iter().map(|length| "é".repeat(length / 2)).collect();
        texts.extend((0..300).map(|number| format!("{number}")));
        texts.extend((0..50).map(|number| format!("web-{:04}", number * 2)));
        texts.sort_by(|one, other| text_order(one, other));
        texts.dedup();
        let several = Names::new(texts.join("\n")).expect("in their order");
        let of_one_length =
            Names::new((10..99).map(|number| format!("numbers-{number}")).collect::<Vec<_>>().join("\n"));
        for names in [several, of_one_length.expect("in their order")] {
            assert!(names.iter().eq((0..names.count()).filter_map(|place| names.get(place))));
            assert!(names.iter().enumerate().all(|(place, name)| names.find(name) == Some(place)));
            for place in [names.count(), names.count() + 1, usize::MAX] {
                assert_eq!(names.get(place), None);
            }
            for none in ["x", "web-0001", "web-9999", "numbers-09", "numbers-99", "numbers-1\n", "0\n", &"é".repeat(40)]
            {
                assert_eq!(names.find(none), None, "{none:?}");
            }
        }
    }

    #[test]
    fn numbers_are_their_digits() {
        let numbers = [0, 9, 10, 99, 100, 101, 999, 1000, 4_294_967_296, u64::MAX - 1, u64::MAX];
        let mut lines = Lines::default();
        for number in numbers {
            lines.push_number(number);
        }
        let text = lines.into_text();
        let digits: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        assert_eq!(text, digits.join("\n"));
        assert_eq!(Names::new(text).expect("in their order").numbers(), Some(numbers.to_vec()));
        for other in ["", "01", "00", "+1", "-1", "1 ", "x", "18446744073709551616", "1\nx1"] {
            assert_eq!(Names::new(other.into()).expect("in their order").numbers(), None, "{other:?}");
        }
    }
}
