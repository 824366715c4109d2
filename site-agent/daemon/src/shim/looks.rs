//! Looks at how a service does, on a thread beside the one of its shim: a look takes as long as the service lets it wait.

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use atoll_model::action::Probe;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::account::Account;
use super::protocol::Variables;

/// Of what is answered over HTTP no more is read, so that whoever answers is not cut short.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// `HTTP/1.1 200`.
const STATUS_LINE_BYTES: usize = 12;
/// Runs the command, and says how it ended: whoever reaps what runs in a slot may be quicker than the thread that waits.
const SCRIPT: &str = r#""$@" > /dev/null; echo $?"#;

/// How a service is looked at.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) probe: Probe,
    pub(super) port: Option<u16>,
    /// How long one may take.
    pub(super) timeout: Duration,
    /// Of a command.
    pub(super) environment: Variables,
    pub(super) folder: PathBuf,
    pub(super) account: Option<Account>,
}

/// The looks at one service, as long as this is there.
#[derive(Debug)]
pub(super) struct Looks {
    found: Receiver<Result<(), String>>,
    paces: Sender<Duration>,
    bell: Arc<OwnedFd>,
}

impl Looks {
    /// Looks again and again, with this time before each.
    ///
    /// # Errors
    /// When there is no thread to be had, or no descriptor.
    pub(super) fn begin(look: Look, pace: Duration) -> io::Result<Self> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (found_by, found) = channel();
        let (paces, asked) = channel();
        let rung = Arc::clone(&bell);
        let looking = move || look.again_and_again(pace, &asked, &found_by, &rung);
        std::thread::Builder::new().name("atoll-looks".to_owned()).spawn(looking)?;
        Ok(Self { found, paces, bell })
    }

    /// Has another time go by before the next look, from now on.
    pub(super) fn pace(&self, pace: Duration) {
        // A thread that has ended looks no more.
        let _ = self.paces.send(pace);
    }

    /// What becomes readable when something was found.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// What was found since this was asked.
    pub(super) fn take(&self) -> Vec<Result<(), String>> {
        let mut count = [0; 8];
        // How often it was rung does not matter.
        let _ = rustix::io::read(&*self.bell, &mut count);
        self.found.try_iter().collect()
    }
}

impl Look {
    fn again_and_again(
        &self,
        mut pace: Duration,
        paces: &Receiver<Duration>,
        found: &Sender<Result<(), String>>,
        bell: &OwnedFd,
    ) {
        loop {
            match paces.recv_timeout(pace) {
                Ok(asked) => pace = asked,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    if found.send(self.look()).is_err() {
                        return;
                    }
                    // A counter that is full rings as well.
                    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
                }
            }
        }
    }

    /// Why it is not well.
    fn look(&self) -> Result<(), String> {
        match &self.probe {
            Probe::Runs => Ok(()),
            Probe::Port => self.connect().map(drop),
            Probe::Http(path) => self.request(path),
            Probe::Command(command) => {
                self.run(command).unwrap_or_else(|error| Err(format!("its health command cannot be run: {error}")))
            }
        }
    }

    fn connect(&self) -> Result<TcpStream, String> {
        let port = self.port.unwrap_or_default();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        TcpStream::connect_timeout(&address, self.timeout)
            .map_err(|error| format!("nothing answers at port {port}: {error}"))
    }

    fn request(&self, path: &str) -> Result<(), String> {
        let mut stream = self.connect()?;
        let mut ask = || {
            stream.set_write_timeout(Some(self.timeout))?;
            stream.set_read_timeout(Some(self.timeout))?;
            // In one piece: there are servers that answer the first.
            stream
                .write_all(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").as_bytes())?;
            let mut head = [0; STATUS_LINE_BYTES];
            stream.read_exact(&mut head)?;
            // What follows does not matter.
            let _ = io::copy(&mut (&stream).take(ANSWER_BYTES_MAX), &mut io::sink());
            Ok::<_, io::Error>(head)
        };
        let head = ask().map_err(|error| format!("{path} is not answered: {error}"))?;
        let head = String::from_utf8_lossy(&head);
        let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..)?.parse::<u16>().ok());
        match status {
            Some(status) if (200..400).contains(&status) => Ok(()),
            Some(status) => Err(format!("{path} is answered with status {status}")),
            None => Err(format!("{path} is answered by what is no HTTP")),
        }
    }

    fn run(&self, command: &[String]) -> io::Result<Result<(), String>> {
        let environment = self.environment.iter();
        let environment = environment.map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value)));
        let mut shell = Command::new("/bin/sh");
        if let Some(account) = &self.account {
            // Without the groups that it is in beside its own.
            shell.uid(account.uid).gid(account.gid);
        }
        let mut child = shell
            .args(["-c", SCRIPT, "sh"])
            .args(command)
            .env_clear()
            .envs(environment)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut said = Vec::new();
        let deadline = Instant::now() + self.timeout;
        let mut in_time = true;
        if let Some(output) = &mut child.stdout {
            let mut chunk = [0; 64];
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
                in_time = poll(&mut [PollFd::new(&*output, PollFlags::IN)], Some(&left))? > 0;
                match if in_time { output.read(&mut chunk)? } else { 0 } {
                    0 => break,
                    read => said.extend_from_slice(&chunk[..read]),
                }
            }
        }
        // One that was reaped already has ended.
        if matches!(child.try_wait(), Ok(None)) && !in_time {
            let _ = child.kill();
        }
        let _ = child.wait();
        Ok(match String::from_utf8_lossy(&said).trim() {
            "0" => Ok(()),
            _ if !in_time => Err("its health command does not end in time".to_owned()),
            "" => Err("its health command was ended".to_owned()),
            code => Err(format!("its health command ends with code {code}")),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::net::TcpListener;

    use super::*;

    fn look(probe: Probe, port: Option<u16>) -> Look {
        let environment = vec![(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec())];
        Look {
            probe,
            port,
            timeout: Duration::from_millis(500),
            environment,
            folder: PathBuf::from("/"),
            account: None,
        }
    }

    fn run(script: &str) -> Result<(), String> {
        look(Probe::Command(["sh", "-c", script].map(str::to_owned).to_vec()), None).look()
    }

    #[test]
    fn a_command_says_by_its_code_whether_a_service_is_well() {
        assert_eq!(run("echo said; exit 0"), Ok(()));
        assert_eq!(run("exit 3"), Err("its health command ends with code 3".to_owned()));
        assert_eq!(run("sleep 60"), Err("its health command does not end in time".to_owned()));
    }

    #[test]
    fn a_port_is_asked_whether_something_listens_and_what_it_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(look(Probe::Port, Some(port)).look(), Ok(()));
        let answers = ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.0 503 Busy\r\n\r\n", "220 mail\r\n.........."];
        let answering = std::thread::spawn(move || {
            // The first was the connection of above.
            for answer in std::iter::once("").chain(answers) {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let http = || look(Probe::Http("/up".to_owned()), Some(port)).look();
        assert_eq!(http(), Ok(()));
        assert_eq!(http(), Err("/up is answered with status 503".to_owned()));
        assert_eq!(http(), Err("/up is answered by what is no HTTP".to_owned()));
        answering.join().unwrap();
        assert!(look(Probe::Port, Some(port)).look().unwrap_err().contains("nothing answers at port"));
    }

    #[test]
    fn what_is_found_is_told_and_another_pace_is_taken_up_at_once() {
        let looks = Looks::begin(look(Probe::Runs, None), Duration::from_secs(3600)).unwrap();
        assert!(looks.take().is_empty());
        looks.pace(Duration::from_millis(1));
        poll(&mut [PollFd::from_borrowed_fd(looks.bell(), PollFlags::IN)], None).unwrap();
        assert_eq!(looks.take().first(), Some(&Ok(())));
    }
}
