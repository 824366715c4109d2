//! Changing a link from outside of the process that carries it: lines of JSON over a Unix socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::relay::{Carried, Link};
use crate::shape::Shape;

/// What a link is asked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How is it, and what has it carried?
    Look,
    /// From the first site to the second.
    ShapeThere(Shape),
    /// From the second site to the first.
    ShapeBack(Shape),
    Shape(Shape),
    Cut,
    Mend,
}

/// What it answers: both directions, there and back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub shapes: [Shape; 2],
    pub carried: [Carried; 2],
}

/// Answers until the process ends.
///
/// # Errors
/// When nobody can be accepted any more.
pub fn serve(listener: &UnixListener, link: &Arc<Link>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().context("nobody can be accepted any more")?;
        let link = Arc::clone(link);
        std::thread::spawn(move || {
            if let Err(error) = converse(&stream, &link) {
                eprintln!("{error:#}");
            }
        });
    }
}

fn converse(stream: &UnixStream, link: &Link) -> Result<()> {
    for line in BufReader::new(stream).lines() {
        let request = serde_json::from_str(&line?).context("this is no request")?;
        match request {
            Request::Look => {}
            Request::ShapeThere(shape) => link.reshape_there(|_| shape),
            Request::ShapeBack(shape) => link.reshape_back(|_| shape),
            Request::Shape(shape) => link.reshape(|_| shape),
            Request::Cut => link.cut(),
            Request::Mend => link.mend(),
        }
        let answer = Answer { shapes: link.shapes(), carried: link.carried() };
        let mut line = serde_json::to_string(&answer)?;
        line.push('\n');
        let mut stream = stream;
        stream.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// Asks the link whose socket this is.
///
/// # Errors
/// When it does not answer.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("{} does not answer", socket.display()))?;
    stream.write_all((serde_json::to_string(request)? + "\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    ensure!(!line.is_empty(), "the link did not understand this");
    Ok(serde_json::from_str(&line)?)
}
