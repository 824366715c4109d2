//! Connections that end by themselves when the other end says nothing.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Bytes by which every protocol that is served here has shown itself: those of the HTTP/2 preface, fewer than any
/// HTTP/1.1 request has.
const GREETING_BYTES: usize = 24;

/// How long to wait for the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From the beginning to the first bytes of a request.
    pub(crate) greeting: Duration,
    /// With nothing going either way, after that; nothing means for ever.
    pub(crate) silence: Option<Duration>,
}

/// A connection on which the other end must say something.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    stream: S,
    patience: Patience,
    /// Still to come before the other end has shown what it wants.
    greeting_left: usize,
    /// When something last went either way; at first, when the connection began.
    heard_at: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl<S> Patient<S> {
    pub(crate) fn new(stream: S, patience: Patience) -> Self {
        let alarm = Box::pin(tokio::time::sleep(patience.greeting));
        Self { stream, patience, greeting_left: GREETING_BYTES, heard_at: Instant::now(), alarm }
    }

    fn moved(&mut self) {
        if self.greeting_left == 0 {
            self.heard_at = Instant::now();
        }
    }

    fn greeted(&mut self, bytes: usize) {
        self.greeting_left = self.greeting_left.saturating_sub(bytes);
        self.moved();
    }

    /// Ends what has been waited for too long. The alarm is not set anew at each byte, but when it goes off.
    fn give_up(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        loop {
            let limit = match self.greeting_left {
                0 => self.patience.silence?,
                _ => self.patience.greeting,
            };
            if self.alarm.as_mut().poll(context).is_pending() {
                return None;
            }
            let deadline = self.heard_at + limit;
            if deadline <= Instant::now() {
                return Some(io::Error::new(io::ErrorKind::TimedOut, "the other end says nothing"));
            }
            self.alarm.as_mut().reset(deadline);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Pending => this.give_up(context).map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
            ready @ Poll::Ready(_) => {
                this.greeted(buffer.filled().len() - before);
                ready
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Patient<S> {
    fn wrote<T>(&mut self, result: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match result {
            Poll::Pending => self.give_up(context).map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
            ready @ Poll::Ready(_) => {
                self.moved();
                ready
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.wrote(result, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.wrote(result, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const GREETING: Duration = Duration::from_millis(30);
    const SILENCE: Duration = Duration::from_millis(90);
    const PATIENCE: Patience = Patience { greeting: GREETING, silence: Some(SILENCE) };

    fn connection(patience: Patience) -> (Patient<DuplexStream>, DuplexStream) {
        let (here, there) = tokio::io::duplex(64);
        (Patient::new(here, patience), there)
    }

    async fn greeted(patience: Patience) -> (Patient<DuplexStream>, DuplexStream) {
        let (mut here, mut there) = connection(patience);
        there.write_all(&[b'x'; GREETING_BYTES]).await.unwrap();
        here.read_exact(&mut [0; GREETING_BYTES]).await.unwrap();
        (here, there)
    }

    async fn ends_after(connection: &mut Patient<DuplexStream>, began: Instant) -> Duration {
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        began.elapsed()
    }

    #[tokio::test]
    async fn a_stranger_who_says_nothing_is_cut_off() {
        let began = Instant::now();
        let (mut here, _there) = connection(PATIENCE);
        let after = ends_after(&mut here, began).await;
        assert!((GREETING..SILENCE).contains(&after), "{after:?}");
    }

    #[tokio::test]
    async fn one_who_says_too_little_is_cut_off_as_soon() {
        let long = Duration::from_secs(3_600);
        let (mut here, mut there) = connection(Patience { silence: Some(long), ..PATIENCE });
        there.write_all(b"PRI * HTTP").await.unwrap();
        here.read_exact(&mut [0; 10]).await.unwrap();
        let after = ends_after(&mut here, Instant::now()).await;
        assert!(after < long, "{after:?}");
    }

    #[tokio::test]
    async fn silence_is_counted_from_what_last_went_either_way() {
        let (mut here, mut there) = greeted(PATIENCE).await;
        // The alarm has gone off once when something goes again.
        assert!(tokio::time::timeout(SILENCE / 2, here.read_u8()).await.is_err());
        here.write_all(b"y").await.unwrap();
        let written = Instant::now();
        let after = ends_after(&mut here, written).await;
        assert!(after >= SILENCE - Duration::from_millis(5), "{after:?}");
        assert_eq!(there.read_u8().await.unwrap(), b'y');
    }

    #[tokio::test]
    async fn one_who_reads_nothing_is_cut_off() {
        let (mut here, _there) = greeted(PATIENCE).await;
        let error = here.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn without_a_limit_on_silence_a_request_may_take_as_long_as_it_does() {
        let (mut here, mut there) = greeted(Patience { silence: None, ..PATIENCE }).await;
        assert!(tokio::time::timeout(2 * SILENCE, here.read_u8()).await.is_err());
        there.write_all(b"z").await.unwrap();
        assert_eq!(here.read_u8().await.unwrap(), b'z');
    }
}
