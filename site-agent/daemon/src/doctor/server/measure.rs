//! Bytes of a second, to the server and to the bucket: with bytes that mean nothing and are gone afterwards.

use std::time::{Duration, Instant};

use atoll_model::limits::PROBE_BYTES_MAX;
use atoll_proto::v1::ProbeBucketResponse;
use bytes::Bytes;
use reqwest::{Client, Response, Url};
use tonic::{Code, Status};

use super::{Bandwidth, Rate, judge_bucket_bandwidth, judge_server_bandwidth};
use crate::doctor::report::{Check, first_line};
use crate::link::{Inspection, says_expired};

const SERVER: &str = "server-bandwidth";
const BUCKET: &str = "bucket-bandwidth";
/// Tried first: what takes a second with so few is slow enough to be known.
const FEW_BYTES: usize = 256 << 10;
const FEW_ENOUGH: Duration = Duration::from_secs(1);
/// One way.
const PATIENCE: Duration = Duration::from_secs(25);

/// Measures with the first server that leads; which that is, if one does.
pub(super) async fn server_bandwidth(inspections: &[Inspection]) -> (Option<&Inspection>, Check) {
    let mut refusal = Check::skipped(SERVER, "no server answers");
    for inspection in inspections {
        let up = rate(async |bytes| inspection.exchange(bytes, 0).await).await;
        let both = match up {
            Ok(up) => {
                rate(async |bytes| inspection.exchange(0, bytes as u32).await).await.map(|down| Bandwidth { up, down })
            }
            Err(status) => Err(status),
        };
        match both {
            Ok(measured) => return (Some(inspection), judge_server_bandwidth(measured)),
            // Another one may lead.
            Err(status) => refusal = refused(SERVER, &status),
        }
    }
    (None, refusal)
}

async fn rate(exchange: impl AsyncFn(usize) -> Result<Duration, Status>) -> Result<Rate, Status> {
    let few = timed(&exchange, FEW_BYTES).await?;
    if few.is_below(FEW_BYTES as f64 / FEW_ENOUGH.as_secs_f64()) {
        return Ok(few);
    }
    timed(&exchange, PROBE_BYTES_MAX).await
}

async fn timed(exchange: &impl AsyncFn(usize) -> Result<Duration, Status>, bytes: usize) -> Result<Rate, Status> {
    match tokio::time::timeout(PATIENCE, exchange(bytes)).await {
        Ok(took) => Ok(of(bytes, took?)),
        Err(_) => Ok(Rate::Below(bytes as f64 / PATIENCE.as_secs_f64())),
    }
}

fn of(bytes: usize, took: Duration) -> Rate {
    Rate::Of(bytes as f64 / took.as_secs_f64().max(1e-6))
}

/// Why the server does not let itself be measured.
fn refused(name: &'static str, status: &Status) -> Check {
    let message = first_line(status.message());
    if status.code() == Code::Unimplemented {
        return Check::skipped(name, "the server is older than this program, and cannot be measured with");
    }
    if says_expired(status) {
        let advice = "start the agent (`atoll agent run`): it recovers its certificate; if clocks differ, see `clock`";
        return Check::problem(name, "the server takes the agent's certificate for expired", advice);
    }
    if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) {
        let advice = "`atoll site show` says at the control plane what became of the site; one that is revoked or removed \
                      joins anew, with a new token and an empty data directory";
        return Check::problem(name, format!("the server refuses this agent: {message}"), advice);
    }
    let advice = "run this again in a moment; if it stays so, the log of the server says why";
    Check::problem(name, format!("the server answers: {message}"), advice)
}

/// Writes to the bucket and reads what was written, by URLs that the server signs, as the agent's transfers do.
pub(super) async fn bucket_bandwidth(server: Option<&Inspection>, client: &Client) -> Check {
    let Some(server) = server else { return Check::skipped(BUCKET, "no server gives URLs: see `server-bandwidth`") };
    let probe = match server.probe_bucket().await {
        Ok(probe) => probe,
        Err(status) => return refused(BUCKET, &status),
    };
    let check = write_and_read(client, &probe).await.unwrap_or_else(|failed| *failed);
    match server.end_bucket_probe().await {
        Ok(()) => check,
        Err(status) => {
            let found =
                format!("{}; what was written is not removed yet: {}", check.found, first_line(status.message()));
            let goes = "the server removes it within a quarter of an hour";
            let advice = check.advice.map_or_else(|| goes.to_owned(), |advice| format!("{advice}; {goes}"));
            Check::warning(BUCKET, found, advice)
        }
    }
}

async fn write_and_read(client: &Client, probe: &ProbeBucketResponse) -> Result<Check, Box<Check>> {
    let place = host_of(&probe.get_url);
    let Some(put) = &probe.put else {
        return Err(Box::new(Check::skipped(BUCKET, "the server names no place in the bucket")));
    };
    let mut content = vec![0; usize::try_from(probe.bytes).unwrap_or(0)];
    if aws_lc_rs::rand::fill(&mut content).is_err() {
        return Err(Box::new(Check::skipped(BUCKET, "the system has no random numbers")));
    }
    let content = Bytes::from(content);
    let slowest = content.len() as f64 / PATIENCE.as_secs_f64();
    let mut request = client.put(&put.url).body(content.clone());
    for header in &put.headers {
        request = request.header(&header.name, &header.value);
    }
    let began = Instant::now();
    let Ok(sent) = tokio::time::timeout(PATIENCE, request.send()).await else {
        let found = format!("{place}: less than {} kB/s up", (slowest / 1e3) as u64);
        let advice =
            "look for a proxy, a limit or a full line on the way to the bucket, or take a bucket that is nearer";
        return Err(Box::new(Check::warning(BUCKET, found, advice).with("up_bytes_per_second", slowest as u64)));
    };
    accepted("written to", &place, sent).await?;
    let up = of(content.len(), began.elapsed());
    let began = Instant::now();
    let reading = async {
        let response = accepted("read from", &place, client.get(&probe.get_url).send().await).await?;
        response.bytes().await.map_err(|error| unreachable_bucket("read from", &place, &error))
    };
    let down = match tokio::time::timeout(PATIENCE, reading).await {
        Ok(read) if read.as_ref().is_ok_and(|read| *read != content) => {
            let advice =
                "something in between changes what passes: take the bucket out of its inspection, or of its cache";
            let found = format!("{place}: what was read is not what was written");
            return Err(Box::new(Check::problem(BUCKET, found, advice)));
        }
        Ok(read) => of(read?.len(), began.elapsed()),
        Err(_) => Rate::Below(slowest),
    };
    let check = judge_bucket_bandwidth(Bandwidth { up, down });
    Ok(Check { found: format!("{} ({place})", check.found), ..check })
}

async fn accepted(what: &str, place: &str, response: reqwest::Result<Response>) -> Result<Response, Box<Check>> {
    let response = response.map_err(|error| unreachable_bucket(what, place, &error))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let said = first_line(&response.text().await.unwrap_or_default());
    let advice = "if a proxy has answered, name the bucket in NO_PROXY or have it allowed there; else the log of the server \
                  says what its credentials may not do";
    Err(Box::new(Check::problem(BUCKET, format!("{place} cannot be {what}: {status} {said}"), advice)))
}

fn unreachable_bucket(what: &str, place: &str, error: &reqwest::Error) -> Box<Check> {
    // The address is a right to write; it is shown to nobody.
    let mut message = if error.is_timeout() { "no answer".to_owned() } else { String::new() };
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        message = cause.to_string();
        next = cause.source();
    }
    let advice = format!(
        "let this machine connect to {place} (HTTPS, outbound), or set HTTPS_PROXY for the agent if that way is by a proxy; \
         without it, sites can only exchange data directly (`direct_listen`)"
    );
    Box::new(Check::problem(BUCKET, format!("{place} cannot be {what}: {message}"), advice))
}

fn host_of(url: &str) -> String {
    let parsed = Url::parse(url).ok();
    let host = parsed.as_ref().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?)));
    host.map_or_else(|| "the bucket".to_owned(), |(host, port)| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::CheckState;

    #[test]
    fn a_place_in_the_bucket_is_shown_without_the_right_to_write_there() {
        assert_eq!(host_of("https://s3.example.org/survey/o/aa?X-Amz-Signature=secret"), "s3.example.org:443");
        assert_eq!(host_of("http://127.0.0.1:9000/survey"), "127.0.0.1:9000");
    }

    #[test]
    fn a_server_that_refuses_says_why_and_an_older_one_is_no_problem() {
        let check = refused(SERVER, &Status::permission_denied("site edge is revoked: stolen"));
        assert_eq!(check.state, CheckState::Problem);
        assert!(check.found.ends_with("site edge is revoked: stolen"), "{}", check.found);
        assert_eq!(refused(SERVER, &Status::unimplemented("")).state, CheckState::Skipped);
        assert_eq!(refused(BUCKET, &Status::unavailable("this server stands by")).state, CheckState::Problem);
    }

    #[tokio::test]
    async fn a_slow_way_is_measured_with_few_bytes_and_a_fast_one_with_many() {
        let slow = rate(async |bytes| Ok(Duration::from_secs(bytes as u64 >> 17))).await;
        assert_eq!(slow.ok(), Some(Rate::Of((1 << 17) as f64)));
        let fast = rate(async |bytes| Ok(Duration::from_secs_f64(bytes as f64 / 1e9))).await.ok();
        assert!(matches!(fast, Some(Rate::Of(rate)) if (rate - 1e9).abs() < 1e6), "{fast:?}");
    }
}
