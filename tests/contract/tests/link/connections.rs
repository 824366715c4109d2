//! Connections that break without a word, and servers that come back.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::agent::{Agent, join};
use crate::world::{World, until};

/// Hands bytes on in both directions until it is told to forget everything that it is given, as a NAT does.
struct Nat {
    address: SocketAddr,
    forgets: watch::Sender<bool>,
    target: watch::Sender<Option<SocketAddr>>,
}

impl Nat {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ((forgets, forgetting), (target, targeted)) = (watch::channel(false), watch::channel(None));
        let tasks = TaskTracker::new();
        tasks.clone().spawn(async move {
            loop {
                let (inside, _) = listener.accept().await.unwrap();
                let target: SocketAddr = targeted.borrow().unwrap();
                let outside = TcpStream::connect(target).await.unwrap();
                let ((from_in, to_in), (from_out, to_out)) = (inside.into_split(), outside.into_split());
                tasks.spawn(hand_on(from_in, to_out, forgetting.clone()));
                tasks.spawn(hand_on(from_out, to_in, forgetting.clone()));
            }
        });
        Self { address, forgets, target }
    }
}

async fn hand_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, forgetting: watch::Receiver<bool>) {
    let mut buffer = [0; 8_192];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if *forgetting.borrow() {
            // Neither an answer nor an end, for as long as the test lasts.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c5_a_half_open_connection_is_noticed_on_both_sides_within_half_a_minute() {
    let nat = Nat::start().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = free.local_addr().unwrap();
    drop(free);
    let world = World::start_with(|config| {
        config.agent_listen = listen;
        config.agent_address = Some(nat.address.to_string());
        config.leases.heartbeat_ms = 600_000;
        config.leases.session_ms = 1_800_000;
        config.leases.work_ms = 1_800_000;
        config.leases.lost_after_ms = 1_800_000;
    })
    .await;
    nat.target.send_replace(Some(listen));
    let mut agent = Agent::start(&join(&world, "alpha").await.unwrap());
    agent.greet(1).await;
    assert_eq!(world.state_of("alpha").await, "ready");

    nat.forgets.send_replace(true);
    let noticed = tokio::time::timeout(Duration::from_secs(40), agent.disconnected()).await;
    noticed.expect("the agent's pings are not answered");
    let gone =
        until("the server's pings are not answered", async || (world.state_of("alpha").await != "ready").then_some(()));
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the server notices as well");
    agent.stop().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c7_an_agent_comes_back_when_its_server_does() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = free.local_addr().unwrap();
    drop(free);
    let data = tempfile::tempdir().unwrap();
    let start = || {
        World::start_with(|config| {
            config.data_dir = data.path().join("server");
            config.agent_listen = listen;
        })
    };
    let world = start().await;
    let directory = data.path().join("alpha");
    let token = world.join_token("alpha", 600).await;
    site_agent_daemon::link::enrol(&directory, &token.to_string()).await.unwrap();
    let mut agent = Agent::start(&directory);
    agent.greet(1).await;
    world.stop().await;
    agent.disconnected().await;
    let world = start().await;
    agent.greet(1).await;
    assert_eq!(world.state_of("alpha").await, "ready");
    agent.stop().await;
    world.stop().await;
}
