//! CRC-32C: by the CPU's instructions where it has them, else by tables.

/// The CRC-32C of these bytes (RFC 3720, 12.1 and B.4).
#[cfg(feature = "std")]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The CRC-32C of these bytes (RFC 3720, 12.1 and B.4).
#[cfg(not(feature = "std"))]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    TABLES.checksum(bytes)
}

/// Sixteen bytes a step. With `std` only the tests need them.
#[cfg(any(test, not(feature = "std")))]
static TABLES: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn it_is_crc_32c() {
        // RFC 3720, B.4: 32 bytes of zeros, and 32 bytes of ones.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// At every length and place that a routine in blocks could trip over.
    #[test]
    fn it_is_what_the_tables_say() {
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        for len in (0..1100).chain([4095, 4096, 8192, 24_575, 24_576, 39_990]) {
            for start in 0..9 {
                let bytes = &bytes[start..start + len];
                assert_eq!(crc32c(bytes), TABLES.checksum(bytes), "{len} bytes from {start}");
            }
        }
    }
}
