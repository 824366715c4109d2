//! Looking at a server and at the way to it, without joining and without a session.

use std::time::{Duration, Instant, SystemTime};

use atoll_proto::v1::{EndBucketProbeRequest, ProbeBucketRequest, ProbeBucketResponse, ProbeRequest};
use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tonic::{Code, Status};

use super::connection::{ConnectError, Connection, certificate_error};
use super::{Identity, tls};

/// Which server is expected.
#[derive(Debug, Clone)]
pub(crate) enum Expected {
    /// The one whose CA's public key has this hash, as a join token has it.
    Pinned([u8; 32]),
    /// The one that this agent has joined.
    Known(Box<Identity>),
    /// Nothing is known: whoever answers is looked at, and told nothing.
    Anyone,
}

/// A connection that is looked at.
#[derive(Debug)]
pub(crate) struct Inspection {
    connection: Connection,
}

/// One call without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoundTrip {
    pub(crate) took: Duration,
    /// What the server's clock showed, in whole seconds, and this machine's in the middle of the call.
    pub(crate) clocks: Option<(SystemTime, SystemTime)>,
}

impl Inspection {
    /// With `now`, the server's certificate is looked at as if it were that time.
    ///
    /// # Errors
    /// When there is no connection, or not with the server that is expected.
    pub(crate) async fn open(url: &str, expected: &Expected, now: Option<SystemTime>) -> Result<Self, ConnectError> {
        let since = |now: SystemTime| now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let config = tls::to_inspect(expected, now.map(|now| UnixTime::since_unix_epoch(since(now))))?;
        Ok(Self { connection: Connection::open(url, config).await? })
    }

    /// A server refuses the call of somebody without a certificate, and one that stands by refuses any: that is an answer too.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn round_trip(&self) -> Result<RoundTrip, Status> {
        let (began, before) = (Instant::now(), SystemTime::now());
        let answer = self.connection.client().probe(ProbeRequest::default()).await;
        let took = began.elapsed();
        let date = match &answer {
            Ok(response) => response.metadata().get("date").cloned(),
            Err(status) => status.metadata().get("date").cloned(),
        };
        let clocks = date.as_ref().and_then(|date| server_time(date.to_str().ok()?)).map(|at| (at, before + took / 2));
        match answer {
            Err(status) if clocks.is_none() && status.code() != Code::Unauthenticated => Err(status),
            Ok(_) | Err(_) => Ok(RoundTrip { took, clocks }),
        }
    }

    /// How long so many bytes take there and back.
    ///
    /// # Errors
    /// When the server does not take them.
    pub(crate) async fn exchange(&self, sent: usize, received: u32) -> Result<Duration, Status> {
        let request = ProbeRequest { bytes: vec![0; sent].into(), answer_bytes: received };
        let began = Instant::now();
        let answer = self.connection.client().probe(request).await?.into_inner();
        if answer.bytes.len() != received as usize {
            return Err(Status::data_loss(format!("{} of {received} bytes came back", answer.bytes.len())));
        }
        Ok(began.elapsed())
    }

    /// # Errors
    /// When the server gives no place in the bucket.
    pub(crate) async fn probe_bucket(&self) -> Result<ProbeBucketResponse, Status> {
        Ok(self.connection.client().probe_bucket(ProbeBucketRequest {}).await?.into_inner())
    }

    /// # Errors
    /// When the place may not be empty again.
    pub(crate) async fn end_bucket_probe(&self) -> Result<(), Status> {
        self.connection.client().end_bucket_probe(EndBucketProbeRequest {}).await.map(drop)
    }
}

/// What is wrong with a certificate that its CA has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertificateFault {
    /// By this machine's clock; at that time it is valid.
    Time(SystemTime),
    Name,
}

/// What a connection failed for, if it is one of these.
pub(crate) fn certificate_fault(error: &ConnectError) -> Option<CertificateFault> {
    // A little inside of its life, which is longer than an hour.
    const INSIDE: Duration = Duration::from_secs(1_800);
    let at = |time: &UnixTime| SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs());
    let error = certificate_error(error)?;
    if let CertificateError::NotValidYetContext { not_before, .. } = error {
        return Some(CertificateFault::Time(at(not_before) + INSIDE));
    }
    if let CertificateError::ExpiredContext { not_after, .. } = error {
        return Some(CertificateFault::Time(at(not_after) - INSIDE));
    }
    let is_name = matches!(error, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. });
    is_name.then_some(CertificateFault::Name)
}

/// The time of an HTTP answer.
fn server_time(date: &str) -> Option<SystemTime> {
    let at = OffsetDateTime::parse(date, &Rfc2822).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(at.unix_timestamp()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_answer_is_read_as_servers_write_it() {
        let read = server_time("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(read, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)));
        assert_eq!(server_time("yesterday"), None);
    }
}
