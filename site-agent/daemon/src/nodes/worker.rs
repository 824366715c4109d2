//! The worker's process: it connects to the agent of its site, starts shims where it is told to, and carries what both say to
//! each other. It decides nothing of executions, and is killed, started anew or cut off without any of them noticing, for a
//! while.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::credentials::{AGENT_NAME, Token};
use super::frame::{self, Offer, ToAgent, ToWorker, VERSION, Welcome};
use super::serve::tune;
use super::shims::Shims;
use crate::config::{IsolationSettings, ShimProgram, found_gpus};
use crate::executor::local::{Confining, counted};
use crate::measure;
use crate::shim::protocol::PROTOCOL_VERSION;

const CONNECT_MAX: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A worker that leaves for want of work gives an agent that is being started anew at least so long.
const ALONE_MIN: Duration = Duration::from_secs(60);
/// How long shims that were killed may take to be looked after, before the worker goes without.
const LAST_LOOK_MAX: Duration = Duration::from_secs(10);

/// How `atoll worker` was called.
#[derive(Debug, Clone, Default)]
pub struct WorkerOptions {
    /// The token of the site.
    pub token: String,
    /// Unlike that of every other worker of the site; the machine's if nothing.
    pub name: Option<String>,
    /// What is offered; all that the machine has where nothing is said.
    pub cpu_millis: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub gpus: Option<Vec<String>>,
    /// In thousandths.
    pub resources: BTreeMap<String, u32>,
    /// After this long the worker must have ended.
    pub time_limit: Option<Duration>,
    /// How long what runs may go on when the worker is to end.
    pub drain: Duration,
    /// After so long without work it leaves.
    pub idle: Option<Duration>,
    /// The program that shims are started from, if not this one.
    pub shim_program: Option<ShimProgram>,
}

/// Why a session is over.
enum End {
    /// Nothing is left here, and nothing comes.
    Farewell,
    Refused(String),
    Broken(anyhow::Error),
}

struct Worker {
    token: Token,
    tls: TlsConnector,
    offer: Offer,
    shims: Shims,
    drain: Duration,
    /// When it has not reached the agent for so long, it leaves, if it leaves for want of work.
    alone_max: Option<Duration>,
    /// Since when it has not; nothing while they are connected.
    alone_since: Option<Instant>,
    /// When it begins to leave, unless it is told to before.
    leave_at: Option<Instant>,
    /// When it ends what has not ended, once it leaves.
    force_at: Option<Instant>,
    is_forced: bool,
}

/// Works for a site until `shutdown`, or for as long as it may; what runs has ended then.
///
/// # Errors
/// When the token is of no use, or the agent wants no such worker.
pub async fn work(options: WorkerOptions, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut worker = Worker::new(options)?;
    let (mut pause, mut told) = (PAUSE, false);
    loop {
        match worker.session(&shutdown, &mut pause).await {
            End::Farewell => {
                tracing::info!("the worker has ended");
                return Ok(());
            }
            End::Refused(why) => bail!(why),
            End::Broken(error) if !std::mem::replace(&mut told, pause > PAUSE) => {
                tracing::warn!(error = format!("{error:#}"), "the agent is not reached; it is tried again and again");
            }
            End::Broken(_) => {}
        }
        worker.note_leaving(&shutdown);
        if worker.force_at.is_some_and(|at| at <= Instant::now()) {
            tracing::warn!("the worker ends without having reached the agent: what runs here is interrupted");
            worker.shims.kill_all();
            return Ok(());
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

impl Worker {
    fn new(options: WorkerOptions) -> anyhow::Result<Self> {
        let token = Token::parse(&options.token)?;
        token.check_folders()?;
        let tls: Arc<ClientConfig> = token.tls()?;
        let program = options.shim_program.map_or_else(ShimProgram::own, Ok)?;
        let strict = Confining::try_out(IsolationSettings::default(), &program).strict;
        let gpus = options.gpus.unwrap_or_else(found_gpus);
        let mut capacity = measure::of_machine(options.cpu_millis, options.memory_bytes);
        (capacity.gpus, capacity.named) = (counted(&gpus), options.resources);
        let host = || nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        let offer = Offer {
            versions: (VERSION, PROTOCOL_VERSION),
            name: options.name.map_or_else(host, Ok).context("this machine has no name: say one, `--name`")?,
            instance: uuid::Uuid::new_v4().as_u128(),
            capacity,
            gpus,
            not_strict: strict.err(),
            idle: options.idle,
        };
        let leave_at = options.time_limit.map(|limit| Instant::now() + limit.saturating_sub(options.drain));
        let shims = Shims::new(program);
        let tls = TlsConnector::from(tls);
        let (drain, alone_since) = (options.drain, Some(Instant::now()));
        let alone_max = options.idle.map(|idle| idle.max(ALONE_MIN));
        Ok(Self { token, tls, offer, shims, drain, alone_max, alone_since, leave_at, force_at: None, is_forced: false })
    }

    /// Whether it leaves, and by when all is to have ended.
    fn note_leaving(&mut self, shutdown: &CancellationToken) -> bool {
        let alone = self.alone_since.zip(self.alone_max).is_some_and(|(since, most)| since.elapsed() >= most);
        let is_due = alone || shutdown.is_cancelled() || self.leave_at.is_some_and(|at| at <= Instant::now());
        if is_due && self.force_at.is_none() {
            self.force_at = Some(Instant::now() + self.drain);
            tracing::info!("the worker takes nothing new");
        }
        self.force_at.is_some()
    }

    async fn session(&mut self, shutdown: &CancellationToken, pause: &mut Duration) -> End {
        match self.joined().await {
            Ok(Ok((welcome, stream))) => {
                *pause = PAUSE;
                tracing::info!(name = self.offer.name, "the worker has joined");
                self.alone_since = None;
                let end = self.serve(welcome, stream, shutdown).await.unwrap_or_else(End::Broken);
                self.alone_since = Some(Instant::now());
                end
            }
            Ok(Err(why)) => End::Refused(format!("the agent does not take this worker: {why}")),
            Err(error) => End::Broken(error),
        }
    }

    async fn joined(&self) -> anyhow::Result<Result<(Welcome, TlsStream<TcpStream>), String>> {
        let mut stream = dial(&self.tls, &self.token.addresses).await?;
        frame::write(&mut stream, &ToAgent::Join(Box::new(self.offer.clone()))).await?;
        // A worker of the same name may have to be waited for.
        match timeout(CONNECT_MAX * 6, frame::read(&mut stream)).await?? {
            ToWorker::Welcome(welcome) => Ok(Ok((welcome, stream))),
            ToWorker::Refused(why) => Ok(Err(why)),
            ToWorker::Start { .. } | ToWorker::Reach { .. } | ToWorker::Alive | ToWorker::Farewell => {
                bail!("the agent does not greet")
            }
        }
    }

    async fn serve(
        &mut self,
        welcome: Welcome,
        stream: TlsStream<TcpStream>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<End> {
        let (reader, writer) = tokio::io::split(stream);
        let (heard, mut frames) = unbounded_channel();
        let (sender, to_say) = unbounded_channel();
        // What ends with the session.
        let mut carried = JoinSet::new();
        let listening = listen(reader, heard, welcome.silence_max);
        let speaking = speak(writer, to_say, welcome.silence_max / 3);
        tokio::pin!(listening, speaking);
        let mut said_leaving = false;
        loop {
            if self.note_leaving(shutdown) && !std::mem::replace(&mut said_leaving, true) {
                // Where it cannot be said any more, the session ends.
                let _ = sender.send(ToAgent::Leaving);
            }
            self.force();
            let wake = [self.leave_at.filter(|_| !said_leaving), self.force_at].into_iter().flatten().min();
            let wake = wake.filter(|_| !self.is_forced).unwrap_or_else(|| Instant::now() + LAST_LOOK_MAX);
            tokio::select! {
                // A farewell counts for more than that nothing can be said any more.
                biased;
                ended = &mut listening => return ended.map(|()| End::Farewell),
                ended = &mut speaking => return ended.map(|()| End::Farewell),
                () = sleep_until(wake) => self.shims.reap(),
                () = shutdown.cancelled(), if !said_leaving => {}
                Some(done) = carried.join_next() => {
                    self.shims.reap();
                    if let Ok(Err(error)) = done {
                        return Ok(End::Refused(format!("no shim can be started: {error:#}")));
                    }
                }
                Some(frame) = frames.recv() => match frame {
                    ToWorker::Start { .. } | ToWorker::Reach { .. } => {
                        let (task, said) = (self.task(), sender.clone());
                        carried.spawn(async move { task.perform(frame, said).await });
                    }
                    ToWorker::Alive | ToWorker::Welcome(_) | ToWorker::Refused(_) | ToWorker::Farewell => {}
                },
            }
            if self.is_forced && self.force_at.is_some_and(|at| at + LAST_LOOK_MAX <= Instant::now()) {
                return Ok(End::Farewell);
            }
        }
    }

    /// Ends what has not ended when the time is over. The agent asks what became of it, and tries it again elsewhere.
    fn force(&mut self) {
        let is_due = self.force_at.is_some_and(|at| at <= Instant::now());
        if is_due && !std::mem::replace(&mut self.is_forced, true) {
            tracing::warn!("the time is over: what still runs here is interrupted");
            self.shims.kill_all();
        }
    }

    fn task(&self) -> Task {
        Task {
            tls: self.tls.clone(),
            addresses: self.token.addresses.clone(),
            instance: self.offer.instance,
            shims: self.shims.clone(),
            data_dir: self.token.data_dir().to_owned(),
        }
    }
}

/// What is done for one slot.
struct Task {
    tls: TlsConnector,
    addresses: Vec<String>,
    instance: u128,
    shims: Shims,
    data_dir: PathBuf,
}

impl Task {
    /// # Errors
    /// When no shim can be started on this machine.
    async fn perform(self, frame: ToWorker, said: UnboundedSender<ToAgent>) -> anyhow::Result<()> {
        let (shims, data_dir) = (self.shims.clone(), self.data_dir.clone());
        let (slot, found) = match frame {
            ToWorker::Start { slot, path, setup, forgotten } => {
                let starting = move || shims.start((slot, &path), &data_dir, &setup, forgotten).map(Ok);
                (slot, tokio::task::spawn_blocking(starting).await?)
            }
            ToWorker::Reach { slot, path } => {
                let reaching = move || shims.reach((slot, &path), &data_dir);
                (slot, tokio::task::spawn_blocking(reaching).await?)
            }
            ToWorker::Welcome(_) | ToWorker::Refused(_) | ToWorker::Alive | ToWorker::Farewell => return Ok(()),
        };
        match found? {
            Ok(shim) => self.carry(slot, shim).await?,
            Err(ended) => {
                // With the session goes who wants to hear it, and asks again.
                let _ = said.send(ToAgent::Cleared { slot, ended });
            }
        }
        Ok(())
    }

    /// Carries what the agent and the shim say until either is gone.
    async fn carry(&self, slot: u32, shim: std::os::unix::net::UnixStream) -> anyhow::Result<()> {
        shim.set_nonblocking(true)?;
        let mut shim = tokio::net::UnixStream::from_std(shim)?;
        let greeting = ToAgent::Slot { instance: self.instance, slot };
        // It is waited for as long as the session lasts.
        let mut agent = loop {
            match dial(&self.tls, &self.addresses).await {
                Ok(mut agent) => match frame::write(&mut agent, &greeting).await {
                    Ok(()) => break agent,
                    Err(error) => tracing::debug!(slot, %error, "the way to the agent broke at once"),
                },
                Err(error) => tracing::warn!(slot, error = format!("{error:#}"), "the agent takes no connection"),
            }
            sleep(PAUSE_MAX).await;
        };
        if let Err(error) = tokio::io::copy_bidirectional(&mut agent, &mut shim).await {
            tracing::debug!(slot, %error, "the way to a slot is broken");
        }
        Ok(())
    }
}

async fn dial(tls: &TlsConnector, addresses: &[String]) -> anyhow::Result<TlsStream<TcpStream>> {
    let mut last = anyhow::anyhow!("the token names no address");
    for address in addresses {
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            tune(&stream)?;
            tls.connect(ServerName::try_from(AGENT_NAME).expect("it is a name"), stream).await
        };
        match timeout(CONNECT_MAX, connecting).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = anyhow::Error::new(error).context(format!("at {address}")),
            Err(_) => last = anyhow::anyhow!("at {address}: no answer"),
        }
    }
    Err(last)
}

/// Until the agent bids farewell. The agent closes the connection right behind it, so nothing more is read.
async fn listen(
    mut reader: impl AsyncRead + Unpin,
    heard: UnboundedSender<ToWorker>,
    silence_max: Duration,
) -> anyhow::Result<()> {
    loop {
        let frame = timeout(silence_max, frame::read(&mut reader)).await.context("the agent is silent")??;
        if frame == ToWorker::Farewell {
            return Ok(());
        }
        heard.send(frame)?;
    }
}

async fn speak(
    mut writer: impl AsyncWrite + Unpin,
    mut to_say: UnboundedReceiver<ToAgent>,
    pause: Duration,
) -> anyhow::Result<()> {
    loop {
        let next = timeout(pause, to_say.recv()).await;
        let said = next.ok().flatten().unwrap_or(ToAgent::Alive);
        frame::write(&mut writer, &said).await?;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    const SILENCE_MAX: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_connection_that_ends_right_behind_a_farewell_is_not_a_broken_one() {
        let (mut agent, worker) = tokio::io::duplex(1 << 16);
        frame::write(&mut agent, &ToWorker::Alive).await.unwrap();
        frame::write(&mut agent, &ToWorker::Farewell).await.unwrap();
        drop(agent);
        let (heard, mut frames) = unbounded_channel();
        listen(worker, heard, SILENCE_MAX).await.unwrap();
        assert_eq!(frames.recv().await, Some(ToWorker::Alive));
    }

    #[tokio::test]
    async fn a_connection_that_ends_without_a_farewell_is_a_broken_one() {
        let (mut agent, worker) = tokio::io::duplex(1 << 16);
        frame::write(&mut agent, &ToWorker::Alive).await.unwrap();
        drop(agent);
        let (heard, _frames) = unbounded_channel();
        listen(worker, heard, SILENCE_MAX).await.unwrap_err();
    }
}
