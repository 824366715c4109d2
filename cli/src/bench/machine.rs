//! The machine that is measured, and what its processes have used.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};

pub(super) fn describe() -> Value {
    json!({
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu": cpu_model(),
        "kernel": sysinfo::System::kernel_version().ok(),
        "os": sysinfo::System::long_os_version().ok(),
    })
}

fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// User and system time, its waited-for children included.
    pub(super) cpu_seconds: f64,
    pub(super) max_rss_bytes: u64,
}

/// # Errors
/// When there is no such process.
pub(super) fn used(pid: u32) -> anyhow::Result<Used> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    let after_name = stat.rsplit_once(") ").context("the process's stat")?.1;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks: u64 = fields[11..=12].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every Linux that Atoll runs on.
    Ok(Used { cpu_seconds: ticks as f64 / 100.0, max_rss_bytes: memory(pid, "VmHWM:")? })
}

/// What of a process is in memory now.
///
/// # Errors
/// When there is no such process.
pub(super) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
    let kibibytes: u64 = line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0);
    Ok(kibibytes * 1024)
}

/// How many processes of `/bin/true` this machine starts and reaps in a second, with a bare loop on every core.
pub(super) fn bare_spawn_rate(each: u32) -> anyhow::Result<f64> {
    let loops = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    let began = Instant::now();
    let threads: Vec<_> = (0..loops)
        .map(|_| {
            std::thread::spawn(move || -> std::io::Result<()> {
                for _ in 0..each {
                    Command::new("/bin/true").stdin(Stdio::null()).env_clear().status()?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a spawn loop panicked"))?.context("cannot start /bin/true")?;
    }
    Ok(f64::from(loops * each) / began.elapsed().as_secs_f64())
}
