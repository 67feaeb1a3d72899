//! How much memory is used of what there is, looked at now and then and never by a request.
//!
//! What there is is the limit of the control group that the process runs in, or of one above it, whichever is nearer to being
//! reached: past it the kernel kills. What is used is that group's, without the file cache that the kernel gives back by itself.
//! Where no group has a limit, it is the machine's memory against what the process itself holds.
//!
//! Deliberately absent: a forecast. A request whose beginning was let in may grow; the share that is left has to hold that.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::config::{Live, Share};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What the last look found.
#[derive(Debug, Default)]
pub(super) struct Memory {
    used_bytes: AtomicU64,
    limit_bytes: AtomicU64,
    is_short: AtomicBool,
}

impl Memory {
    /// Whether so much is used that nothing new is to begin.
    pub(super) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// What is used; 0 before the first look, or where it cannot be known.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// What may be used; 0 where that cannot be known.
    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes.load(Ordering::Relaxed)
    }

    fn note(&self, usage: Usage, share: Share) {
        let limit_bytes = share.of(usage.there_bytes);
        let is_short = usage.used_bytes > limit_bytes;
        self.used_bytes.store(usage.used_bytes, Ordering::Relaxed);
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
        let was_short = self.is_short.swap(is_short, Ordering::Relaxed);
        let used_bytes = usage.used_bytes;
        match (was_short, is_short) {
            (false, true) => tracing::warn!(used_bytes, limit_bytes, "memory is short; new requests are refused"),
            (true, false) => tracing::info!(used_bytes, limit_bytes, "memory suffices again"),
            _ => {}
        }
    }
}

/// Looks for ever, by the share of the configuration in force.
pub(super) async fn watch(memory: Arc<Memory>, live: Arc<Live>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if let Ok(Some(usage)) = tokio::task::spawn_blocking(|| look(Path::new("/"))).await {
            memory.note(usage, live.load().limits.memory_share_max);
        }
    }
}

/// What is used of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    used_bytes: u64,
    there_bytes: u64,
}

impl Usage {
    fn is_nearer_to_its_limit_than(&self, other: &Self) -> bool {
        u128::from(self.used_bytes) * u128::from(other.there_bytes)
            > u128::from(other.used_bytes) * u128::from(self.there_bytes)
    }
}

/// Looks below a root that has `proc` and `sys`.
fn look(root: &Path) -> Option<Usage> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limited = groups.lines().filter_map(Group::of_line).flat_map(|group| group.usages(root));
    let nearest =
        limited.reduce(|nearest, usage| if usage.is_nearer_to_its_limit_than(&nearest) { usage } else { nearest });
    nearest.or_else(|| of_the_process(root))
}

/// A line of `/proc/self/cgroup` that is about memory.
struct Group<'a> {
    version: &'static Version,
    path: &'a str,
}

/// What the two versions of control groups call things.
struct Version {
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}

const SECOND: Version =
    Version { mount: "sys/fs/cgroup", limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };
const FIRST: Version = Version {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

/// The first version writes "no limit" as a number near the largest there is.
const NO_LIMIT_BYTES: u64 = 1 << 60;

impl<'a> Group<'a> {
    /// `0::/path` of version 2, `7:memory:/path` of version 1.
    fn of_line(line: &'a str) -> Option<Self> {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let version = match controllers {
            "" => &SECOND,
            _ if controllers.split(',').any(|name| name == "memory") => &FIRST,
            _ => return None,
        };
        Some(Self { version, path: path.trim_start_matches('/') })
    }

    /// Of this group and those above it, as many as have a limit. In a container the groups above may not be there to be seen.
    fn usages(self, root: &Path) -> impl Iterator<Item = Usage> {
        let mount = root.join(self.version.mount);
        let own = mount.join(self.path);
        let folders: Vec<PathBuf> =
            own.ancestors().take_while(|folder| folder.starts_with(&mount)).map(Path::to_path_buf).collect();
        folders.into_iter().filter_map(move |folder| self.version.usage_in(&folder))
    }
}

impl Version {
    fn usage_in(&self, folder: &Path) -> Option<Usage> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let there_bytes = number(self.limit).filter(|limit| (1..NO_LIMIT_BYTES).contains(limit))?;
        let reclaimable = read("memory.stat").and_then(|stat| named(&stat, self.reclaimable)).unwrap_or(0);
        Some(Usage { used_bytes: number(self.usage)?.saturating_sub(reclaimable), there_bytes })
    }
}

/// What the process holds, of the machine's memory.
fn of_the_process(root: &Path) -> Option<Usage> {
    let kibibytes = |path: &str, name: &str| named(&fs::read_to_string(root.join(path)).ok()?, name);
    Some(Usage {
        used_bytes: kibibytes("proc/self/status", "VmRSS:")?.saturating_mul(1024),
        there_bytes: kibibytes("proc/meminfo", "MemTotal:")?.saturating_mul(1024),
    })
}

/// The number that stands behind a name at a line's beginning.
fn named(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn found(files: &[(&str, &str)]) -> Option<(u64, u64)> {
        look(root(files).path()).map(|usage| (usage.used_bytes, usage.there_bytes))
    }

    const MACHINE: [(&str, &str); 2] = [
        ("proc/self/status", "Name:\ttollgate\nVmPeak:\t  900 kB\nVmRSS:\t  300 kB\n"),
        ("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\n"),
    ];

    #[test]
    fn a_groups_limit_counts_without_the_cache_that_can_be_given_back() {
        let group = [
            ("proc/self/cgroup", "0::/system.slice/tollgate.service\n"),
            ("sys/fs/cgroup/system.slice/tollgate.service/memory.max", "1000\n"),
            ("sys/fs/cgroup/system.slice/tollgate.service/memory.current", "800\n"),
            ("sys/fs/cgroup/system.slice/tollgate.service/memory.stat", "anon 1\ninactive_file 300\nactive_file 9\n"),
        ];
        assert_eq!(found(&[&group[..], &MACHINE].concat()), Some((500, 1000)));
    }

    #[test]
    fn the_group_above_counts_where_it_is_fuller() {
        let groups = [
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "10\n"),
            ("sys/fs/cgroup/a/memory.max", "100\n"),
            ("sys/fs/cgroup/a/memory.current", "90\n"),
            ("sys/fs/cgroup/memory.max", "1000\n"),
            ("sys/fs/cgroup/memory.current", "100\n"),
        ];
        assert_eq!(found(&groups), Some((90, 100)));
    }

    #[test]
    fn the_first_version_of_groups_is_read_too() {
        let groups = [
            ("proc/self/cgroup", "9:cpu,cpuacct:/x\n8:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "700\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 200\n"),
        ];
        assert_eq!(found(&groups), Some((500, 2000)), "a container sees its group at the root");
        let without = groups.map(|(path, text)| (path, if text == "2000\n" { "9223372036854771712\n" } else { text }));
        assert_eq!(found(&[&without[..], &MACHINE].concat()), Some((300 * 1024, 1000 * 1024)));
    }

    #[test]
    fn without_a_limit_it_is_the_process_against_the_machine() {
        assert_eq!(found(&MACHINE), Some((300 * 1024, 1000 * 1024)));
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn it_is_short_past_the_share_and_not_at_it() {
        let memory = Memory::default();
        for (used_bytes, is_short) in [(85, false), (86, true), (84, false)] {
            memory.note(Usage { used_bytes, there_bytes: 100 }, Share(850_000));
            assert_eq!((memory.is_short(), memory.used_bytes(), memory.limit_bytes()), (is_short, used_bytes, 85));
        }
    }
}
