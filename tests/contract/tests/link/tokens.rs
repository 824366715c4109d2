//! Join tokens.

use atoll_model::id::TokenId;
use atoll_proto::v1::EnrolRequest;
use atoll_proto::{IdentityCall, JoinToken};
use aws_lc_rs::signature::Ed25519KeyPair;
use site_agent_daemon::link::enrol;
use tonic::Code;

use crate::raw;
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn g1_a_token_joins_one_agent_and_another_key_is_told_that_it_was_used() {
    let world = World::start().await;
    let token = world.join_token("edge", 600).await.to_string();
    let first = enrol(&world.directory("first"), &token).await.unwrap();
    assert_eq!(first.site.as_str(), "edge");
    let error = enrol(&world.directory("second"), &token).await.unwrap_err();
    assert!(error.to_string().contains("already used"), "{error}");
    assert!(!world.directory("second").join("identity.json").exists());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_a_redemption_whose_answer_was_lost_is_repeated_by_the_same_key() {
    let world = World::start().await;
    let token = world.join_token("edge", 600).await.to_string();
    let directory = world.directory("agent");
    let first = enrol(&directory, &token).await.unwrap();
    std::fs::remove_file(directory.join("identity.json")).unwrap();
    let second = enrol(&directory, &token).await.unwrap();
    assert_eq!((first.agent, first.site), (second.agent, second.site));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_is_repeated_after_its_success_asks_nobody_and_another_site_is_refused() {
    let world = World::start().await;
    let (token, other) = (world.join_token("edge", 600).await.to_string(), world.join_token("hpc", 600).await);
    let data = tempfile::tempdir().unwrap();
    let directory = data.path().join("agent");
    let first = enrol(&directory, &token).await.unwrap();
    let error = enrol(&directory, &other.to_string()).await.unwrap_err();
    assert!(error.to_string().contains("belongs to"), "{error}");
    world.stop().await;
    assert_eq!(enrol(&directory, &token).await.unwrap().agent, first.agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_an_expired_token_says_when_it_expired() {
    let world = World::start().await;
    let token = world.join_token("edge", 1).await;
    // The token's own end is what is waited for.
    tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
    let error = enrol(&world.directory("agent"), &token.to_string()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("expired at {}", token.expires_at)[..20]), "{error}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_a_tampered_token_is_refused_with_a_message_of_its_own() {
    let world = World::start().await;
    let token = world.join_token("edge", 600).await;
    let refused = async |change: fn(&mut JoinToken)| {
        let mut tampered = token.clone();
        change(&mut tampered);
        enrol(&world.directory("agent"), &tampered.to_string()).await.unwrap_err().to_string()
    };
    let message = refused(|token| token.secret[0] ^= 1).await;
    assert!(message.contains("its secret is wrong"), "{message}");
    let message = refused(|token| token.token = TokenId::from_bits(1)).await;
    assert!(message.contains("not known here"), "{message}");
    let message = refused(|token| token.ca_sha256[0] ^= 1).await;
    assert!(message.contains("not of the pinned CA"), "{message}");
    // None of it has used the token up.
    enrol(&world.directory("agent"), &token.to_string()).await.unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_was_made_for_another_connection_is_refused() {
    let world = World::start().await;
    let directory = crate::agent::join(&world, "edge").await.unwrap();
    let token = world.join_token("hpc", 600).await;
    let authority = raw::steal(&directory);
    let (left, mut right) =
        (raw::connect(&authority, false).await.unwrap(), raw::connect(&authority, false).await.unwrap());
    let key = Ed25519KeyPair::generate().unwrap();
    let signing_request = raw::signing_request();
    let relayed = EnrolRequest {
        token: Some(token.token.into()),
        secret: token.secret.to_vec().into(),
        proof: Some(left.proof(IdentityCall::Enrol, &key, &signing_request)),
        signing_request: signing_request.clone().into(),
        ..EnrolRequest::default()
    };
    let status = right.client.enrol(relayed.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let proof = Some(right.proof(IdentityCall::Recover, &key, &signing_request));
    let status = right.client.enrol(EnrolRequest { proof, ..relayed.clone() }).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "a proof for another call: {status}");
    let proof = Some(right.proof(IdentityCall::Enrol, &key, &signing_request));
    right.client.enrol(EnrolRequest { proof, ..relayed }).await.unwrap();
    world.stop().await;
}
