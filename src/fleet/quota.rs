//! What the routers have used of limits, together: each writes down its own part of a counter, and whoever wants more is
//! told whether the sum allows it.
//!
//! A part is written as a whole and with a version, never as a difference: what is written twice, late or not at all is
//! put right by the next one. A router that dies leaves its part behind, with what it had in flight: that has probably
//! been paid for.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::{Fleet, millis};
use crate::digest::hex;

/// A counter that nobody has used for so long is forgotten; the store still has it.
const LONGEST_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Sums what others have, adds ours, and writes ours down if no sum is too high. Answers with the number of the counter
/// that is, or 0, and what the others have. Numbers of routers are compared by version, since two questions of one
/// router may overtake each other.
const AGREE: &str = "\
local id, others, keep = ARGV[1], {}, {}
for i, key in ipairs(KEYS) do
  local own, version, max = ARGV[i * 4 - 2], tonumber(ARGV[i * 4 - 1]), tonumber(ARGV[i * 4])
  local all, sum, mine = redis.call('HGETALL', key), 0, tonumber(own)
  keep[i] = true
  for j = 1, #all, 2 do
    local v, n = string.match(all[j + 1], '^(%d+) (-?%d+)$')
    if all[j] ~= id then
      sum = sum + tonumber(n)
    elseif tonumber(v) > version then
      keep[i], mine = false, tonumber(n)
    end
  end
  others[i] = string.format('%.0f', sum)
  if sum + mine > max then return {i, others[i]} end
end
for i, key in ipairs(KEYS) do
  if keep[i] then
    redis.call('HSET', key, id, ARGV[i * 4 - 1] .. ' ' .. ARGV[i * 4 - 2])
    redis.call('PEXPIRE', key, ARGV[i * 4 + 1])
  end
end
table.insert(others, 1, 0)
return others";

/// This router's part of a counter, as it would like it to be.
#[derive(Debug)]
pub struct Part {
    /// Whose counter, and of which period.
    pub counter: String,
    /// All that this router has used and wants to use.
    pub own: i64,
    /// Grows with every change of `own`.
    pub version: u64,
    /// The sum of all routers may not be more.
    pub max: i64,
    /// How long the period still lasts.
    pub left: Duration,
}

/// What became of some parts.
#[derive(Debug, PartialEq, Eq)]
pub enum Agreement {
    /// They are written down; so much have the others used.
    Within(Vec<i64>),
    /// Nothing is written down: at this one the others have used too much.
    Exceeded(usize, i64),
    /// Redis cannot be asked.
    Away,
}

impl Fleet {
    /// Writes this router's parts of counters down, if all of them are within their limits.
    pub async fn agree(&self, parts: &[Part]) -> Agreement {
        let mut command = redis::cmd("EVAL");
        command.arg(AGREE).arg(parts.len());
        for part in parts {
            let digest = hex(&Sha256::digest(part.counter.as_bytes()));
            command.arg(format!("{}:quota:{digest}", self.prefix));
        }
        command.arg(&self.own_id);
        for part in parts {
            command.arg(part.own).arg(part.version).arg(part.max);
            command.arg(millis(part.left.min(LONGEST_LIFE)).max(1));
        }
        let answer = self.note_write("quota", self.quick.ask::<Vec<i64>>(&command).await);
        match answer.as_deref() {
            Ok([0, others @ ..]) if others.len() == parts.len() => Agreement::Within(others.to_vec()),
            Ok([at, others]) => Agreement::Exceeded(usize::try_from(at - 1).unwrap_or_default(), *others),
            _ => Agreement::Away,
        }
    }
}
