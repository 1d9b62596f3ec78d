//! What the machine is and how busy it is, read from procfs: a figure without these cannot be held against another.
//!
//! Where a file is missing or reads otherwise, the fact is null or 0 and the run goes on.

use std::fs::read_to_string;

use serde_json::{Value, json};

use super::measure::{clock_pair_ns, round};

/// Cache that is assumed where the kernel does not tell.
const L3_BYTES_DEFAULT: u64 = 32 << 20;

/// The facts that do not change while the benchmark runs.
pub(super) fn facts() -> Value {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    json!({
        "cores": cores,
        "cpu_model": cpu_model(),
        "memory_bytes": meminfo("MemTotal"),
        "l3_bytes": l3_bytes(),
        "clock_pair_ns": round(clock_pair_ns()),
    })
}

/// The load average of the last minute.
pub(super) fn load_1m() -> Option<f64> {
    read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// Memory that could be had without swapping.
pub(super) fn available_bytes() -> u64 {
    meminfo("MemAvailable").unwrap_or(0)
}

/// Memory that this process has in RAM.
pub(super) fn resident_bytes() -> u64 {
    kilobytes(&read_to_string("/proc/self/status").unwrap_or_default(), "VmRSS").unwrap_or(0)
}

/// The size of the last-level cache.
pub(super) fn l3_bytes() -> u64 {
    let path = "/sys/devices/system/cpu/cpu0/cache/index3/size";
    let text = read_to_string(path).unwrap_or_default();
    let number = |unit: char| text.trim().strip_suffix(unit)?.parse::<u64>().ok();
    let bytes = number('K').map(|k| k << 10).or_else(|| number('M').map(|m| m << 20));
    bytes.filter(|b| (1 << 20..1 << 32).contains(b)).unwrap_or(L3_BYTES_DEFAULT)
}

fn meminfo(name: &str) -> Option<u64> {
    kilobytes(&read_to_string("/proc/meminfo").ok()?, name)
}

/// The value of `Name:   123 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn cpu_model() -> Option<String> {
    let text = read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|l| l.split(':').next().map(str::trim) == Some(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = field("model name")?;
    // Virtual machines shorten the name; family and model tell the generation.
    match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => Some(format!("{name} (family {family}, model {model})")),
        _ => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kilobytes_are_read_and_nonsense_is_not() {
        let text = "MemTotal:       100 kB\nMemAvailable:    7 kB\nOdd: x kB\n";
        assert_eq!(kilobytes(text, "MemAvailable"), Some(7 * 1024));
        assert_eq!(kilobytes(text, "Mem"), None);
        assert_eq!(kilobytes(text, "Odd"), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes() > 100_000);
        assert!(available_bytes() > resident_bytes() / 16);
    }
}
