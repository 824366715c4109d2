//! Logs that somebody looks at: the control plane asks on a stream of its own, the agent sends as far as it is credited.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use atoll_model::id::{Attempt, ExecutionId};
use atoll_model::value::ObjectRef;
use atoll_proto::v1::{self, AgentBulk, LogChunk, LogEnd, ReadLog, agent_bulk, control_bulk};
use atoll_proto::{LogStream, WireError, required};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::connection::Connection;

/// Bytes of one chunk: small beside the credit of a log, so that others are not held up.
const CHUNK_BYTES_MAX: usize = 32 << 10;
/// Chunks of all logs that wait for the stream.
const CHUNKS_WAITING_MAX: usize = 16;
/// Logs that are read at a time; more are refused, since each holds a file open.
const READS_MAX: usize = 256;

/// A log, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRequest {
    pub execution: ExecutionId,
    pub attempt: Attempt,
    pub stream: LogStream,
    pub offset: u64,
    /// Go on until the attempt has ended.
    pub follow: bool,
    /// Where it is in the store, if its attempt has ended.
    pub object: Option<ObjectRef>,
}

/// Where logs are: what of an attempt is still being written, and what is in the store.
#[async_trait]
pub trait LogSource: Send + Sync + 'static {
    /// The bytes of a log from the offset on. Dropping the stream ends it.
    ///
    /// # Errors
    /// Why there are none, for a person.
    async fn open(&self, request: LogRequest) -> Result<BoxStream<'static, std::io::Result<Bytes>>, String>;
}

/// Answers what the control plane asks for, until the stream ends.
pub(super) async fn serve(connection: Connection, source: Arc<dyn LogSource>) -> Result<(), Status> {
    let (sender, answers) = mpsc::channel(CHUNKS_WAITING_MAX);
    let mut asked = connection.client().bulk(ReceiverStream::new(answers)).await?.into_inner();
    let mut reads = Reads { sender, source, running: JoinSet::new(), credits: HashMap::new() };
    loop {
        tokio::select! {
            message = asked.message() => match message? {
                Some(message) => reads.take_in(message.body).await,
                None => return Ok(()),
            },
            Some(ended) = reads.running.join_next(), if !reads.running.is_empty() => {
                if let Ok(request) = ended {
                    reads.credits.remove(&request);
                }
            }
        }
    }
}

struct Reads {
    sender: mpsc::Sender<AgentBulk>,
    source: Arc<dyn LogSource>,
    /// Each ends with the number of its request.
    running: JoinSet<u64>,
    credits: HashMap<u64, (Arc<Semaphore>, AbortHandle)>,
}

impl Reads {
    async fn take_in(&mut self, asked: Option<control_bulk::Body>) {
        match asked {
            Some(control_bulk::Body::Read(read)) => self.start(read).await,
            Some(control_bulk::Body::Credit(credit)) => {
                if let Some((permits, _)) = self.credits.get(&credit.request) {
                    permits.add_permits(usize::try_from(credit.bytes).unwrap_or(0).min(Semaphore::MAX_PERMITS >> 2));
                }
            }
            Some(control_bulk::Body::Cancel(request)) => {
                if let Some((_, task)) = self.credits.remove(&request) {
                    task.abort();
                }
            }
            // Of a newer version: whoever asks sees that nothing comes.
            None => {}
        }
    }

    async fn start(&mut self, read: ReadLog) {
        let number = read.request;
        let credit = usize::try_from(read.credit_bytes).unwrap_or(0).min(Semaphore::MAX_PERMITS >> 2);
        let request = match LogRequest::try_from(read) {
            Ok(request) if self.running.len() < READS_MAX => request,
            Ok(_) => return end(&self.sender, number, Some("too many logs are being read here".to_owned())).await,
            Err(error) => return end(&self.sender, number, Some(error.to_string())).await,
        };
        let permits = Arc::new(Semaphore::new(credit));
        let (sender, source, own) = (self.sender.clone(), Arc::clone(&self.source), Arc::clone(&permits));
        let task = self.running.spawn(async move {
            let error = send_log(&sender, &*source, request, number, &own).await.err();
            end(&sender, number, error).await;
            number
        });
        self.credits.insert(number, (permits, task));
    }
}

impl TryFrom<ReadLog> for LogRequest {
    type Error = WireError;

    fn try_from(read: ReadLog) -> Result<Self, WireError> {
        let number = WireError::UnknownNumber { field: "stream", value: u64::from(read.stream.cast_unsigned()) };
        Ok(Self {
            execution: required(read.execution, "execution")?.try_into()?,
            attempt: Attempt(read.attempt),
            stream: v1::LogStream::try_from(read.stream).map_err(|_| number)?.try_into()?,
            offset: read.offset,
            follow: read.follow,
            object: read.object.map(TryInto::try_into).transpose()?,
        })
    }
}

async fn send_log(
    sender: &mpsc::Sender<AgentBulk>,
    source: &dyn LogSource,
    request: LogRequest,
    number: u64,
    permits: &Semaphore,
) -> Result<(), String> {
    let mut offset = request.offset;
    let mut log = source.open(request).await?;
    while let Some(bytes) = log.next().await {
        let mut bytes = bytes.map_err(|error| error.to_string())?;
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES_MAX));
            let length = chunk.len();
            let permit = permits.acquire_many(length as u32).await.map_err(|error| error.to_string())?;
            permit.forget();
            let chunk = LogChunk { request: number, offset, bytes: chunk };
            offset += length as u64;
            if sender.send(AgentBulk { body: Some(agent_bulk::Body::Chunk(chunk)) }).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn end(sender: &mpsc::Sender<AgentBulk>, request: u64, error: Option<String>) {
    // With the stream gone, nobody looks.
    let _ = sender.send(AgentBulk { body: Some(agent_bulk::Body::End(LogEnd { request, error })) }).await;
}
