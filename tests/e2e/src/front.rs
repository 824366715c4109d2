//! What stands in front of a bucket and has its moods: it passes on all that is said, answers with an error, ends in the
//! middle of an answer, or says nothing more.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use anyhow::Result;

/// What it lets through of a connection before it ends in the middle, or stands still.
const HALF: u64 = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Every request is answered with this status.
    Error(u16),
    /// Connections end in the middle.
    Half,
    /// Connections stand still in the middle.
    Stall,
}

#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    mood: Mutex<Mood>,
    changed: Condvar,
    /// Connections that met a mood other than well.
    met: AtomicU64,
    closed: AtomicBool,
}

impl Front {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn new(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (mood, changed) = (Mutex::new(Mood::Well), Condvar::new());
        let shared = Shared { target, mood, changed, met: AtomicU64::new(0), closed: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if serving.closed.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || shared.serve(&client));
            }
        });
        Ok(Self { address, shared })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, mood: Mood) {
        *self.shared.mood.lock().expect("no thread panics with it") = mood;
        self.shared.met.store(0, Ordering::SeqCst);
        self.shared.changed.notify_all();
    }

    /// Connections that have met the mood since it was set.
    pub fn met(&self) -> u64 {
        self.shared.met.load(Ordering::SeqCst)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.set(Mood::Well);
        // Wakes the listener, which then ends.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn mood(&self) -> Mood {
        *self.mood.lock().expect("no thread panics with it")
    }

    fn meet(&self) {
        self.met.fetch_add(1, Ordering::SeqCst);
    }

    fn serve(self: &Arc<Self>, client: &TcpStream) {
        if let Mood::Error(status) = self.mood() {
            self.meet();
            return answer(client, status);
        }
        let Ok(server) = TcpStream::connect(self.target) else { return };
        for (from, to) in [(client, &server), (&server, client)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
            let shared = Arc::clone(self);
            std::thread::spawn(move || {
                shared.carry(&from, &to);
                // The other side may have closed it already.
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    }

    /// One direction of a connection, until it ends or a mood ends it.
    fn carry(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut carried = 0;
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mood = self.mood();
            let over = carried + count as u64 > HALF;
            match mood {
                Mood::Well => {}
                Mood::Half | Mood::Stall if !over => {}
                Mood::Stall => {
                    self.meet();
                    let mut now = self.mood.lock().expect("no thread panics with it");
                    while *now == mood {
                        now = self.changed.wait(now).expect("no thread panics with it");
                    }
                    return;
                }
                Mood::Half | Mood::Error(_) => return self.meet(),
            }
            carried += count as u64;
            if to.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    }
}

/// Answers one request, whatever it is.
fn answer(mut client: &TcpStream, status: u16) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match client.read(&mut byte) {
            Ok(1..) if head.len() < 64 << 10 => head.push(byte[0]),
            Ok(_) | Err(_) => return,
        }
    }
    let text = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    if client.write_all(text.as_bytes()).is_ok() && client.shutdown(Shutdown::Write).is_ok() {
        let mut rest = [0; 4 << 10];
        while matches!(client.read(&mut rest), Ok(1..)) {}
    }
}
