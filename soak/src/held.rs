//! How much memory of a process is in use.
//!
//! What a process has of the system's memory says little of that: an allocator keeps what it was given back, in an arena for each
//! few threads, in case that one needs it again.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What was allocated and not given back, in KiB.
pub fn held_kib() -> u32 {
    let stats = ALLOCATOR.stats();
    // These were not counted at the same moment.
    let held = stats.bytes_allocated.saturating_sub(stats.bytes_deallocated);
    u32::try_from(held / 1024).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_held_until_it_is_given_back() {
        const KIB: u32 = 64 * 1024;
        let before = held_kib();
        let mut buffer = vec![1u8; KIB as usize * 1024 / 2];
        buffer.reserve_exact(KIB as usize * 1024 / 2);
        let with = held_kib();
        // Other tests run meanwhile; they hold little.
        assert!(with.abs_diff(before + KIB) < KIB / 2, "{before} KiB, then {with} KiB");
        drop(buffer);
        assert!(held_kib().abs_diff(before) < KIB / 2);
    }
}
