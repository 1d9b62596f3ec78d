//! The machine: limits, huge pages, clock, memory, cores.

use std::time::{SystemTime, UNIX_EPOCH};

use super::checks::{CLOCK, FILE_LIMIT, HUGE_PAGES, THREADS};
use super::{Finding, Setup};

/// A gateway alone takes 4,096 connections by WebSocket and 1,024 requests.
const FILES_WANTED: u64 = 16_384;
/// With fewer, a busy evening ends in refused connections.
const FILES_NEEDED: u64 = 1_024;
/// No clock that is right says less: when this was written, in seconds since 1970.
const WRITTEN_S: u64 = 1_795_305_600;

/// What was read of the machine; `None` where the system does not tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) file_limit: Option<u64>,
    /// The chosen word of transparent huge pages.
    pub(crate) huge_pages: Option<String>,
    pub(crate) memory_available: Option<u64>,
    pub(crate) cores: Option<usize>,
    pub(crate) unix_s: u64,
}

fn line_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// The soft limit in `/proc/self/limits`.
fn file_limit_in(limits: &str) -> Option<u64> {
    let soft = line_of(limits, "Max open files")?.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

/// The word in brackets of `always [madvise] never`.
fn chosen_in(words: &str) -> Option<String> {
    Some(words.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn available_in(meminfo: &str) -> Option<u64> {
    let kib: u64 = line_of(meminfo, "MemAvailable:")?.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1 << 10)
}

impl Machine {
    pub(crate) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            file_limit: file_limit_in(&read("/proc/self/limits")),
            huge_pages: chosen_in(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
            memory_available: available_in(&read("/proc/meminfo")),
            cores: std::thread::available_parallelism().ok().map(usize::from),
            unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        }
    }

    pub(crate) fn judge(&self, setup: &Setup) -> Vec<Finding> {
        vec![self.files(), self.pages(setup), self.clock(), self.threads(setup)]
    }

    fn files(&self) -> Finding {
        let cure = "ulimit -n 65536, or LimitNOFILE=65536 in the unit";
        match self.file_limit {
            None => Finding::skipped(&FILE_LIMIT, "the system does not tell its limit"),
            Some(limit) if limit < FILES_NEEDED => {
                Finding::failure(&FILE_LIMIT, format!("{limit} open files at most"), cure)
            }
            Some(limit) if limit < FILES_WANTED => Finding::warning(
                &FILE_LIMIT,
                format!("{limit} open files at most; a busy role wants {FILES_WANTED}"),
                cure,
            ),
            Some(u64::MAX) => Finding::ok(&FILE_LIMIT, "open files are not limited"),
            Some(limit) => Finding::ok(&FILE_LIMIT, format!("{limit} open files")),
        }
    }

    fn pages(&self, setup: &Setup) -> Finding {
        match self.huge_pages.as_deref() {
            None => Finding::skipped(&HUGE_PAGES, "the system has none, or does not tell"),
            Some("always") if setup.role != "gateway" => Finding::warning(
                &HUGE_PAGES,
                "transparent huge pages are always on",
                "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
            ),
            Some(word) => Finding::ok(&HUGE_PAGES, format!("huge pages: {word}")),
        }
    }

    fn clock(&self) -> Finding {
        if self.unix_s < WRITTEN_S {
            let what = format!("the clock says {} seconds since 1970", self.unix_s);
            return Finding::failure(&CLOCK, what, "timedatectl set-ntp true");
        }
        Finding::ok(&CLOCK, "the clock says a time that can be")
    }

    fn threads(&self, setup: &Setup) -> Finding {
        match (setup.threads, self.cores) {
            (Some(threads), Some(cores)) if threads > cores => Finding::warning(
                &THREADS,
                format!("--threads {threads} on {cores} cores"),
                format!("leave out --threads, or --threads {cores}"),
            ),
            (_, Some(cores)) => Finding::ok(&THREADS, format!("{cores} cores")),
            (_, None) => Finding::skipped(&THREADS, "the system does not tell its cores"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn level(machine: &Machine, setup: &Setup, id: &str) -> Level {
        let found = machine.judge(setup);
        found.iter().find(|f| f.check.id == id).expect("it is judged").level
    }

    #[test]
    fn texts_of_the_system_are_read() {
        let limits = "Limit                     Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        assert_eq!(file_limit_in(limits), Some(1024));
        assert_eq!(file_limit_in("Max open files unlimited unlimited files"), Some(u64::MAX));
        assert_eq!(file_limit_in(""), None);
        assert_eq!(chosen_in("[always] madvise never\n").as_deref(), Some("always"));
        assert_eq!(chosen_in("always"), None);
        assert_eq!(available_in("MemTotal: 5 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        let read = Machine::read();
        assert!(
            read.file_limit.is_some() && read.memory_available.is_some() && read.cores.is_some()
        );
    }

    #[test]
    fn a_machine_is_judged_by_its_numbers() {
        let well = Machine {
            file_limit: Some(65_536),
            huge_pages: Some("madvise".to_owned()),
            memory_available: Some(1 << 30),
            cores: Some(4),
            unix_s: WRITTEN_S + 1,
        };
        let setup = Setup { threads: Some(4), ..Setup::default() };
        assert!(well.judge(&setup).iter().all(|finding| finding.level == Level::Ok));
        let ill = Machine {
            file_limit: Some(64),
            huge_pages: Some("always".to_owned()),
            cores: Some(2),
            unix_s: 5,
            ..well.clone()
        };
        assert_eq!(level(&ill, &setup, "file-limit"), Level::Failure);
        assert_eq!(
            level(&Machine { file_limit: Some(4_096), ..well }, &setup, "file-limit"),
            Level::Warning
        );
        assert_eq!(level(&ill, &setup, "huge-pages"), Level::Warning);
        let gateway = Setup { role: "gateway".to_owned(), ..Setup::default() };
        assert_eq!(level(&ill, &gateway, "huge-pages"), Level::Ok);
        assert_eq!(level(&ill, &setup, "clock"), Level::Failure);
        assert_eq!(level(&ill, &setup, "threads"), Level::Warning);
        let nothing = Machine { unix_s: WRITTEN_S, ..Machine::default() };
        assert_eq!(level(&nothing, &setup, "file-limit"), Level::Skipped);
    }
}
