//! Programs of the machine that are asked something, and not waited for without an end.

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What a program said, which has ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program that says little, without input. What is left of it when its time is over is killed, with its group.
///
/// # Errors
/// When it cannot be started, or has not ended in time.
pub(crate) fn ask(command: &mut Command, patience: Duration) -> io::Result<Said> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let status = wait(&mut child, patience)?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.stdout.take().map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut stdout))?;
    child.stderr.take().map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut stderr))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Waits for a program that leads its process group.
///
/// # Errors
/// When it has not ended in time: then it is killed.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            // It may have ended meanwhile.
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
            child.wait()?;
            let message = format!("it takes longer than {} s", patience.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
