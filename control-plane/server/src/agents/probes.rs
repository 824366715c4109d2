//! What the doctor of a site measures with: bytes there and back, and a place in the bucket that stands for no data.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use atoll_model::id::{AgentId, ObjectId};
use atoll_model::limits::{BUCKET_PROBE_BYTES, PROBE_BYTES_MAX, URL_LIFETIME};
use atoll_model::value::{ObjectKind, ObjectRef};
use atoll_proto::v1::{ProbeBucketResponse, ProbeRequest, ProbeResponse};
use control_plane_core::view::SiteState;
use storage_sync_engine::bucket::{BucketError, UploadPlan, UploadRequest};
use tokio::time::Instant;
use tonic::Status;

use super::Agents;
use super::status::{of_bucket_error, of_rejection};
use super::transfers::single;
use crate::identity::{AgentIdentity, sha256};

/// Until when agents may write what they measure with.
#[derive(Debug, Default)]
pub(super) struct Probed(Mutex<HashMap<AgentId, Instant>>);

impl Probed {
    /// Whether it is the first that is not over.
    fn note(&self, agent: AgentId) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(agent, Instant::now() + URL_LIFETIME).is_none()
    }

    async fn is_over(&self, agent: AgentId) {
        while let Some(over) = self.pending(agent) {
            tokio::time::sleep_until(over).await;
        }
    }

    fn pending(&self, agent: AgentId) -> Option<Instant> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = known.get(&agent).copied().filter(|over| *over > Instant::now());
        if over.is_none() {
            known.remove(&agent);
        }
        over
    }
}

impl Agents {
    pub(super) async fn probe(&self, agent: &AgentIdentity, request: &ProbeRequest) -> Result<ProbeResponse, Status> {
        let most = PROBE_BYTES_MAX;
        let wanted = usize::try_from(request.answer_bytes).unwrap_or(usize::MAX);
        // An empty one measures the round trip, and nothing else is to be in it.
        if !request.bytes.is_empty() || wanted > 0 {
            self.trusts(agent).await?;
        }
        if request.bytes.len() > most || wanted > most {
            return Err(Status::invalid_argument(format!("a probe carries at most {most} bytes")));
        }
        Ok(ProbeResponse { bytes: vec![0; wanted].into() })
    }

    pub(super) async fn probe_bucket(&self, agent: &AgentIdentity) -> Result<ProbeBucketResponse, Status> {
        self.trusts(agent).await?;
        let object = probe_object(agent.agent);
        let bucket = &self.0.bucket;
        // One that was not ended would pass for what is to be written.
        bucket.delete(object).await.map_err(|error| refused(agent.agent, &error))?;
        let upload = UploadRequest { object, stream_bytes: object.bytes, upload_id: None, first_part: 0 };
        let plan = bucket.plan_upload(&upload, None).await.map_err(|error| refused(agent.agent, &error))?;
        let UploadPlan::Single { url, headers } = plan else {
            return Err(Status::aborted("another measurement of this agent is going on"));
        };
        let read = bucket.mint_download(object).await.map_err(|error| refused(agent.agent, &error))?;
        self.forget_later(agent.agent);
        Ok(ProbeBucketResponse { put: Some(single(url, headers)), get_url: read.url, bytes: object.bytes })
    }

    pub(super) async fn end_bucket_probe(&self, agent: &AgentIdentity) -> Result<(), Status> {
        self.trusts(agent).await?;
        let deleted = self.0.bucket.delete(probe_object(agent.agent)).await;
        deleted.map_err(|error| refused(agent.agent, &error))
    }

    /// A site whose doctor was killed leaves nothing behind once its URLs are worth nothing any more.
    fn forget_later(&self, agent: AgentId) {
        if !self.0.probed.note(agent) {
            return; // It is waited for already.
        }
        let agents = self.clone();
        self.0.tasks.spawn(async move {
            // A server that ends does not wait; the next measurement of the agent takes the same place.
            if agents.0.closing.run_until_cancelled(agents.0.probed.is_over(agent)).await.is_some()
                && let Err(error) = agents.0.bucket.delete(probe_object(agent)).await
            {
                tracing::warn!(error = ?error, "what was measured with is left in the bucket");
            }
        });
    }

    /// A certificate outlives the trust in its site.
    async fn trusts(&self, agent: &AgentIdentity) -> Result<(), Status> {
        let site = agent.site.clone();
        let known = self.0.handle.query(move |core| core.site(&site)).await;
        match known.map_err(of_rejection)? {
            Some(known) if known.state == SiteState::Revoked => {
                let reason = known.reason.unwrap_or_default();
                Err(Status::permission_denied(format!("site {} is revoked: {reason}", agent.site)))
            }
            Some(_) => Ok(()),
            None => Err(Status::permission_denied(format!("there is no site {}", agent.site))),
        }
    }
}

/// Where an agent measures: at a name that is the digest of no object.
fn probe_object(agent: AgentId) -> ObjectRef {
    let id = ObjectId::from_digest(sha256(format!("atoll bucket probe of {agent}").as_bytes()));
    ObjectRef { id, kind: ObjectKind::File, bytes: BUCKET_PROBE_BYTES }
}

fn refused(agent: AgentId, error: &BucketError) -> Status {
    tracing::warn!(%agent, error = ?error, "the bucket cannot be measured");
    of_bucket_error(error)
}
