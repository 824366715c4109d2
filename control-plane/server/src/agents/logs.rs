//! Logs on demand: somebody asks, the site's agent sends. What was read is credited, so that a slow reader holds up
//! nothing but what it reads.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use atoll_model::id::{Attempt, ExecutionId, SiteName};
use atoll_model::value::ObjectRef;
use atoll_proto::LogStream;
use atoll_proto::v1::{self, AgentBulk, ControlBulk, LogCredit, ReadLog, agent_bulk, control_bulk};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};

use super::Agents;
use crate::identity::AgentIdentity;

/// Bytes of one log that may be on their way unread.
const WINDOW_BYTES: u64 = 256 << 10;
/// Chunks of one log that may wait unread; an agent that sends smaller ones than it needs to is cut off.
const CHUNKS_MAX: usize = 4_096;

/// Which log, and from where.
#[derive(Debug, Clone)]
pub struct LogQuery {
    pub execution: ExecutionId,
    pub attempt: Attempt,
    pub stream: LogStream,
    pub offset: u64,
    /// Go on until the attempt has ended.
    pub follow: bool,
    /// Where it is in the site's store, if its attempt has ended.
    pub object: Option<ObjectRef>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("the site {0} is not connected; its logs can be read when it is back")]
    NotConnected(SiteName),
    #[error("the link to the site broke while the log was read")]
    Disconnected,
    #[error("the site cannot read the log: {0}")]
    Unreadable(String),
}

/// The sites whose logs can be read. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Logs(Arc<Mutex<HashMap<SiteName, Arc<Link>>>>);

/// The stream to one agent.
#[derive(Debug)]
struct Link {
    control: mpsc::UnboundedSender<Box<ControlBulk>>,
    next_request: AtomicU64,
    reading: Mutex<HashMap<u64, Reading>>,
}

/// A log that is being read.
#[derive(Debug)]
struct Reading {
    chunks: mpsc::Sender<Result<Bytes, LogError>>,
    next_offset: u64,
    credit: u64,
}

impl Logs {
    /// Reads a log that a site holds. Dropping the reader ends it.
    ///
    /// # Errors
    /// When the site is not connected.
    pub fn read(&self, site: &SiteName, query: LogQuery) -> Result<LogReader, LogError> {
        let not_connected = || LogError::NotConnected(site.clone());
        let link = self.lock().get(site).cloned().ok_or_else(not_connected)?;
        let request = link.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        let reading = Reading { chunks: sender, next_offset: query.offset, credit: WINDOW_BYTES };
        link.lock().insert(request, reading);
        let read = ReadLog {
            request,
            execution: Some(query.execution.into()),
            attempt: query.attempt.0,
            stream: v1::LogStream::from(query.stream).into(),
            offset: query.offset,
            follow: query.follow,
            credit_bytes: WINDOW_BYTES,
            object: query.object.map(Into::into),
        };
        let reader = LogReader { link, request, chunks, unacknowledged: 0, ended: false };
        if reader.link.say(control_bulk::Body::Read(read)) { Ok(reader) } else { Err(not_connected()) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SiteName, Arc<Link>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, site: SiteName, link: Arc<Link>) {
        if let Some(older) = self.lock().insert(site, link) {
            older.end();
        }
    }

    fn disconnect(&self, site: &SiteName, link: &Arc<Link>) {
        let mut links = self.lock();
        if links.get(site).is_some_and(|newest| Arc::ptr_eq(newest, link)) {
            links.remove(site);
        }
        drop(links);
        link.end();
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the stream is still there to say it on.
    fn say(&self, body: control_bulk::Body) -> bool {
        self.control.send(Box::new(ControlBulk { body: Some(body) })).is_ok()
    }

    fn take_in(&self, message: AgentBulk) {
        let mut reading = self.lock();
        match message.body {
            Some(agent_bulk::Body::Chunk(chunk)) => {
                // A chunk that crossed its reader's end on the way is dropped.
                let Some(log) = reading.get_mut(&chunk.request) else { return };
                let bytes = chunk.bytes.len() as u64;
                let in_order = chunk.offset == log.next_offset && bytes <= log.credit;
                log.next_offset += bytes;
                log.credit = log.credit.saturating_sub(bytes);
                if !in_order || log.chunks.try_send(Ok(chunk.bytes)).is_err() {
                    let log = reading.remove(&chunk.request);
                    let error = LogError::Unreadable("it sends what was not asked for".to_owned());
                    // Without room for the error the reader sees a log that broke off.
                    let _ = log.map(|log| log.chunks.try_send(Err(error)));
                    self.say(control_bulk::Body::Cancel(chunk.request));
                }
            }
            Some(agent_bulk::Body::End(end)) => {
                if let (Some(log), Some(error)) = (reading.remove(&end.request), end.error) {
                    // Without room for it, the reader has been told already.
                    let _ = log.chunks.try_send(Err(LogError::Unreadable(error)));
                }
            }
            // Of a newer version; nothing was asked for that it could answer.
            None => {}
        }
    }

    fn end(&self) {
        for (_, log) in self.lock().drain() {
            // Without room for it, the reader sees the end of its chunks.
            let _ = log.chunks.try_send(Err(LogError::Disconnected));
        }
    }
}

/// The bytes of a log, in order.
#[derive(Debug)]
pub struct LogReader {
    link: Arc<Link>,
    request: u64,
    chunks: mpsc::Receiver<Result<Bytes, LogError>>,
    /// Read, and not yet credited.
    unacknowledged: u64,
    ended: bool,
}

impl Stream for LogReader {
    type Item = Result<Bytes, LogError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.chunks.poll_recv(context);
        match &next {
            Poll::Ready(Some(Ok(bytes))) => {
                self.unacknowledged += bytes.len() as u64;
                if self.unacknowledged >= WINDOW_BYTES / 2 {
                    let bytes = std::mem::take(&mut self.unacknowledged);
                    if let Some(log) = self.link.lock().get_mut(&self.request) {
                        log.credit += bytes;
                    }
                    self.link.say(control_bulk::Body::Credit(LogCredit { request: self.request, bytes }));
                }
            }
            Poll::Ready(Some(Err(_)) | None) => self.ended = true,
            Poll::Pending => {}
        }
        next
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        if self.link.lock().remove(&self.request).is_some() && !self.ended {
            self.link.say(control_bulk::Body::Cancel(self.request));
        }
    }
}

/// What goes to the agent on its bulk stream; dropping it ends the stream.
pub(super) type BulkOutgoing = Pin<Box<dyn Stream<Item = Result<ControlBulk, Status>> + Send>>;

impl Agents {
    /// Opens the bulk stream of an agent that has a session; it ends with that session.
    pub(super) fn open_bulk(
        &self,
        identity: &AgentIdentity,
        messages: Streaming<AgentBulk>,
    ) -> Result<BulkOutgoing, Status> {
        let ending = self.0.presence.session_of(identity.agent);
        let ending = ending.ok_or_else(|| Status::failed_precondition("the agent has no session"))?;
        let (control, outgoing) = mpsc::unbounded_channel();
        let link = Arc::new(Link { control, next_request: AtomicU64::new(1), reading: Mutex::default() });
        self.0.logs.connect(identity.site.clone(), Arc::clone(&link));
        let (logs, site) = (self.logs(), identity.site.clone());
        let until = ending.clone();
        self.0.tasks.spawn(async move {
            until.run_until_cancelled(receive(&link, messages)).await;
            logs.disconnect(&site, &link);
        });
        Ok(Box::pin(outgoing_stream(outgoing, ending)))
    }
}

async fn receive(link: &Link, mut messages: Streaming<AgentBulk>) {
    // An error of the stream is its end; the session says more about it.
    while let Ok(Some(message)) = messages.message().await {
        link.take_in(message);
    }
}

fn outgoing_stream(
    outgoing: mpsc::UnboundedReceiver<Box<ControlBulk>>,
    ending: CancellationToken,
) -> impl Stream<Item = Result<ControlBulk, Status>> + Send {
    let end_all: DropGuard = ending.clone().drop_guard();
    let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(outgoing).map(move |message| {
        let _ends_with_the_stream = &end_all;
        Ok(*message)
    });
    stream.take_until(ending.cancelled_owned())
}
