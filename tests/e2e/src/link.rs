//! The wire between a site and its control plane: a relay on loopback that can be cut, in both directions or in one, with
//! the connections left half open as a lost link leaves them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;

/// A relay that carries everything until it is cut.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    gate: Arc<Gate>,
    target: Arc<Mutex<SocketAddr>>,
    closed: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Gate {
    cut: Mutex<Cut>,
    changed: Condvar,
    to_server_bytes: AtomicU64,
    to_site_bytes: AtomicU64,
    pace: Mutex<Pace>,
}

/// How fast the link carries what all connections have, in both directions together.
#[derive(Debug, Default)]
struct Pace {
    /// Nothing for no limit.
    bytes_per_second: Option<u32>,
    /// When it has carried what it took.
    free_at: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Cut {
    to_server: bool,
    to_site: bool,
    /// Grows whenever the link is mended: connections from before are reset then.
    generation: u64,
}

impl Link {
    /// Listens on a free port of loopback and carries what arrives to `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn new(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let link = Self { address, gate: Arc::default(), target: Arc::new(Mutex::new(target)), closed: Arc::default() };
        let (gate, target, closed) = (link.gate.clone(), link.target.clone(), link.closed.clone());
        std::thread::spawn(move || {
            for site in listener.incoming().map_while(Result::ok) {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let to = *target.lock().expect("no thread panics with it");
                let Ok(server) = TcpStream::connect(to) else { continue };
                carry(&site, &server, &gate, true);
                carry(&server, &site, &gate, false);
            }
        });
        Ok(link)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where new connections go from now on.
    pub fn set_target(&self, target: SocketAddr) {
        *self.target.lock().expect("no thread panics with it") = target;
    }

    /// Bytes that were carried so far: to the server, and to the site.
    pub fn carried(&self) -> (u64, u64) {
        let load = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        (load(&self.gate.to_server_bytes), load(&self.gate.to_site_bytes))
    }

    /// From now on, so many bytes in a second pass.
    pub fn narrow(&self, bytes_per_second: u32) {
        self.gate.pace.lock().expect("no thread panics with it").bytes_per_second = Some(bytes_per_second);
    }

    /// Nothing passes any more; nobody is told.
    pub fn cut(&self) {
        self.change(|cut| (cut.to_server, cut.to_site) = (true, true));
    }

    /// The control plane hears nothing from the site, the site still hears the control plane.
    pub fn cut_to_server(&self) {
        self.change(|cut| cut.to_server = true);
    }

    /// The site hears nothing, the control plane still hears the site.
    pub fn cut_to_site(&self) {
        self.change(|cut| cut.to_site = true);
    }

    /// New connections pass again; those that were cut are reset.
    pub fn mend(&self) {
        self.change(|cut| *cut = Cut { to_server: false, to_site: false, generation: cut.generation + 1 });
    }

    /// Resets every connection at once; new ones pass.
    pub fn reset(&self) {
        self.mend();
    }

    fn change(&self, change: impl FnOnce(&mut Cut)) {
        change(&mut self.gate.cut.lock().expect("no thread panics with it"));
        self.gate.changed.notify_all();
    }
}

impl Gate {
    /// Takes as long as so many bytes on a link of its rate.
    fn pass(&self, bytes: usize) {
        let mut pace = self.pace.lock().expect("no thread panics with it");
        let Some(rate) = pace.bytes_per_second else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / f64::from(rate));
        let free_at = pace.free_at.map_or_else(Instant::now, |free_at| free_at.max(Instant::now())) + takes;
        pace.free_at = Some(free_at);
        drop(pace);
        std::thread::sleep(free_at.saturating_duration_since(Instant::now()));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        self.mend();
        // Wakes the listener, which then ends.
        drop(TcpStream::connect(self.address));
    }
}

/// One direction of one connection.
fn carry(from: &TcpStream, to: &TcpStream, gate: &Arc<Gate>, to_server: bool) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
    let gate = gate.clone();
    let born = gate.cut.lock().expect("no thread panics with it").generation;
    let watched = (from.try_clone(), gate.clone());
    if let (Ok(stream), gate) = watched {
        std::thread::spawn(move || {
            let mut cut = gate.cut.lock().expect("no thread panics with it");
            while cut.generation == born {
                cut = gate.changed.wait(cut).expect("no thread panics with it");
            }
            // The other side may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut cut = gate.cut.lock().expect("no thread panics with it");
            while cut.generation == born && if to_server { cut.to_server } else { cut.to_site } {
                cut = gate.changed.wait(cut).expect("no thread panics with it");
            }
            if cut.generation != born {
                return;
            }
            drop(cut);
            gate.pass(count);
            let carried = if to_server { &gate.to_server_bytes } else { &gate.to_site_bytes };
            carried.fetch_add(count as u64, Ordering::Relaxed);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
