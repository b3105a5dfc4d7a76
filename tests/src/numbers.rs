//! Numbers for tests that choose at random and must choose the same again.

/// Numbers without pattern, the same ones for a seed; each below the bound that it is asked for with.
pub fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % below
    }
}
