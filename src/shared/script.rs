//! The scripts that Redis runs, and what they answer.
//!
//! They follow the rules of `relay::admit` to the microsecond, by the server's clock; a property test holds them to that. Redis runs
//! one script at a time, so each is atomic. All keys of one API key have a hash tag in common, as Redis Cluster asks for:
//!
//! | key | what it holds |
//! |---|---|
//! | `tollgate:{TAG}:r` | a sorted set: the requests of the last 60 s, by when they were admitted |
//! | `tollgate:{TAG}:t` | the tokens of the last 60 s: second, last microsecond and tokens of each bucket, packed |
//! | `tollgate:{TAG}:c` | a sorted set: the requests that run, by when they count as dead unless they are renewed |
//! | `tollgate:{nodes}:seen` | a sorted set: the nodes, by when they were last heard of |
//! | `tollgate:{nodes}:told` | a sorted set: the processes that have told all that they remember, by when they were last heard of |
//!
//! TAG is half of the digest of the API key. Requests are known by the 16 bytes of their id: so whatever is said twice counts once.
//! Every key expires by itself. Numbers are integers below 2^53, which Lua's floats hold exactly.
//!
//! Scripts replicate their effects, which is the default since Redis 5 and the only way since 7: so they may read the clock and write.

use redis::Cmd;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use uuid::Uuid;

use super::Tag;
use crate::relay::admit::{Denied, KeyLimits, Window, WindowView};

/// The largest number that the scripts are given.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// How long a running request counts that nobody renews.
pub(super) const SLOT_US: u64 = 15_000_000;
/// How long a node counts that is not heard of.
pub(super) const NODE_US: u64 = 5_000_000;

const SEEN_KEY: &str = "tollgate:{nodes}:seen";
const TOLD_KEY: &str = "tollgate:{nodes}:told";

/// Sets `now`, in microseconds.
const SERVER_CLOCK: &str = "local time = redis.call('TIME')\nlocal now = time[1] * 1000000 + time[2]\n";

/// The token window, as `relay::admit::window` has it.
const COMMON: &str = r"
local WINDOW = 60000000
local function text(number) return string.format('%.0f', number) end

local function load()
  local packed = redis.call('GET', KEYS[2])
  local kept, used = {}, 0
  if packed then
    local all = cmsgpack.unpack(packed)
    for i = 1, #all, 3 do
      if now <= all[i + 1] + WINDOW then
        local n = #kept
        kept[n + 1], kept[n + 2], kept[n + 3] = all[i], all[i + 1], all[i + 2]
        used = used + all[i + 2]
      end
    end
  end
  return kept, used
end

local function save(buckets)
  if #buckets == 0 then
    redis.call('DEL', KEYS[2])
  else
    redis.call('SET', KEYS[2], cmsgpack.pack(buckets), 'PX', 62000)
  end
end

local function add(buckets, used, tokens)
  tokens = math.min(tokens, 9007199254740991 - used)
  if tokens <= 0 then return 0 end
  local second, n = math.floor(now / 1000000), #buckets
  if n > 0 and buckets[n - 2] >= second then
    buckets[n - 1] = math.max(buckets[n - 1], now)
    buckets[n] = buckets[n] + tokens
  else
    buckets[n + 1], buckets[n + 2], buckets[n + 3] = second, now, tokens
  end
  return tokens
end

local function give_back(buckets, at, tokens)
  local second = math.floor(at / 1000000)
  for i = 1, #buckets, 3 do
    if buckets[i] == second then
      buckets[i + 2] = math.max(0, buckets[i + 2] - tokens)
      return
    end
  end
end
";

/// KEYS r, t, c. ARGV id, the server's time past which nothing is done any more, requests, tokens (-1 without a limit), tokens to
/// reserve, requests at once (-1), microseconds that the slot counts.
const ADMIT: &str = r"
local id, latest = ARGV[1], tonumber(ARGV[2])
local rpm, tpm, reserve = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local at_once, slot = tonumber(ARGV[6]), tonumber(ARGV[7])
if now > latest then return {5, now, now, 0, 0, 0, -1, -1} end

local function expire_requests()
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. text(now - WINDOW))
  local newest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
  return tonumber(newest[2] or 0)
end
local last = expire_requests()
if last > now + WINDOW then
  -- The server's clock was set back; what lies further ahead than a window would never leave.
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. text(now + WINDOW), '+inf')
  last = expire_requests()
end
local held = redis.call('ZCARD', KEYS[1])

local function until_a_request()
  local place = math.max(0, held - math.max(rpm, 1))
  local leaves = redis.call('ZRANGE', KEYS[1], place, place, 'WITHSCORES')[2]
  if not leaves then return 60000 end
  return math.max(1, math.ceil((leaves + WINDOW - now) / 1000))
end
local buckets, used = {}, 0
if tpm >= 0 then buckets, used = load() end
local function until_used(bound)
  local left = used
  for i = 1, #buckets, 3 do
    left = left - buckets[i + 2]
    if left <= bound then return math.max(0, math.ceil((buckets[i + 1] + WINDOW + 1 - now) / 1000)) end
  end
  return 0
end

local code, wait, at = 0, 0, math.max(now, last)
if held >= rpm then
  code, wait = 1, until_a_request()
elseif tpm >= 0 and reserve > tpm then
  code = 3
elseif tpm >= 0 and not (used <= tpm - reserve and used < tpm) then
  code, wait = 2, until_used(math.min(tpm - reserve, math.max(tpm - 1, 0)))
elseif at_once >= 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', text(now))
  if redis.call('ZCARD', KEYS[3]) >= at_once then code = 4 end
end
if code == 0 then
  redis.call('ZADD', KEYS[1], text(at), id)
  redis.call('PEXPIRE', KEYS[1], 61000)
  held = held + 1
  if tpm >= 0 then
    used = used + add(buckets, used, reserve)
    save(buckets)
  end
  if tpm >= 0 or at_once >= 0 then
    redis.call('ZADD', KEYS[3], text(now + slot), id)
    redis.call('PEXPIRE', KEYS[3], text(math.ceil(slot / 1000) + 1000))
  end
end
local requests_reset, tokens_left, tokens_reset = 0, -1, -1
if held > 0 then requests_reset = until_a_request() end
if tpm >= 0 then
  tokens_left, tokens_reset = math.max(tpm - used, 0), 0
  if used > 0 then tokens_reset = until_used(math.min(used - 1, math.max(tpm - 1, 0))) end
end
return {code, now, at, wait, math.max(rpm - held, 0), requests_reset, tokens_left, tokens_reset}
";

/// The end of a request that has a slot. KEYS r, t, c. ARGV id, when it was admitted (-1 where that is not known here), tokens reserved
/// (-1 for none), tokens used (-1 where the reservation stands). Without the slot it was done before, or nobody renewed it for long.
const RELEASE: &str = r"
local id, at, reserved, used = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('ZREM', KEYS[3], id) == 0 then return 0 end
if reserved >= 0 and used >= 0 then
  local buckets, total = load()
  if used > reserved then
    add(buckets, total, used - reserved)
  else
    if at < 0 then at = tonumber(redis.call('ZSCORE', KEYS[1], id) or -1) end
    give_back(buckets, at, reserved - used)
  end
  save(buckets)
end
return 1
";

/// A request is not to have been admitted. KEYS r, t, c. ARGV id, tokens reserved (-1 for none).
const UNDO: &str = r"
local id, reserved = ARGV[1], tonumber(ARGV[2])
local at = redis.call('ZSCORE', KEYS[1], id)
redis.call('ZREM', KEYS[3], id)
if not at then return 0 end
redis.call('ZREM', KEYS[1], id)
if reserved >= 0 then
  local buckets = load()
  give_back(buckets, tonumber(at), reserved)
  save(buckets)
end
return 1
";

/// A request was admitted elsewhere, whatever the limits say. KEYS r, t, c. ARGV id, when, tokens (-1 for none), microseconds that its
/// slot counts (-1 where it has none). One that is new here and has ended brings the tokens that it used: a slot that was renewed before
/// goes, or its release would settle them again.
const RECORD: &str = r"
local id, at, tokens, slot = ARGV[1], math.min(tonumber(ARGV[2]), now), tonumber(ARGV[3]), tonumber(ARGV[4])
if slot >= 0 then
  redis.call('ZADD', KEYS[3], text(now + slot), id)
  redis.call('PEXPIRE', KEYS[3], text(math.ceil(slot / 1000) + 1000))
end
if now > at + WINDOW or redis.call('ZADD', KEYS[1], 'NX', text(at), id) == 0 then return 0 end
redis.call('PEXPIRE', KEYS[1], 61000)
if slot < 0 then redis.call('ZREM', KEYS[3], id) end
if tokens > 0 then
  local buckets, used = load()
  tokens = math.min(tokens, 9007199254740991 - used)
  local second, i = math.floor(at / 1000000), 1
  while i <= #buckets and buckets[i] < second do i = i + 3 end
  if buckets[i] == second then
    buckets[i + 1], buckets[i + 2] = math.max(buckets[i + 1], at), buckets[i + 2] + tokens
  else
    table.insert(buckets, i, tokens)
    table.insert(buckets, i, at)
    table.insert(buckets, i, second)
  end
  save(buckets)
end
return 1
";

/// Requests still run. KEYS c. ARGV microseconds that their slots count, ids.
const RENEW: &str = r"
local slot = tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], text(now + slot), ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], text(math.ceil(slot / 1000) + 1000))
return #ARGV - 1
";

/// A node is there. KEYS seen, told. ARGV its name, microseconds that it counts, its process. Answers the time, how many nodes there are,
/// and whether the process is known to have told all that it remembers: where not, Redis may have lost that.
const BEAT: &str = r"
redis.call('ZADD', KEYS[1], text(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now - tonumber(ARGV[2])))
redis.call('PEXPIRE', KEYS[1], 60000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now - WINDOW))
local known = redis.call('ZSCORE', KEYS[2], ARGV[3])
if known then
  redis.call('ZADD', KEYS[2], text(now), ARGV[3])
  redis.call('PEXPIRE', KEYS[2], 60000)
end
return {now, redis.call('ZCARD', KEYS[1]), known and 1 or 0}
";

/// A process has told all that it remembers. KEYS told. ARGV the process.
const TOLD: &str = r"
redis.call('ZADD', KEYS[1], text(now), ARGV[1])
redis.call('PEXPIRE', KEYS[1], 60000)
return 1
";

/// One script, and what Redis knows it by.
pub(super) struct Script {
    pub(super) source: String,
    sha: String,
}

impl Script {
    fn new(clock: &str, body: &str) -> Self {
        let source = [clock, COMMON, body].concat();
        let sha = digest(&SHA1_FOR_LEGACY_USE_ONLY, source.as_bytes());
        let sha = sha.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { source, sha }
    }

    fn call(&self, keys: usize) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.sha).arg(keys);
        command
    }
}

/// What an admission asks for.
pub(super) struct Ask<'a> {
    pub(super) tag: Tag,
    pub(super) id: Uuid,
    pub(super) limits: &'a KeyLimits,
    pub(super) reserve: u64,
    /// The server's time past which nothing is done any more.
    pub(super) latest_us: u64,
    /// For how long the slot counts.
    pub(super) slot_us: u64,
}

/// All of them.
pub(super) struct Scripts {
    admit: Script,
    release: Script,
    undo: Script,
    record: Script,
    renew: Script,
    beat: Script,
    told: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Self::by_clock(SERVER_CLOCK)
    }
}

impl Scripts {
    /// With Lua that sets `now`; tests bring a clock of their own.
    pub(super) fn by_clock(clock: &str) -> Self {
        let script = |body| Script::new(clock, body);
        Self {
            admit: script(ADMIT),
            release: script(RELEASE),
            undo: script(UNDO),
            record: script(RECORD),
            renew: script(RENEW),
            beat: script(BEAT),
            told: script(TOLD),
        }
    }

    /// Each of them, to be loaded.
    pub(super) fn all(&self) -> [&Script; 7] {
        [&self.admit, &self.release, &self.undo, &self.record, &self.renew, &self.beat, &self.told]
    }

    pub(super) fn admit(&self, ask: &Ask<'_>) -> Cmd {
        let mut command = of_key(&self.admit, ask.tag, ask.id);
        command.arg(ask.latest_us).arg(ask.limits.requests_per_minute).arg(or_none(ask.limits.tokens_per_minute));
        command.arg(ask.reserve.min(NUMBER_MAX)).arg(or_none(ask.limits.concurrent_requests.map(u64::from)));
        command.arg(ask.slot_us);
        command
    }

    pub(super) fn release(
        &self,
        tag: Tag,
        id: Uuid,
        at_us: Option<u64>,
        reserved: Option<u64>,
        used: Option<u64>,
    ) -> Cmd {
        let mut command = of_key(&self.release, tag, id);
        command.arg(or_none(at_us)).arg(or_none(reserved)).arg(or_none(used));
        command
    }

    pub(super) fn undo(&self, tag: Tag, id: Uuid, reserved: Option<u64>) -> Cmd {
        let mut command = of_key(&self.undo, tag, id);
        command.arg(or_none(reserved));
        command
    }

    pub(super) fn record(&self, tag: Tag, id: Uuid, at_us: u64, tokens: Option<u64>, slot_us: Option<u64>) -> Cmd {
        let mut command = of_key(&self.record, tag, id);
        command.arg(at_us).arg(or_none(tokens)).arg(or_none(slot_us));
        command
    }

    pub(super) fn renew(&self, tag: Tag, ids: &[Uuid]) -> Cmd {
        let mut command = self.renew.call(1);
        command.arg(tag.key('c')).arg(SLOT_US);
        for id in ids {
            command.arg(id.as_bytes().as_slice());
        }
        command
    }

    pub(super) fn beat(&self, node: &str, process: Uuid) -> Cmd {
        let mut command = self.beat.call(2);
        command.arg(SEEN_KEY).arg(TOLD_KEY).arg(node).arg(NODE_US).arg(process.as_bytes().as_slice());
        command
    }

    pub(super) fn told(&self, process: Uuid) -> Cmd {
        let mut command = self.told.call(1);
        command.arg(TOLD_KEY).arg(process.as_bytes().as_slice());
        command
    }
}

fn of_key(script: &Script, tag: Tag, id: Uuid) -> Cmd {
    let mut command = script.call(3);
    command.arg(tag.key('r')).arg(tag.key('t')).arg(tag.key('c')).arg(id.as_bytes().as_slice());
    command
}

/// A number, or what stands for none.
fn or_none(number: Option<u64>) -> i64 {
    number.map_or(-1, |number| i64::try_from(number.min(NUMBER_MAX)).unwrap_or(-1))
}

/// What an admission is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// The server's time.
    pub(super) now_us: u64,
    /// When the request counts as admitted, where it was.
    pub(super) at_us: u64,
    pub(super) outcome: Outcome,
    /// The windows after it.
    pub(super) view: WindowView,
}

/// What became of an admission.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Admitted,
    Denied(Denied),
    /// It came too late to be waited for: nothing was done.
    Late,
}

impl Answered {
    /// Reads an answer; `None` where it is none.
    pub(super) fn read(numbers: &[i64], limits: &KeyLimits) -> Option<Self> {
        let &[code, now, at, wait, requests_left, requests_reset, tokens_left, tokens_reset] = numbers else {
            return None;
        };
        let retry_after_ms = u64::try_from(wait).ok()?;
        let window = |limit: u64, remaining: i64, reset: i64| {
            let (remaining, reset_ms) = (u64::try_from(remaining).ok()?, u64::try_from(reset).ok()?);
            Some(Window { limit, remaining, reset_ms })
        };
        let requests = window(u64::from(limits.requests_per_minute), requests_left, requests_reset)?;
        let tokens = limits.tokens_per_minute.and_then(|limit| window(limit, tokens_left, tokens_reset));
        Some(Self {
            now_us: u64::try_from(now).ok()?,
            at_us: u64::try_from(at).ok()?,
            outcome: match code {
                0 => Outcome::Admitted,
                1 => Outcome::Denied(Denied::Requests { retry_after_ms }),
                2 => Outcome::Denied(Denied::Tokens { retry_after_ms }),
                3 => Outcome::Denied(Denied::TooManyTokens),
                4 => Outcome::Denied(Denied::AtOnce),
                5 => Outcome::Late,
                _ => return None,
            },
            view: WindowView { requests, tokens },
        })
    }
}
