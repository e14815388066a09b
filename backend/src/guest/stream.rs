//! Copies that go past the caches.
//!
//! A write to a mapped file lands on memory that is in no cache as a rule, and that nobody reads soon. An ordinary store
//! fetches each line from memory before it overwrites it; these do not, which made random 4 KiB writes 1.4 times as fast.

/// Copies as many bytes as go in whole blocks, at most `n`, and returns how many: none where there is no such instruction
/// or `to` is not aligned for it. All of them can be seen by others when this returns.
///
/// # Safety
/// `n` bytes can be read at `from` and written at `to`, in memory that may change at any time.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) unsafe fn stream(from: *const u8, to: *mut u8, n: usize) -> usize {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const BLOCK: usize = 64;
    let blocks = n / BLOCK;
    if blocks == 0 || !to.addr().is_multiple_of(size_of::<__m128i>()) {
        return 0;
    }
    for block in 0..blocks {
        // SAFETY: the block lies inside the n bytes; `to` is aligned to 16, and so is each block of it. SSE2 is part of
        // x86-64. Loads and stores are of raw memory: whatever another writes there meanwhile, some bytes are copied.
        unsafe {
            let from = from.add(block * BLOCK).cast::<__m128i>();
            let to = to.add(block * BLOCK).cast::<__m128i>();
            let (a, b) = (_mm_loadu_si128(from), _mm_loadu_si128(from.add(1)));
            let (c, d) = (_mm_loadu_si128(from.add(2)), _mm_loadu_si128(from.add(3)));
            _mm_stream_si128(to, a);
            _mm_stream_si128(to.add(1), b);
            _mm_stream_si128(to.add(2), c);
            _mm_stream_si128(to.add(3), d);
        }
    }
    // Such stores are ordered by nothing else: the used index must not overtake them.
    // SAFETY: a fence has no conditions.
    unsafe { _mm_sfence() };
    blocks * BLOCK
}

/// See above.
///
/// # Safety
/// None: it does nothing.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(super) unsafe fn stream(_: *const u8, _: *mut u8, _: usize) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use crate::guest::Buffer;

    #[test]
    fn every_length_at_every_alignment_arrives_whole_and_nothing_else_changes() {
        let (from, to) = (Buffer::new(4096).unwrap(), Buffer::new(4096).unwrap());
        let bytes: Vec<u8> = (0..4096u32).map(|n| (n * 7 + n / 256) as u8).collect();
        from.slice().write(&bytes);
        for (skip, at, len) in (0..20)
            .flat_map(|s| (0..20).map(move |a| (s, a)))
            .flat_map(|(s, a)| [0, 1, 63, 64, 65, 511, 512, 1300].map(|l| (s, a, l)))
        {
            to.slice().write(&[0xee; 4096]);
            assert_eq!(to.slice().part(at, len).stream_from(&from.slice().part(skip, len)), len);
            let mut seen = [0; 4096];
            to.slice().read(&mut seen);
            assert!(seen[..at].iter().chain(&seen[at + len..]).all(|b| *b == 0xee), "{skip} {at} {len}");
            assert_eq!(seen[at..at + len], bytes[skip..skip + len], "{skip} {at} {len}");
        }
    }
}
