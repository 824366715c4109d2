//! The connections of workers.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use site_agent_core::event::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::frame::{self, Offer, ToAgent, ToWorker};
use super::hub::Shared;

/// How long a connection may take to say what it is.
const GREETING_MAX: Duration = Duration::from_secs(15);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// When the kernel asks whether the other machine is still there, and how often.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The hub's thread.
pub(super) fn serve(shared: &Arc<Shared>, listener: TcpListener, tls: Arc<ServerConfig>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|runtime| runtime.block_on(accept(shared, listener, tls)));
    if let Err(error) = served {
        tracing::error!(%error, "workers cannot be listened for any more");
    }
}

async fn accept(shared: &Arc<Shared>, listener: TcpListener, tls: Arc<ServerConfig>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = JoinSet::new();
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return Ok(()),
            _ = look.tick() => shared.give_up_lost(),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                // What is gone before it was accepted comes again.
                let Ok((stream, from)) = accepted else { continue };
                let (shared, acceptor) = (Arc::clone(shared), acceptor.clone());
                connections.spawn(async move {
                    if let Err(error) = connection(&shared, &acceptor, stream).await {
                        tracing::debug!(%from, %error, "the connection of a worker has ended");
                    }
                });
            }
        }
    }
}

/// Has small frames sent at once, and a machine that is gone noticed.
///
/// # Errors
/// When the system does not let it be so.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle, set_tcp_keepintvl};
    stream.set_nodelay(true)?;
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, KEEPALIVE)?;
    set_tcp_keepintvl(stream, KEEPALIVE)?;
    Ok(())
}

async fn connection(shared: &Shared, acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<()> {
    tune(&stream)?;
    let greeting = async {
        let mut stream = acceptor.accept(stream).await?;
        let first = frame::read::<ToAgent>(&mut stream).await?;
        Ok::<_, io::Error>((stream, first))
    };
    let (mut stream, first) = timeout(GREETING_MAX, greeting).await??;
    match first {
        ToAgent::Join(offer) => session(shared, stream, *offer).await,
        ToAgent::Slot { instance, slot } => {
            let Some((far, ended)) = shared.take(instance, slot)? else { return Ok(()) };
            far.set_nonblocking(true)?;
            let mut far = tokio::net::UnixStream::from_std(far)?;
            let carried = tokio::io::copy_bidirectional(&mut stream, &mut far);
            ended.run_until_cancelled(carried).await.map_or(Ok(()), |carried| carried.map(drop))
        }
        ToAgent::Alive | ToAgent::Cleared { .. } | ToAgent::Leaving => Err(io::Error::other("it does not greet")),
    }
}

async fn session(shared: &Shared, stream: impl AsyncRead + AsyncWrite, offer: Offer) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let silence_max = shared.options.settings.silence_max();
    // One that was killed and comes back at once may be here before its former connection is known to have ended.
    let patience = tokio::time::Instant::now() + silence_max;
    while shared.is_taken(&offer) && tokio::time::Instant::now() < patience {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let (sender, frames) = unbounded_channel();
    let (id, number) = match shared.join(offer, sender) {
        Ok(joined) => joined,
        Err(why) => {
            tracing::warn!(why, "a worker is refused");
            return frame::write(&mut writer, &ToWorker::Refused(why)).await;
        }
    };
    let ended = tokio::select! {
        ended = listen(shared, id, reader, silence_max) => ended,
        ended = speak(writer, frames, silence_max / 3) => ended,
    };
    let why = ended.err().map_or_else(String::new, |error| error.to_string());
    shared.part(id, number, &why);
    Ok(())
}

async fn listen(
    shared: &Shared,
    id: NodeId,
    mut reader: impl AsyncRead + Unpin,
    silence_max: Duration,
) -> io::Result<()> {
    loop {
        match timeout(silence_max, frame::read::<ToAgent>(&mut reader)).await?? {
            ToAgent::Alive => {}
            ToAgent::Cleared { slot, ended } => shared.cleared(id, slot, ended),
            ToAgent::Leaving => shared.leaves(id),
            ToAgent::Join(_) | ToAgent::Slot { .. } => return Err(io::Error::other("it greets again")),
        }
    }
}

async fn speak(
    mut writer: impl AsyncWrite + Unpin,
    mut frames: UnboundedReceiver<ToWorker>,
    pause: Duration,
) -> io::Result<()> {
    loop {
        match timeout(pause, frames.recv()).await {
            Ok(Some(farewell @ ToWorker::Farewell)) => return frame::write(&mut writer, &farewell).await,
            Ok(Some(frame)) => frame::write(&mut writer, &frame).await?,
            // It was given up.
            Ok(None) => return Ok(()),
            Err(_) => frame::write(&mut writer, &ToWorker::Alive).await?,
        }
    }
}
