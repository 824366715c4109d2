//! The gRPC service: takes the peer from the connection, and hands on.

use atoll_proto::v1::agents_server::Agents as Service;
use atoll_proto::v1::{
    AdvertiseRequest, AdvertiseResponse, AgentBulk, AgentFrame, CompleteUploadRequest, CompleteUploadResponse,
    DownloadUrlRequest, DownloadUrlResponse, EmitRequest, EmitResponse, EndBucketProbeRequest, EndBucketProbeResponse,
    EnrolRequest, Identity, OfferFailedRequest, OfferFailedResponse, OffersRequest, OffersResponse, ProbeBucketRequest,
    ProbeBucketResponse, ProbeRequest, ProbeResponse, RecoverRequest, RenewCertificateRequest, UploadPlanRequest,
    UploadPlanResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::Agents;
use super::logs::BulkOutgoing;
use super::peer::Peer;
use super::session::Outgoing;

/// The service as tonic wants it, around what it calls.
#[derive(Debug, Clone)]
pub(super) struct Calls(pub(super) Agents);

#[tonic::async_trait]
impl Service for Calls {
    type SessionStream = Outgoing;
    type BulkStream = BulkOutgoing;

    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Identity>, Status> {
        let peer = Peer::of_request(&request)?;
        self.0.enrol(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<Identity>, Status> {
        let peer = Peer::of_request(&request)?;
        self.0.recover(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn renew_certificate(&self, request: Request<RenewCertificateRequest>) -> Result<Response<Identity>, Status> {
        let peer = Peer::of_request(&request)?;
        self.0.renew(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn session(&self, request: Request<Streaming<AgentFrame>>) -> Result<Response<Outgoing>, Status> {
        let peer = Peer::of_request(&request)?;
        let (identity, not_after) = peer.agent()?;
        self.0.open_session(identity.agent, not_after, request.into_inner()).await.map(Response::new)
    }

    async fn download_url(
        &self,
        request: Request<DownloadUrlRequest>,
    ) -> Result<Response<DownloadUrlResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        let agent = peer.agent()?.0.agent;
        self.0.download_url(agent, request.into_inner()).await.map(Response::new)
    }

    async fn emit(&self, request: Request<EmitRequest>) -> Result<Response<EmitResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        let agent = peer.agent()?.0.agent;
        self.0.emit(agent, request.into_inner()).await.map(Response::new)
    }

    async fn advertise(&self, request: Request<AdvertiseRequest>) -> Result<Response<AdvertiseResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        let agent = peer.agent()?.0.agent;
        self.0.advertise(agent, &request.into_inner()).await.map(Response::new)
    }

    async fn offers(&self, request: Request<OffersRequest>) -> Result<Response<OffersResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        let agent = peer.agent()?.0.agent;
        self.0.offers(agent, request.into_inner()).await.map(Response::new)
    }

    async fn offer_failed(
        &self,
        request: Request<OfferFailedRequest>,
    ) -> Result<Response<OfferFailedResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        let agent = peer.agent()?.0.agent;
        self.0.offer_failed(agent, request.into_inner()).await.map(Response::new)
    }

    async fn upload_plan(&self, request: Request<UploadPlanRequest>) -> Result<Response<UploadPlanResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        let agent = peer.agent()?.0.agent;
        self.0.upload_plan(agent, request.into_inner()).await.map(Response::new)
    }

    async fn complete_upload(
        &self,
        request: Request<CompleteUploadRequest>,
    ) -> Result<Response<CompleteUploadResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        let agent = peer.agent()?.0.agent;
        self.0.complete_upload(agent, request.into_inner()).await?;
        Ok(Response::new(CompleteUploadResponse {}))
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        self.0.probe(peer.agent()?.0, &request.into_inner()).await.map(Response::new)
    }

    async fn probe_bucket(
        &self,
        request: Request<ProbeBucketRequest>,
    ) -> Result<Response<ProbeBucketResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        self.0.probe_bucket(peer.agent()?.0).await.map(Response::new)
    }

    async fn end_bucket_probe(
        &self,
        request: Request<EndBucketProbeRequest>,
    ) -> Result<Response<EndBucketProbeResponse>, Status> {
        let peer = Peer::of_request(&request)?;
        self.0.end_bucket_probe(peer.agent()?.0).await?;
        Ok(Response::new(EndBucketProbeResponse {}))
    }

    async fn bulk(&self, request: Request<Streaming<AgentBulk>>) -> Result<Response<BulkOutgoing>, Status> {
        let peer = Peer::of_request(&request)?;
        let (identity, _) = peer.agent()?;
        self.0.open_bulk(identity, request.into_inner()).map(Response::new)
    }
}
