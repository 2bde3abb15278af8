//! Rows that are taken together. A loop over an array is vector code whatever the columns' addresses and lengths are,
//! and what it leaves for the next loop stays in the first-level cache.
#![expect(clippy::inline_always, reason = "what Isa::run asks for")]

/// How many: as many bytes as the widest vector has.
pub(super) const BLOCK: usize = 64;

/// A block of a column that is computed, where no vector of it lies in two cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Lanes<T>(pub(super) [T; BLOCK]);

/// The block of a column with that number: one of the whole ones.
#[inline(always)]
pub(super) fn whole<T>(column: &[T], number: usize) -> &[T; BLOCK] {
    &column.as_chunks().0[number]
}

/// The block that begins at the row `first`.
#[inline(always)]
pub(super) fn block_at<T>(column: &mut [T], first: usize) -> &mut [T; BLOCK] {
    &mut column[first..].as_chunks_mut().0[0]
}

/// What is left of a column after its whole blocks, and `padding` behind it.
#[inline(always)]
pub(super) fn rest<T: Copy>(column: &[T], padding: T) -> [T; BLOCK] {
    let rest = column.as_chunks::<BLOCK>().1;
    let mut padded = [padding; BLOCK];
    padded[..rest.len()].copy_from_slice(rest);
    padded
}

/// A byte of all bits or none as a word of all or none.
#[inline(always)]
pub(super) const fn widened(mask: u8) -> u64 {
    (mask.cast_signed() as i64).cast_unsigned()
}
