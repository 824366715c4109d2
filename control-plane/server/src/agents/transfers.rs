//! URLs for objects: the core says whether, the bucket says where.

use std::time::{SystemTime, UNIX_EPOCH};

use atoll_model::id::{AgentId, ObjectId, TransferId};
use atoll_model::value::ObjectRef;
use atoll_proto::required;
use atoll_proto::v1::upload_plan_response::Plan;
use atoll_proto::v1::{
    CompleteUploadRequest, DownloadUrlRequest, DownloadUrlResponse, Header, Id, Nothing, SinglePut, UploadInParts,
    UploadPlanRequest, UploadPlanResponse,
};
use control_plane_core::{Request, Response};
use storage_sync_engine::bucket::{BucketError, UploadPlan, UploadRequest};
use tonic::Status;

use super::Agents;
use super::status::{of_bucket_error, of_rejection, of_wire_error};

impl Agents {
    pub(super) async fn download_url(
        &self,
        agent: AgentId,
        request: DownloadUrlRequest,
    ) -> Result<DownloadUrlResponse, Status> {
        let object = ObjectId::try_from(request).map_err(|error| of_wire_error(&error))?;
        let (object, within) = self.authorise(Request::AuthoriseFetch { agent, object }).await?;
        let bucket = &self.0.bucket;
        let mut stream_bytes = bucket.stream_bytes(object).await.map_err(|error| failed(object, &error))?;
        if let (None, Some(tree)) = (stream_bytes, within) {
            stream_bytes = Some(self.take_out(agent, tree, object).await?);
        }
        let missing = || Status::not_found(format!("{} is not in the bucket", object.id));
        let stream_bytes = stream_bytes.ok_or_else(missing)?;
        let signed = bucket.mint_download(object).await.map_err(|error| failed(object, &error))?;
        Ok(DownloadUrlResponse { url: signed.url, stream_bytes, expires_at: micros(signed.expires_at) })
    }

    pub(super) async fn upload_plan(
        &self,
        agent: AgentId,
        request: UploadPlanRequest,
    ) -> Result<UploadPlanResponse, Status> {
        let object = self.authorise_push(agent, request.transfer).await?;
        let upload = UploadRequest {
            object,
            stream_bytes: request.stream_bytes,
            upload_id: request.upload,
            first_part: request.first_part,
        };
        let plan = self.0.bucket.plan_upload(&upload, None).await.map_err(|error| failed(object, &error))?;
        let plan = match plan {
            UploadPlan::AlreadyThere => Plan::Present(Nothing {}),
            UploadPlan::Single { url, headers } => {
                let headers = headers.into_iter().map(|(name, value)| Header { name, value }).collect();
                Plan::Single(SinglePut { url, headers })
            }
            UploadPlan::Multipart(parts) => Plan::Parts(UploadInParts {
                upload: parts.upload_id,
                part_bytes: parts.part_bytes,
                part_count: parts.part_count,
                first_part: parts.first_part,
                urls: parts.urls,
            }),
        };
        Ok(UploadPlanResponse { plan: Some(plan) })
    }

    pub(super) async fn complete_upload(&self, agent: AgentId, request: CompleteUploadRequest) -> Result<(), Status> {
        let object = self.authorise_push(agent, request.transfer).await?;
        let CompleteUploadRequest { stream_bytes, upload, etags, .. } = request;
        let bucket = &self.0.bucket;
        let completed = bucket.complete_upload(object, stream_bytes, upload.as_deref(), &etags).await;
        completed.map_err(|error| failed(object, &error))
    }

    /// Makes a file of a directory that was sent in an object of its own.
    async fn take_out(&self, agent: AgentId, tree: ObjectRef, object: ObjectRef) -> Result<u64, Status> {
        let taken = match self.0.trees.contents(&self.0.bucket, tree).await {
            Ok(contents) => self.0.bucket.take_out(&contents, object.id, None).await,
            Err(error) => Err(error),
        };
        if let Err(BucketError::Corrupt { message, .. }) = &taken {
            // The file is none of the bucket's objects then, nor is anything else to be had from the directory.
            for id in [tree.id, object.id] {
                let fault = Request::BucketFault { agent, object: id, message: message.clone() };
                self.0.handle.request(fault).await.map_err(of_rejection)?;
            }
        }
        let stream_bytes = taken.map_err(|error| failed(tree, &error))?;
        // Whoever needed it may have ended meanwhile, and what was deleted then stands there again now.
        let still = self.authorise(Request::AuthoriseFetch { agent, object: object.id }).await;
        if still.is_err() {
            self.0.bucket.delete(object).await.map_err(|error| failed(object, &error))?;
        }
        still.map(|_| stream_bytes)
    }

    async fn authorise_push(&self, agent: AgentId, transfer: Option<Id>) -> Result<ObjectRef, Status> {
        let transfer: TransferId = required(transfer, "transfer").map_err(|error| of_wire_error(&error))?.into();
        self.authorise(Request::AuthorisePush { agent, transfer }).await.map(|(object, _)| object)
    }

    /// The object that the agent may move, and the directory that holds it if it is not in the bucket by itself.
    async fn authorise(&self, body: Request) -> Result<(ObjectRef, Option<ObjectRef>), Status> {
        match self.0.handle.request(body).await.map_err(of_rejection)? {
            Response::Authorised { object, within } => Ok((object, within)),
            Response::Submitted { .. }
            | Response::Enrolled { .. }
            | Response::Certify { .. }
            | Response::Offered { .. }
            | Response::Staged { .. }
            | Response::Done => Err(Status::internal("the answer does not fit the request")),
        }
    }
}

fn failed(object: ObjectRef, error: &BucketError) -> Status {
    tracing::warn!(object = %object.id, error = ?error, "the bucket refuses");
    of_bucket_error(error)
}

fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
