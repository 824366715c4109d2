//! URLs for objects: the core says whether, the bucket says where.

use std::time::{SystemTime, UNIX_EPOCH};

use atoll_model::id::{AgentId, ObjectId, TransferId};
use atoll_model::value::ObjectRef;
use atoll_proto::required;
use atoll_proto::v1::encrypted_upload::Plan as EncryptedPlan;
use atoll_proto::v1::upload_plan_response::Plan;
use atoll_proto::v1::{
    CompleteUploadRequest, DownloadUrlRequest, DownloadUrlResponse, EncryptedUpload, Header, Id, Key, Nothing,
    SinglePut, UploadInParts, UploadPlanRequest, UploadPlanResponse,
};
use control_plane_core::{BucketCopy, Request, Response};
use storage_sync_engine::bucket::{BucketError, Found, MultipartPlan, Stored, UploadPlan, UploadRequest};
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
        let (stored, within) = self.authorise(Request::AuthoriseFetch { agent, object }).await?;
        let (bucket, object) = (&self.0.bucket, stored.object);
        let mut found = bucket.find(stored.clone()).await.map_err(|error| failed(object, &error))?;
        if let (None, Some(tree)) = (&found, within) {
            self.take_out(agent, tree, &stored).await?;
            found = bucket.find(stored.clone()).await.map_err(|error| failed(object, &error))?;
        }
        let Some(Found { stream_bytes, key }) = found else {
            // Somebody has deleted it there, or a control plane that was restored from a backup believes in what was let go
            // since.
            let message = "it is not in the bucket";
            self.fault(agent, object.id, message.to_owned()).await?;
            return Err(Status::not_found(format!("{}: {message}", object.id)));
        };
        let signed = bucket.mint_download(stored).await.map_err(|error| failed(object, &error))?;
        let key = key.map(|key| Key { secret: key.secret().to_vec().into() });
        Ok(DownloadUrlResponse { url: signed.url, stream_bytes, expires_at: micros(signed.expires_at), key })
    }

    pub(super) async fn upload_plan(
        &self,
        agent: AgentId,
        request: UploadPlanRequest,
    ) -> Result<UploadPlanResponse, Status> {
        let Stored { object, encryption } = self.authorise_push(agent, request.transfer).await?;
        let upload = UploadRequest {
            object,
            stream_bytes: request.stream_bytes,
            upload_id: request.upload,
            first_part: request.first_part,
        };
        let plan = self.0.bucket.plan_upload(&upload, encryption.as_ref()).await;
        let key = encryption.map(|encryption| Key { secret: encryption.key().secret().to_vec().into() });
        let plan = match (plan.map_err(|error| failed(object, &error))?, key) {
            (UploadPlan::AlreadyThere, _) => Plan::Present(Nothing {}),
            (UploadPlan::Single { url, headers }, None) => Plan::Single(single(url, headers)),
            (UploadPlan::Single { url, headers }, Some(key)) => {
                let plan = Some(EncryptedPlan::Single(single(url, headers)));
                Plan::Encrypted(EncryptedUpload { key: Some(key), plan })
            }
            (UploadPlan::Multipart(plan), None) => Plan::Parts(parts(plan)),
            (UploadPlan::Multipart(plan), Some(key)) => {
                let plan = Some(EncryptedPlan::Parts(parts(plan)));
                Plan::Encrypted(EncryptedUpload { key: Some(key), plan })
            }
        };
        Ok(UploadPlanResponse { plan: Some(plan) })
    }

    pub(super) async fn complete_upload(&self, agent: AgentId, request: CompleteUploadRequest) -> Result<(), Status> {
        let stored = self.authorise_push(agent, request.transfer).await?;
        let CompleteUploadRequest { stream_bytes, upload, etags, .. } = request;
        let (bucket, object) = (&self.0.bucket, stored.object);
        let completed = bucket.complete_upload(stored, stream_bytes, upload.as_deref(), &etags).await;
        completed.map_err(|error| failed(object, &error))
    }

    /// Makes a file of a directory that was sent in an object of its own.
    async fn take_out(&self, agent: AgentId, tree: Stored, file: &Stored) -> Result<(), Status> {
        let (directory, object) = (tree.object, file.object);
        let taken = match self.0.trees.contents(&self.0.bucket, tree).await {
            Ok(contents) => self.0.bucket.take_out(&contents, object.id, file.encryption.as_ref()).await,
            Err(error) => Err(error),
        };
        if let Err(BucketError::Corrupt { message, .. }) = &taken {
            // The file is none of the bucket's objects then, nor is anything else to be had from the directory.
            for id in [directory.id, object.id] {
                self.fault(agent, id, message.clone()).await?;
            }
        }
        taken.map_err(|error| failed(directory, &error))?;
        // Whoever needed it may have ended meanwhile, and what was deleted then stands there again now.
        let still = self.authorise(Request::AuthoriseFetch { agent, object: object.id }).await;
        if still.is_err() {
            self.0.bucket.delete(file.clone()).await.map_err(|error| failed(object, &error))?;
        }
        still.map(drop)
    }

    /// What the agent was to read cannot be had from the bucket.
    async fn fault(&self, agent: AgentId, object: ObjectId, message: String) -> Result<(), Status> {
        let fault = Request::BucketFault { agent, object, message };
        self.0.handle.request(fault).await.map(drop).map_err(of_rejection)
    }

    async fn authorise_push(&self, agent: AgentId, transfer: Option<Id>) -> Result<Stored, Status> {
        let transfer: TransferId = required(transfer, "transfer").map_err(|error| of_wire_error(&error))?.into();
        self.authorise(Request::AuthorisePush { agent, transfer }).await.map(|(stored, _)| stored)
    }

    /// The object that the agent may move, and the directory that holds it if it is not in the bucket by itself.
    async fn authorise(&self, body: Request) -> Result<(Stored, Option<Stored>), Status> {
        let (copy, within) = match self.0.handle.request(body).await.map_err(of_rejection)? {
            Response::Authorised { copy, within } => (copy, within),
            Response::Submitted { .. }
            | Response::Enrolled { .. }
            | Response::Certify { .. }
            | Response::Offered { .. }
            | Response::Staged { .. }
            | Response::ProjectKey { .. }
            | Response::Emitted { .. }
            | Response::Done => return Err(Status::internal("the answer does not fit the request")),
        };
        let stored = self.stored(&copy).await?;
        Ok((
            stored,
            match within {
                Some(tree) => Some(self.stored(&tree).await?),
                None => None,
            },
        ))
    }

    async fn stored(&self, copy: &BucketCopy) -> Result<Stored, Status> {
        let stored = self.0.keys.stored(&self.0.handle, copy).await;
        stored.map_err(|error| {
            let object = copy.object.id;
            tracing::error!(%object, error = &error as &dyn std::error::Error, "a key cannot be used");
            Status::unavailable("the key of the project cannot be used; the server's log says why")
        })
    }
}

pub(super) fn single(url: String, headers: Vec<(String, String)>) -> SinglePut {
    let headers = headers.into_iter().map(|(name, value)| Header { name, value }).collect();
    SinglePut { url, headers }
}

fn parts(plan: MultipartPlan) -> UploadInParts {
    UploadInParts {
        upload: plan.upload_id,
        part_bytes: plan.part_bytes,
        part_count: plan.part_count,
        first_part: plan.first_part,
        urls: plan.urls,
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
