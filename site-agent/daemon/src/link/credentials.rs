//! URLs for objects, asked of the control plane over the connection that the session uses.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use atoll_model::id::{AgentId, TransferId};
use atoll_model::value::ObjectRef;
use atoll_proto::v1::encrypted_upload::Plan as EncryptedPlan;
use atoll_proto::v1::upload_plan_response::Plan;
use atoll_proto::v1::{
    AdvertiseRequest, CompleteUploadRequest, DownloadUrlRequest, EmitRequest, EmitResponse, EncryptedUpload, Key,
    OfferFailedRequest, OffersRequest, SinglePut, UploadInParts, UploadPlanRequest,
};
use storage_sync_engine::bucket::{MultipartPlan, UploadPlan, UploadRequest};
use storage_sync_engine::direct::Offer;
use storage_sync_engine::transfer::{CredentialError, Credentials, Download, Offers, Upload};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::connection::Connection;

/// How long a call waits for a connection, and for its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct LinkCredentials {
    pub(super) connection: watch::Receiver<Option<Connection>>,
}

/// The connections to the control plane, one after the other.
#[derive(Debug)]
pub(crate) struct Connections(watch::Receiver<Option<Connection>>);

impl Connections {
    /// Waits until there is one; whether there will be any more.
    pub(crate) async fn connected(&mut self) -> bool {
        self.0.wait_for(Option::is_some).await.is_ok()
    }

    /// Waits until the present one is gone, or another is there.
    pub(crate) async fn changed(&mut self) {
        // A link that has ended is found out by whoever waits for the next connection.
        let _ = self.0.changed().await;
    }
}

impl LinkCredentials {
    pub(crate) fn connections(&self) -> Connections {
        Connections(self.connection.clone())
    }

    /// Says that this agent fetches from others, and where it listens for those that fetch from it.
    pub(crate) async fn advertise(&self, addresses: &[SocketAddr]) -> Result<(), CredentialError> {
        let mut client = self.connection().await?.client();
        let addresses = addresses.iter().map(SocketAddr::to_string).collect();
        answered(client.advertise(AdvertiseRequest { addresses, relays: true })).await.map(drop)
    }

    /// Hands on what an attempt has emitted; without records, asks how far its source has come.
    pub(crate) async fn emit(&self, request: EmitRequest) -> Result<EmitResponse, CredentialError> {
        let mut client = self.connection().await?.client();
        answered(client.emit(request)).await
    }

    async fn connection(&self) -> Result<Connection, CredentialError> {
        let mut connection = self.connection.clone();
        let connected = tokio::time::timeout(PATIENCE, connection.wait_for(Option::is_some)).await;
        let connected = connected.ok().and_then(Result::ok).and_then(|connection| connection.clone());
        connected.ok_or_else(|| CredentialError::Unavailable("there is no connection to it".to_owned()))
    }
}

async fn answered<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, CredentialError> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(refusal(&status)),
        Err(_) => Err(CredentialError::Unavailable("it does not answer".to_owned())),
    }
}

/// An object that is not in the bucket yet, or a bucket without room, may be another matter later.
fn refusal(status: &Status) -> CredentialError {
    let message = status.message().to_owned();
    match status.code() {
        Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound => {
            CredentialError::Refused(message)
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => CredentialError::Unavailable(message),
    }
}

/// A key, which the message does not show either.
fn read_key<K>(key: &Key) -> Result<K, CredentialError>
where
    K: for<'a> TryFrom<&'a [u8]>,
{
    let unknown = |_| CredentialError::Refused("its key is of a kind that this agent does not know".to_owned());
    K::try_from(&key.secret[..]).map_err(|_| ()).map_err(unknown)
}

fn read_single(single: SinglePut) -> UploadPlan {
    let headers = single.headers.into_iter().map(|header| (header.name, header.value)).collect();
    UploadPlan::Single { url: single.url, headers }
}

fn read_parts(parts: UploadInParts) -> UploadPlan {
    UploadPlan::Multipart(MultipartPlan {
        upload_id: parts.upload,
        part_bytes: parts.part_bytes,
        part_count: parts.part_count,
        first_part: parts.first_part,
        urls: parts.urls,
    })
}

#[async_trait]
impl Credentials for LinkCredentials {
    async fn download(&self, object: ObjectRef) -> Result<Download, CredentialError> {
        let mut client = self.connection().await?.client();
        let answer = answered(client.download_url(DownloadUrlRequest::from(object.id))).await?;
        let key = answer.key.map(|key| read_key(&key)).transpose()?;
        Ok(Download { url: answer.url, stream_bytes: answer.stream_bytes, key })
    }

    async fn offers(&self, object: ObjectRef) -> Result<Offers, CredentialError> {
        let mut client = self.connection().await?.client();
        let answer = answered(client.offers(OffersRequest::from(object.id))).await?;
        let offer = |offer: atoll_proto::v1::Offer| {
            // What cannot be read was meant for an agent of another version.
            let addresses = offer.addresses.iter().filter_map(|address| address.parse().ok()).collect();
            Some(Offer { holder: offer.holder?.into(), addresses, ticket: offer.ticket.to_vec() })
        };
        if let Some(time) = answer.ask_again_ms {
            return Ok(Offers::AskAgain(Duration::from_millis(time.into())));
        }
        Ok(Offers::From(answer.offers.into_iter().filter_map(offer).collect()))
    }

    async fn offer_failed(&self, object: ObjectRef, holder: AgentId, message: &str) -> Result<(), CredentialError> {
        let mut client = self.connection().await?.client();
        answered(client.offer_failed(OfferFailedRequest::from((object.id, holder, message)))).await.map(drop)
    }

    async fn upload_plan(&self, transfer: TransferId, request: &UploadRequest) -> Result<Upload, CredentialError> {
        let mut client = self.connection().await?.client();
        let answer = answered(client.upload_plan(UploadPlanRequest {
            transfer: Some(transfer.into()),
            stream_bytes: request.stream_bytes,
            upload: request.upload_id.clone(),
            first_part: request.first_part,
        }))
        .await?;
        let (plan, key) = match answer.plan {
            Some(Plan::Present(_)) => (UploadPlan::AlreadyThere, None),
            Some(Plan::Single(single)) => (read_single(single), None),
            Some(Plan::Parts(parts)) => (read_parts(parts), None),
            Some(Plan::Encrypted(EncryptedUpload { key: Some(key), plan: Some(plan) })) => {
                let plan = match plan {
                    EncryptedPlan::Single(single) => read_single(single),
                    EncryptedPlan::Parts(parts) => read_parts(parts),
                };
                (plan, Some(read_key(&key)?))
            }
            Some(Plan::Encrypted(_)) | None => {
                let message = "its plan is of a kind that this agent does not know".to_owned();
                return Err(CredentialError::Refused(message));
            }
        };
        Ok(Upload { plan, key })
    }

    async fn complete(
        &self,
        transfer: TransferId,
        request: &UploadRequest,
        etags: &[String],
    ) -> Result<(), CredentialError> {
        let mut client = self.connection().await?.client();
        let complete = CompleteUploadRequest {
            transfer: Some(transfer.into()),
            stream_bytes: request.stream_bytes,
            upload: request.upload_id.clone(),
            etags: etags.to_vec(),
        };
        answered(client.complete_upload(complete)).await.map(|_| ())
    }
}
