//! Who gives an object to whom: the core says whether, a ticket of the CA says so to the holder.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use atoll_model::id::{AgentId, ObjectId};
use atoll_model::limits::URL_LIFETIME;
use atoll_model::ticket::Ticket;
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use atoll_proto::v1::{
    AdvertiseRequest, AdvertiseResponse, Offer, OfferFailedRequest, OfferFailedResponse, OffersRequest, OffersResponse,
};
use control_plane_core::{HolderOffer, Request, Response};
use tonic::Status;

use super::Agents;
use super::status::{of_rejection, of_wire_error};

/// An agent has as many interfaces as its machine; what is beyond is not remembered.
const ADDRESSES_MAX: usize = 16;
/// What a reader may read beyond an object's own bytes: the manifests of a tree, and pieces that a crash has cost it.
const READ_BEYOND: u64 = 512 << 20;

impl Agents {
    pub(super) async fn advertise(
        &self,
        agent: AgentId,
        request: &AdvertiseRequest,
    ) -> Result<AdvertiseResponse, Status> {
        let addresses: Vec<String> = request.addresses.iter().take(ADDRESSES_MAX).cloned().collect();
        if addresses.iter().any(|address| address.parse::<SocketAddr>().is_err()) {
            return Err(Status::invalid_argument("an address is IP and port"));
        }
        let request = Request::Advertise { agent, addresses, relays: request.relays };
        self.0.handle.request(request).await.map_err(of_rejection)?;
        Ok(AdvertiseResponse {})
    }

    pub(super) async fn offers(&self, agent: AgentId, request: OffersRequest) -> Result<OffersResponse, Status> {
        let object = ObjectId::try_from(request).map_err(|error| of_wire_error(&error))?;
        let answer = self.0.handle.request(Request::Offers { agent, object }).await.map_err(of_rejection)?;
        let Response::Offered { object, holders, ask_again } = answer else {
            return Err(Status::internal("the answer does not fit the request"));
        };
        let offers = holders.into_iter().map(|holder| self.offer(agent, object, holder));
        let ask_again_ms = ask_again.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        Ok(OffersResponse { offers: offers.collect::<Result<_, _>>()?, ask_again_ms })
    }

    pub(super) async fn offer_failed(
        &self,
        agent: AgentId,
        request: OfferFailedRequest,
    ) -> Result<OfferFailedResponse, Status> {
        let message = request.message.clone();
        let (object, holder) = request.try_into().map_err(|error| of_wire_error(&error))?;
        tracing::warn!(reader = %agent, %holder, %object, message, "an agent did not get an object from another");
        let request = Request::OfferFailed { agent, object, holder };
        self.0.handle.request(request).await.map_err(of_rejection)?;
        Ok(OfferFailedResponse {})
    }

    fn offer(&self, reader: AgentId, object: ObjectRef, holder: HolderOffer) -> Result<Offer, Status> {
        let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + URL_LIFETIME;
        let ticket = Ticket {
            number: uuid::Uuid::now_v7().as_u128(),
            reader,
            holder: holder.agent,
            objects: vec![object],
            expires_at: Timestamp::ZERO + until,
            bytes_max: object.bytes.saturating_mul(2).saturating_add(READ_BEYOND),
        };
        let signed = self.0.authority.sign_ticket(&ticket).map_err(|error| {
            tracing::error!(%error, "a ticket cannot be signed");
            Status::internal("a ticket cannot be signed; the server's log says why")
        })?;
        Ok(Offer { holder: Some(holder.agent.into()), addresses: holder.addresses, ticket: signed.to_bytes().into() })
    }
}
