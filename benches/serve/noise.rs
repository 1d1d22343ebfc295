//! What pictures of an exact size are filled with.

/// Bytes that no codec makes smaller, always the same ones: xorshift.
pub fn noise() -> impl Iterator<Item = u8> {
    std::iter::successors(Some(0x9e37_79b9_7f4a_7c15_u64), |state| {
        let state = state ^ (state << 13);
        let state = state ^ (state >> 7);
        Some(state ^ (state << 17))
    })
    .map(|state| state.to_le_bytes()[3])
}

/// A chunk's checksum so far. It begins and ends with all bits turned.
pub fn crc32(before: u32, data: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    data.iter().fold(before, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
