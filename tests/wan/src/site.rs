//! Sites: network namespaces with one address each.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::device::tun;
use crate::relay::Link;
use crate::shape::Shape;

const PREFIX: &str = "atollwan";
/// Packets that may wait in a device for the relay to read them.
const DEVICE_QUEUE: &str = "4000";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The sites of a test.
#[derive(Debug)]
pub struct Network {
    number: u32,
    sites: AtomicU32,
    links: AtomicU32,
    /// Held while a thread of this process makes namespaces.
    making: Mutex<()>,
}

/// A network namespace with an address. It goes when this is dropped.
#[derive(Debug)]
pub struct Site {
    name: String,
    namespace: String,
    address: Ipv4Addr,
}

impl Network {
    /// Nothing, loudly, where namespaces and TUN devices cannot be made.
    ///
    /// # Errors
    /// When what is left of earlier tests cannot be removed.
    pub fn new() -> Result<Option<Self>> {
        if let Err(why) = possible() {
            println!("SKIPPED: no network of the test's own: {why:#}");
            return Ok(None);
        }
        remove_orphans()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Self { number, sites: AtomicU32::new(0), links: AtomicU32::new(0), making: Mutex::new(()) }))
    }

    /// Makes a site that is joined to nothing.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn site(&self, name: &str) -> Result<Site> {
        let _making = self.making.lock();
        let index = self.sites.fetch_add(1, Ordering::Relaxed) + 1;
        let namespace = format!("{PREFIX}-{}-{}-{name}", std::process::id(), self.number);
        ip(&["netns", "add", &namespace])?;
        let address = Ipv4Addr::new(10, 83, (index >> 8) as u8, index as u8);
        let site = Site { name: name.to_owned(), namespace, address };
        site.ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"])?;
        site.ip(&["link", "set", "lo", "up"])?;
        // Nothing but what a test sends is to be on the line.
        site.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        site.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        Ok(site)
    }

    /// Lays a link between two sites, with one shape in both directions.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn join(&self, first: &Site, second: &Site, shape: Shape, seed: u64) -> Result<Link> {
        let name = format!("wan{}", self.links.fetch_add(1, Ordering::Relaxed));
        let devices = [first.device(&name)?, second.device(&name)?];
        first.attach(&name, second.address)?;
        second.attach(&name, first.address)?;
        Link::start(devices, [shape; 2], seed).context("a link cannot be started")
    }
}

impl Site {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Under which the others reach it.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The name of its namespace below `/run/netns`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A command that runs in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`, which would hide the control groups.
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg("--").arg(program);
        command
    }

    /// Moves the calling thread into it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn enter(&self) -> Result<()> {
        enter(&self.namespace)
    }

    /// What moves threads that are started later into it.
    pub fn entrance(&self) -> impl Fn() + Send + Sync + 'static {
        let namespace = self.namespace.clone();
        move || enter(&namespace).expect("a site of a test can be entered")
    }

    /// Runs something in a thread that is in it.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| self.enter().map(|()| work()));
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Sets a setting of the kernel, named by its path below `/proc/sys`, for this site alone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{name}");
        self.run(|| std::fs::write(&path, value).with_context(|| format!("{path} cannot be set to {value}")))?
    }

    fn device(&self, name: &str) -> Result<File> {
        self.run(|| tun(name).context("a TUN device cannot be made"))?
    }

    fn attach(&self, device: &str, other: Ipv4Addr) -> Result<()> {
        self.ip(&["link", "set", device, "up", "mtu", "1500", "txqueuelen", DEVICE_QUEUE])?;
        let (other, own) = (format!("{other}/32"), self.address.to_string());
        self.ip(&["route", "add", &other, "dev", device, "src", &own])
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.namespace], arguments].concat())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.namespace]) {
            eprintln!("a namespace is left behind: {error:#}");
        }
    }
}

fn enter(namespace: &str) -> Result<()> {
    let path = format!("/run/netns/{namespace}");
    let file = File::open(&path).with_context(|| format!("{path} cannot be opened"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("{path} cannot be entered"))
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip cannot be run: iproute2 is needed")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), said.trim());
    Ok(())
}

fn possible() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "only root makes network namespaces");
    File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun cannot be opened")?;
    ip(&["netns", "list"])
}

/// Namespaces of tests that were killed.
fn remove_orphans() -> Result<()> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')) else { continue };
        let process = rest.split('-').next().unwrap_or_default();
        if !std::path::Path::new("/proc").join(process).exists() {
            // Another test may have been faster.
            let _ = ip(&["netns", "del", &name]);
        }
    }
    Ok(())
}
