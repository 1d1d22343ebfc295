//! How much a process takes in where nobody says it.

use std::fs;

/// What the container may have, by control groups of version 2 and 1.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Where there is no container, or a large one.
const USUAL: usize = 1 << 30;

/// Bytes of requests and answers: 1 GiB, or what a smaller container leaves for them.
pub fn default_budget() -> usize {
    let limits = MEMORY_LIMITS.map(|file| fs::read_to_string(file).unwrap_or_default());
    within(limits.iter().map(String::as_str))
}

/// Without a limit, version 2 has a word there and version 1 a number that no machine has.
fn within<'a>(limits: impl IntoIterator<Item = &'a str>) -> usize {
    let limits = limits.into_iter().filter_map(|limit| limit.trim().parse::<usize>().ok());
    limits.min().map_or(USUAL, |limit| (limit / 5 * 3).min(USUAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_container_has_little_room() {
        assert_eq!(within(["max\n", ""]), USUAL);
        assert_eq!(within(["", "9223372036854771712\n"]), USUAL);
        assert_eq!(within(["536870912\n", ""]), 536_870_912 / 5 * 3);
        assert_eq!(within([]), USUAL);
    }
}
