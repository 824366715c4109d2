//! The session: frames of the agent become events, frames of the core go out, until either side ends it.

mod frames;

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use atoll_model::id::AgentId;
use atoll_model::limits;
use atoll_model::session::{AgentBody, AgentFrame};
use atoll_proto::{Received, v1};
use control_plane_core::{ConnectionId, Event};
use futures::Stream;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};

use self::frames::Frames;
use super::Agents;
use super::presence::Presence;
use super::status::of_wire_error;
use crate::driver::Handle;

/// How long a stream may be open before its first frame.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);

impl Agents {
    /// Opens a session for an agent. It ends with its certificate at the latest.
    pub(super) async fn open_session(
        &self,
        agent: AgentId,
        not_after: SystemTime,
        frames: Streaming<v1::AgentFrame>,
    ) -> Result<Outgoing, Status> {
        let stopped = |stopped: crate::driver::Stopped| Status::unavailable(stopped.to_string());
        let connection = self.0.handle.connect().await.map_err(stopped)?;
        let ending = self.0.closing.child_token();
        let (end, ended) = oneshot::channel();
        let incoming = Incoming {
            handle: self.0.handle.clone(),
            connection: connection.id,
            agent,
            frames,
            ending: ending.clone(),
        };
        self.0.tasks.spawn(incoming.run(not_after, end));
        Ok(Outgoing {
            frames: Frames::new(connection.frames),
            ended: Some(ended),
            agent,
            connection: connection.id,
            presence: self.0.presence.clone(),
            ending: ending.clone(),
            _end_all: ending.drop_guard(),
        })
    }
}

/// Takes the frames of the agent in.
struct Incoming {
    handle: Handle,
    connection: ConnectionId,
    agent: AgentId,
    frames: Streaming<v1::AgentFrame>,
    ending: CancellationToken,
}

impl Incoming {
    async fn run(mut self, not_after: SystemTime, end: oneshot::Sender<Status>) {
        let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let ending = self.ending.clone();
        let result = tokio::select! {
            result = self.receive() => result,
            () = ending.cancelled() => Ok(()),
            () = tokio::time::sleep(left) => Err(Status::unauthenticated("the agent's certificate has expired")),
        };
        if let Err(status) = result {
            tracing::info!(agent = %self.agent, reason = status.message(), "a session has ended");
            // The stream may be gone already.
            let _ = end.send(status);
        }
        // With a driver that has ended, so has everything.
        let _ = self.handle.submit(Event::ConnectionLost { connection: self.connection }).await;
    }

    async fn receive(&mut self) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, self.frames.message()).await;
        let mut next = first.map_err(|_| Status::deadline_exceeded("no first frame has come"))??;
        while let Some(message) = next {
            self.take_in(message).await?;
            next = self.frames.message().await?;
        }
        Ok(())
    }

    async fn take_in(&self, message: v1::AgentFrame) -> Result<(), Status> {
        let Received { frame, refused } =
            Received::<AgentFrame>::try_from(message).map_err(|error| of_wire_error(&error))?;
        for error in refused {
            tracing::warn!(agent = %self.agent, reason = %error, "part of a frame was not understood");
        }
        if let AgentBody::Hello(hello) = &frame.body
            && hello.agent != self.agent
        {
            tracing::warn!(agent = %self.agent, claimed = %hello.agent, "an agent has claimed to be another");
            return Err(Status::permission_denied("the certificate is another agent's"));
        }
        if let AgentBody::Hello(hello) = &frame.body {
            let offset = hello.wall_clock.distance(crate::driver::wall_clock());
            if offset > limits::CLOCK_OFFSET_WARN {
                let offset_seconds = offset.as_secs();
                tracing::warn!(agent = %self.agent, offset_seconds, "the clock of an agent's machine is off");
            }
        }
        let event = Event::FrameReceived { connection: self.connection, agent: self.agent, frame };
        self.handle.submit(event).await.map_err(|stopped| Status::unavailable(stopped.to_string()))
    }
}

/// The frames for the agent. Whatever is ready goes out together; dropping it ends the session.
#[derive(Debug)]
pub(super) struct Outgoing {
    frames: Frames,
    /// Resolves when the other direction has ended: with a reason, or with none if what is still waiting may go out.
    ended: Option<oneshot::Receiver<Status>>,
    agent: AgentId,
    connection: ConnectionId,
    presence: Presence,
    ending: CancellationToken,
    _end_all: DropGuard,
}

impl Stream for Outgoing {
    type Item = Result<v1::ControlFrame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(ended) = &mut self.ended
            && let Poll::Ready(reason) = Pin::new(ended).poll(context)
        {
            self.ended = None;
            self.frames.close();
            if let Ok(status) = reason {
                return Poll::Ready(Some(Err(status)));
            }
        }
        match self.frames.poll_next(context) {
            Poll::Ready(Some(frame)) => {
                if matches!(frame.body, Some(v1::control_frame::Body::Welcome(_))) {
                    self.presence.arrive(self.agent, self.connection, self.ending.clone());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.presence.leave(self.agent, self.connection);
    }
}
