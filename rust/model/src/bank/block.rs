//! Blocks of rows that a loop takes together. A loop over an array is vector code whatever the columns' addresses and
//! lengths are, and its results stay in the first-level cache for the next loop.
#![expect(clippy::inline_always, reason = "what Isa::run asks for")]

/// Number of rows in a block: the number of bytes in the widest vector.
pub(super) const BLOCK: usize = 64;

/// Computed block of a column, aligned so that none of its vectors crosses a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Lanes<T>(pub(super) [T; BLOCK]);

/// Returns the whole block with this number of a column.
#[inline(always)]
pub(super) fn whole<T>(column: &[T], number: usize) -> &[T; BLOCK] {
    &column.as_chunks().0[number]
}

/// Returns the block that begins at the row `first`.
#[inline(always)]
pub(super) fn block_at<T>(column: &mut [T], first: usize) -> &mut [T; BLOCK] {
    &mut column[first..].as_chunks_mut().0[0]
}

/// Returns the rows after a column's whole blocks, followed by `padding`.
#[inline(always)]
pub(super) fn rest<T: Copy>(column: &[T], padding: T) -> [T; BLOCK] {
    let rest = column.as_chunks::<BLOCK>().1;
    let mut padded = [padding; BLOCK];
    padded[..rest.len()].copy_from_slice(rest);
    padded
}

/// Widens a byte of all ones or all zeros to such a word.
#[inline(always)]
pub(super) const fn widened(mask: u8) -> u64 {
    (mask.cast_signed() as i64).cast_unsigned()
}
