//! What the doctor of a site measures with: for agents alone, within limits, and nothing of it stays.

use atoll_model::limits::{BUCKET_PROBE_BYTES, PROBE_BYTES_MAX};
use atoll_proto::v1::{EndBucketProbeRequest, ProbeBucketRequest, ProbeRequest};
use serde_json::json;
use site_agent_daemon::link::{Identity, http_client};
use tonic::Code;

use crate::agent::join;
use crate::raw::{connect, steal};
use crate::world::World;

fn probe(bytes: usize, answer_bytes: usize) -> ProbeRequest {
    ProbeRequest { bytes: vec![7; bytes].into(), answer_bytes: answer_bytes as u32 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_carries_what_it_may_for_agents_and_nothing_for_strangers() {
    let world = World::start().await;
    let directory = join(&world, "alpha").await.unwrap();
    let mut agent = connect(&steal(&directory), true).await.unwrap().client;
    let answer = agent.probe(probe(PROBE_BYTES_MAX, 0)).await.unwrap();
    assert!(answer.metadata().contains_key("date"), "the doctor reads the server's clock there");
    assert_eq!(agent.probe(probe(1, 1 << 20)).await.unwrap().into_inner().bytes.len(), 1 << 20);
    for (sent, received) in [(PROBE_BYTES_MAX + 1, 0), (0, PROBE_BYTES_MAX + 1)] {
        assert_eq!(agent.probe(probe(sent, received)).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let mut stranger = connect(&steal(&directory), false).await.unwrap().client;
    let refused = stranger.probe(probe(0, 0)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.metadata().contains_key("date"), "{refused:?}");
    assert_eq!(stranger.probe_bucket(ProbeBucketRequest {}).await.unwrap_err().code(), Code::Unauthenticated);

    world.post("sites/alpha/revoke", json!({ "reason": "it was stolen" })).await;
    for refused in [
        agent.probe(probe(1, 0)).await.unwrap_err(),
        agent.probe_bucket(ProbeBucketRequest {}).await.unwrap_err(),
        agent.end_bucket_probe(EndBucketProbeRequest {}).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("it was stolen"), "{refused}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_measure_the_bucket_is_read_again_and_removed() {
    let world = World::start().await;
    let directory = join(&world, "alpha").await.unwrap();
    let mut agent = connect(&steal(&directory), true).await.unwrap().client;
    let client = http_client(&Identity::load(&directory).unwrap()).unwrap();
    let content = vec![7; BUCKET_PROBE_BYTES as usize];
    // A doctor that was killed leaves what it wrote, and the next one measures all the same.
    for is_ended in [false, true] {
        let place = agent.probe_bucket(ProbeBucketRequest {}).await.unwrap().into_inner();
        assert_eq!(place.bytes, BUCKET_PROBE_BYTES);
        let put = client.put(&place.put.unwrap().url).body(content.clone()).send().await.unwrap();
        assert!(put.status().is_success(), "{}", put.status());
        let read = client.get(&place.get_url).send().await.unwrap().error_for_status().unwrap();
        assert!(read.bytes().await.unwrap() == content);
        if is_ended {
            agent.end_bucket_probe(EndBucketProbeRequest {}).await.unwrap();
            assert_eq!(client.get(&place.get_url).send().await.unwrap().status().as_u16(), 404);
        }
    }
    world.stop().await;
}
