//! One end of the socket of a slot: messages in, messages out, without waiting.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol;

const READ_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Connection {
    pub stream: UnixStream,
    pub input: Vec<u8>,
    output: Vec<u8>,
}

impl Connection {
    /// Takes a connection that does not block.
    ///
    /// # Errors
    /// When the system does not let it be one.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, input: Vec::new(), output: Vec::new() })
    }

    /// Has a message sent with the next [`Connection::write`].
    pub(crate) fn say(&mut self, message: &impl Serialize) {
        protocol::encode(message, &mut self.output);
    }

    pub(crate) fn wants_to_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Writes what there is to say, as far as the socket takes it.
    ///
    /// # Errors
    /// When the other end is gone.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// When the other end is gone, or says what cannot be understood; `messages` holds what it said before.
    pub(crate) fn read<Message: DeserializeOwned>(&mut self, messages: &mut Vec<Message>) -> io::Result<()> {
        let gone = loop {
            self.input.reserve(READ_BYTES);
            match rustix::io::read(&self.stream, spare_capacity(&mut self.input)) {
                Ok(0) => break Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(READ_BYTES..) => {}
                Ok(_) => break Ok(()),
                Err(Errno::WOULDBLOCK) => break Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => break Err(error.into()),
            }
        };
        let mut position = 0;
        while let Some(message) = protocol::decode(&self.input, &mut position).map_err(io::Error::other)? {
            messages.push(message);
        }
        self.input.drain(..position);
        gone
    }
}
