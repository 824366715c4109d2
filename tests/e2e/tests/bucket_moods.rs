//! A real S3 server that answers with errors, only half, or not at all, and what becomes of the work that waits for it.

use anyhow::{Context as _, Result};
use e2e_tests::{Cluster, Front, Mood, Options, wait_for};

/// So large that it is sent and fetched in parts.
const BYTES: u64 = 40 << 20;

fn workflow(name: &str) -> String {
    format!(
        r#"workflow: {name}
steps:
  make:
    site: edge
    run: |
      head -c {BYTES} /dev/urandom > "$ATOLL_OUTPUTS/made"
      sha256sum < "$ATOLL_OUTPUTS/made" > "$ATOLL_OUTPUTS/digest"
    outputs: {{ made: file, digest: string }}
  take:
    site: hpc
    with: {{ made: "${{{{ steps.make.outputs.made }}}}" }}
    run: |
      sha256sum < "$made" > "$ATOLL_OUTPUTS/digest"
    outputs: {{ digest: string }}
outputs:
  sent: ${{{{ steps.make.outputs.digest }}}}
  received: ${{{{ steps.take.outputs.digest }}}}
"#
    )
}

/// Runs a workflow whose data passes the bucket, which is in a mood until so many connections have met it.
fn endure(cluster: &Cluster, front: &Front, mood: Mood, connections: u64) -> Result<()> {
    front.set(mood);
    let run = cluster.submit(&workflow(&format!("{mood:?}").replace(['(', ')'], "").to_lowercase()), &[])?;
    wait_for("the bucket to be met", || Ok((front.met() >= connections).then_some(())))
        .with_context(|| format!("{mood:?}: {} of {connections}", front.met()))?;
    let waiting = cluster.show(&run)?;
    assert_eq!(waiting["state"], "running", "{mood:?}: {waiting:#}");
    front.set(Mood::Well);
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{mood:?}: {shown:#}");
    assert_eq!(shown["outputs"]["sent"], shown["outputs"]["received"], "{mood:?}: {shown:#}");
    let crossed: Vec<_> = cluster.ledger(&run)?.iter().map(|entry| entry["bytes"].as_u64()).collect();
    assert_eq!(crossed, [Some(BYTES), Some(BYTES)], "{mood:?}");
    Ok(())
}

/// A cluster whose bucket is a real S3 server with moods; none without such a server.
fn moody(prefix: &str) -> Result<Option<(Cluster, Front)>> {
    let Some([bucket, endpoint]) = e2e_tests::s3(["ATOLL_TEST_S3", "AWS_ENDPOINT_URL"]) else { return Ok(None) };
    let front = Front::new(endpoint.split("://").nth(1).context("an address")?.trim_end_matches('/').parse()?)?;
    let cluster = Cluster::start(Options {
        sites: vec!["edge", "hpc"],
        bucket: Some(format!("{bucket}/{prefix}")),
        environment: vec![("AWS_ENDPOINT_URL".to_owned(), format!("http://{}", front.address()))],
        ..Options::default()
    })?;
    Ok(Some((cluster, front)))
}

#[test]
fn d1_a_bucket_that_answers_with_errors_is_asked_until_it_is_well() -> Result<()> {
    let Some((cluster, front)) = moody("errors")? else { return Ok(()) };
    for mood in [Mood::Error(500), Mood::Error(503)] {
        endure(&cluster, &front, mood, 5)?;
    }
    Ok(())
}

#[test]
fn d1_what_ends_in_the_middle_of_an_upload_or_an_answer_goes_on_when_the_bucket_is_well() -> Result<()> {
    let Some((cluster, front)) = moody("halves")? else { return Ok(()) };
    endure(&cluster, &front, Mood::Half, 8)
}

#[test]
fn d2_what_stands_still_in_the_middle_is_given_up_and_asked_for_again() -> Result<()> {
    let Some((cluster, front)) = moody("stalls")? else { return Ok(()) };
    // Three parts stand still at once: some were given up, and asked for again.
    endure(&cluster, &front, Mood::Stall, 7)
}
