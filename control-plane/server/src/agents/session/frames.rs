//! The order in which frames leave, and when.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use atoll_model::session::{ControlBody, ControlFrame};
use atoll_proto::{split_control_frame, v1};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a frame that acknowledges and says nothing else waits for one that says both. An agent does nothing with it but
/// forget reports, and is not to be woken for each of them while it has work to start.
const ACKNOWLEDGEMENT_WAIT: Duration = Duration::from_millis(5);

/// What the core has for an agent, as messages.
#[derive(Debug)]
pub(super) struct Frames {
    frames: mpsc::Receiver<Box<ControlFrame>>,
    /// Of a frame that was too large for one message.
    parts: VecDeque<v1::ControlFrame>,
    held: Option<Box<ControlFrame>>,
    /// When it goes out by itself.
    held_until: Option<Pin<Box<Sleep>>>,
}

impl Frames {
    pub(super) fn new(frames: mpsc::Receiver<Box<ControlFrame>>) -> Self {
        Self { frames, parts: VecDeque::new(), held: None, held_until: None }
    }

    /// Takes no more in; what is here still goes out.
    pub(super) fn close(&mut self) {
        self.frames.close();
    }

    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<v1::ControlFrame>> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Poll::Ready(Some(part));
            }
            let frame = match self.frames.poll_recv(context) {
                Poll::Ready(Some(frame)) if only_acknowledges(&frame) => {
                    self.hold(frame);
                    continue;
                }
                Poll::Ready(Some(frame)) => {
                    // A later frame acknowledges no less.
                    self.held = None;
                    Some(frame)
                }
                Poll::Ready(None) => self.held.take(),
                Poll::Pending => Some(ready!(self.poll_held(context))),
            };
            let Some(frame) = frame else { return Poll::Ready(None) };
            self.parts.extend(split_control_frame((*frame).into()));
        }
    }

    fn hold(&mut self, frame: Box<ControlFrame>) {
        if self.held.replace(frame).is_none() {
            let until = Instant::now() + ACKNOWLEDGEMENT_WAIT;
            match &mut self.held_until {
                Some(held_until) => held_until.as_mut().reset(until),
                None => self.held_until = Some(Box::pin(sleep_until(until))),
            }
        }
    }

    /// What was held, once it has waited for long enough; without any there is nothing to wait for.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<Box<ControlFrame>> {
        match (&self.held, &mut self.held_until) {
            (Some(_), Some(held_until)) => {
                ready!(held_until.as_mut().poll(context));
                self.held.take().map_or(Poll::Pending, Poll::Ready)
            }
            _ => Poll::Pending,
        }
    }
}

/// A lease is waited for.
fn only_acknowledges(frame: &ControlFrame) -> bool {
    matches!(frame.body, ControlBody::Acknowledge) && frame.lease.is_none()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::future::poll_fn;
    use std::task::Waker;

    use atoll_model::id::{CommandSeq, Epoch, ReportSeq};

    use super::*;

    fn frame(acknowledged: u64, body: ControlBody) -> Box<ControlFrame> {
        Box::new(ControlFrame { epoch: Epoch(1), acknowledged: ReportSeq(acknowledged), lease: None, body })
    }

    fn acknowledges(frame: Option<v1::ControlFrame>) -> Option<u64> {
        frame.map(|frame| frame.acknowledged)
    }

    struct Session {
        core: mpsc::Sender<Box<ControlFrame>>,
        frames: Frames,
    }

    impl Session {
        fn new() -> Self {
            let (core, frames) = mpsc::channel(8);
            Self { core, frames: Frames::new(frames) }
        }

        fn send(&self, acknowledged: u64, body: ControlBody) {
            self.core.try_send(frame(acknowledged, body)).unwrap();
        }

        /// What can go out at once.
        fn now(&mut self) -> Poll<Option<u64>> {
            self.frames.poll_next(&mut Context::from_waker(Waker::noop())).map(acknowledges)
        }

        async fn next(&mut self) -> Option<u64> {
            acknowledges(poll_fn(|context| self.frames.poll_next(context)).await)
        }
    }

    fn commands() -> ControlBody {
        ControlBody::Commands { first: CommandSeq(1), commands: Vec::new() }
    }

    #[tokio::test]
    async fn acknowledgements_go_out_together() {
        let mut session = Session::new();
        session.send(1, ControlBody::Acknowledge);
        assert_eq!(session.now(), Poll::Pending);
        session.send(2, ControlBody::Acknowledge);
        assert_eq!(session.next().await, Some(2));
        session.send(3, ControlBody::Acknowledge);
        assert_eq!(session.now(), Poll::Pending);
        assert_eq!(session.next().await, Some(3));
    }

    #[tokio::test]
    async fn what_is_waited_for_takes_them_along_at_once() {
        let mut session = Session::new();
        session.send(1, ControlBody::Acknowledge);
        session.send(2, commands());
        assert_eq!(session.now(), Poll::Ready(Some(2)));
        assert_eq!(session.now(), Poll::Pending);
    }

    #[tokio::test]
    async fn one_that_is_held_goes_out_before_the_end() {
        let mut session = Session::new();
        session.send(1, ControlBody::Acknowledge);
        session.frames.close();
        assert_eq!(session.next().await, Some(1));
        assert_eq!(session.next().await, None);
    }
}
