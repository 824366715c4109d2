//! What a certificate is good for, and what it is not.

use atoll_model::session::{AgentBody, ControlBody, Goodbye};
use atoll_proto::IdentityCall;
use atoll_proto::v1::{AgentBulk, DownloadUrlRequest, RecoverRequest};
use aws_lc_rs::signature::Ed25519KeyPair;
use serde_json::json;
use site_agent_daemon::link::{Identity, LinkEnd, LinkEvent};
use tonic::Code;

use crate::agent::{Agent, join};
use crate::raw::{self, connect, identity_key, steal, stored};
use crate::world::{World, until};

#[tokio::test(flavor = "multi_thread")]
async fn g3_a_certificate_of_one_site_does_not_speak_for_another() {
    let world = World::start().await;
    let (alpha, beta) = (join(&world, "alpha").await.unwrap(), join(&world, "beta").await.unwrap());
    let mut thief = Agent::start(&alpha);
    let victim = Agent::start(&beta);
    let mut hello = thief.hello(1);
    hello.agent = victim.identity.agent;
    victim.stop().await;
    thief.connected().await;
    thief.send(AgentBody::Hello(hello));
    thief.disconnected().await;
    assert!(!matches!(world.state_of("beta").await.as_str(), "ready" | "syncing"));
    thief.stop().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_a_stolen_certificate_cannot_be_renewed_without_the_identity_key() {
    let world = World::start().await;
    let directory = join(&world, "alpha").await.unwrap();
    let stolen = steal(&directory);
    let mut connection = connect(&stolen, true).await.unwrap();
    let request = connection.renewal(&Ed25519KeyPair::generate().unwrap(), stolen.join_counter);
    let status = connection.client.renew_certificate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let request = connection.renewal(&identity_key(&directory), stolen.join_counter);
    connection.client.renew_certificate(request).await.unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_without_a_certificate_nothing_but_enrolment_and_recovery_is_answered() {
    let world = World::start().await;
    let directory = join(&world, "alpha").await.unwrap();
    let mut nobody = connect(&steal(&directory), false).await.unwrap();
    let request = nobody.renewal(&identity_key(&directory), 1);
    let digest = bytes::Bytes::from_static(&[0; 32]);
    let refused = [
        nobody.client.renew_certificate(request).await.map(drop).unwrap_err(),
        nobody.client.download_url(DownloadUrlRequest { digest }).await.map(drop).unwrap_err(),
        nobody.client.session(futures::stream::empty()).await.map(drop).unwrap_err(),
        nobody.client.bulk(futures::stream::empty::<AgentBulk>()).await.map(drop).unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_a_revoked_agent_is_cut_off_and_refused_at_the_next_call() {
    let world = World::start().await;
    let directory = join(&world, "alpha").await.unwrap();
    let mut agent = Agent::start(&directory);
    agent.greet(1).await;
    let stolen = steal(&directory);
    let mut connection = connect(&stolen, true).await.unwrap();

    world.post("sites/alpha/revoke", json!({ "reason": "it was stolen" })).await;
    loop {
        if let ControlBody::Goodbye(goodbye) = agent.frame().await.body {
            assert!(matches!(&goodbye, Goodbye::Revoked { reason } if reason.contains("stolen")), "{goodbye:?}");
            break;
        }
    }
    agent.disconnected().await;

    let digest = bytes::Bytes::from_static(&[0; 32]);
    let status = connection.client.download_url(DownloadUrlRequest { digest }).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("revoked"), "{status}");
    let request = connection.renewal(&identity_key(&directory), stolen.join_counter);
    let status = connection.client.renew_certificate(request).await.unwrap_err();
    assert!(status.message().contains("revoked"), "{status}");
    let status = connection.client.bulk(futures::stream::empty::<AgentBulk>()).await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");

    agent.connected().await;
    agent.send(AgentBody::Hello(agent.hello(1)));
    let refusal = agent.frame().await.body;
    assert!(matches!(refusal, ControlBody::Goodbye(Goodbye::Revoked { .. } | Goodbye::Refused { .. })), "{refusal:?}");
    agent.link.disconnect(Some("the site is revoked".to_owned()));
    assert!(matches!(agent.ended().await, LinkEnd::GaveUp(reason) if reason.contains("revoked")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_at_half_of_its_life_with_a_new_key() {
    let world = World::start_with(|config| config.certificate_seconds = 4).await;
    let directory = join(&world, "alpha").await.unwrap();
    let before = stored(&directory);
    let mut agent = Agent::start(&directory);
    agent.greet(1).await;
    agent.disconnected().await;
    agent.greet(1).await;
    let after = stored(&directory);
    assert_eq!((&before["agent"], &before["site"]), (&after["agent"], &after["site"]));
    assert_ne!(before["tls_key"], after["tls_key"]);
    assert_ne!(before["chain"], after["chain"]);
    assert_eq!(after["join_counter"].as_u64(), before["join_counter"].as_u64().map(|counter| counter + 1));
    agent.stop().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_an_agent_whose_certificate_expired_comes_back_with_its_known_key() {
    let world = World::start_with(|config| config.certificate_seconds = 1).await;
    let directory = join(&world, "alpha").await.unwrap();
    let (stolen, joined) = (steal(&directory), Identity::load(&directory).unwrap());
    // TLS itself refuses it from then on.
    until("the certificate has expired", async || match connect(&stolen, true).await {
        Ok(mut connection) => connection.client.session(futures::stream::empty()).await.err().map(drop),
        Err(_) => Some(()),
    })
    .await;

    let mut nobody = connect(&stolen, false).await.unwrap();
    let recovery = |connection: &raw::Connection, key: &Ed25519KeyPair, join_counter| {
        let signing_request = raw::signing_request();
        RecoverRequest {
            agent: Some(joined.agent.into()),
            proof: Some(connection.proof(IdentityCall::Recover, key, &signing_request)),
            signing_request: signing_request.into(),
            join_counter,
        }
    };
    let other = recovery(&nobody, &Ed25519KeyPair::generate().unwrap(), 1);
    let status = nobody.client.recover(other).await.unwrap_err();
    assert!(status.message().contains("identity key is not that of"), "{status}");

    let mut agent = Agent::start(&directory);
    assert!(matches!(agent.next().await, LinkEvent::Connected));
    assert!(stored(&directory)["join_counter"].as_u64() > Some(1));
    agent.stop().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e6_of_two_agents_with_one_identity_the_newer_session_stays() {
    let world = World::start().await;
    let directory = join(&world, "alpha").await.unwrap();
    let copy = world.directory("copy");
    std::fs::create_dir(&copy).unwrap();
    for file in ["identity.json", "identity.key"] {
        std::fs::copy(directory.join(file), copy.join(file)).unwrap();
    }
    let mut first = Agent::start(&directory);
    first.greet(1).await;
    let mut second = Agent::start(&copy);
    second.greet(2).await;
    loop {
        if let ControlBody::Goodbye(goodbye) = first.frame().await.body {
            assert_eq!(goodbye, Goodbye::Superseded);
            break;
        }
    }
    first.disconnected().await;
    assert_eq!(world.state_of("alpha").await, "ready");
    first.stop().await;
    second.stop().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e6_a_join_counter_that_was_never_given_quarantines_the_identity() {
    let world = World::start().await;
    let directory = join(&world, "alpha").await.unwrap();
    let stolen = steal(&directory);
    let mut connection = connect(&stolen, true).await.unwrap();
    let request = connection.renewal(&identity_key(&directory), stolen.join_counter + 7);
    let status = connection.client.renew_certificate(request).await.unwrap_err();
    assert!(status.message().contains("two agents use the identity"), "{status}");
    let digest = bytes::Bytes::from_static(&[0; 32]);
    let status = connection.client.download_url(DownloadUrlRequest { digest }).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert_eq!(world.state_of("alpha").await, "quarantined");
    world.stop().await;
}
