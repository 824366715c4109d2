//! What lets one agent have objects of another: signed by the control plane, shown by the reader, checked by the holder.

use serde::{Deserialize, Serialize};

use crate::id::AgentId;
use crate::time::Timestamp;
use crate::value::ObjectRef;

/// Stands before what is signed, so that a signature of the CA for something else is none of a ticket: no certificate
/// begins so.
const PURPOSE: &[u8] = b"atoll/ticket/1\0";
/// Of a signature, whatever the kind of the CA's key.
const SIGNATURE_BYTES_MAX: usize = 1024;

/// A right to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Tells tickets apart: what is read under one is counted.
    pub number: u128,
    /// Who may read. The connection must be his.
    pub reader: AgentId,
    /// Who has the objects.
    pub holder: AgentId,
    pub objects: Vec<ObjectRef>,
    pub expires_at: Timestamp,
    /// Bytes that may be read under it, what is read twice counted twice.
    pub bytes_max: u64,
}

/// A ticket as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedTicket {
    body: Vec<u8>,
    signature: Vec<u8>,
}

/// Why a text of bytes is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    #[error("it cannot be read")]
    Unreadable,
    #[error("it is not signed by the control plane")]
    Forged,
}

impl Ticket {
    /// Signs it with `sign`, which is given the bytes that are signed.
    ///
    /// # Errors
    /// Those of `sign`.
    pub fn signed<E>(&self, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<SignedTicket, E> {
        let body = postcard::to_stdvec(self).expect("a ticket has an encoding");
        let signature = sign(&with_purpose(&body))?;
        Ok(SignedTicket { body, signature })
    }
}

impl SignedTicket {
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a ticket has an encoding")
    }

    /// Reads a ticket that `is_signed` vouches for; it is given what was signed, and the signature.
    ///
    /// # Errors
    /// When it is none, or nobody vouches for it.
    pub fn open(bytes: &[u8], is_signed: impl FnOnce(&[u8], &[u8]) -> bool) -> Result<Ticket, TicketError> {
        let Self { body, signature } = postcard::from_bytes(bytes).map_err(|_| TicketError::Unreadable)?;
        if signature.len() > SIGNATURE_BYTES_MAX || !is_signed(&with_purpose(&body), &signature) {
            return Err(TicketError::Forged);
        }
        postcard::from_bytes(&body).map_err(|_| TicketError::Unreadable)
    }
}

fn with_purpose(body: &[u8]) -> Vec<u8> {
    [PURPOSE, body].concat()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn a_ticket_is_read_only_when_its_signature_is_vouched_for() {
        let ticket = Ticket {
            number: 7,
            reader: AgentId::from_bits(1),
            holder: AgentId::from_bits(2),
            objects: Vec::new(),
            expires_at: Timestamp(5),
            bytes_max: 9,
        };
        let signed = ticket.signed(|bytes| Ok::<_, Infallible>(bytes.iter().rev().copied().collect())).unwrap();
        let vouch = |bytes: &[u8], signature: &[u8]| bytes.iter().rev().eq(signature);
        assert_eq!(SignedTicket::open(&signed.to_bytes(), vouch), Ok(ticket));
        assert_eq!(SignedTicket::open(&signed.to_bytes(), |_, _| false), Err(TicketError::Forged));
        let mut other = signed.clone();
        other.body[0] ^= 1;
        assert_eq!(SignedTicket::open(&other.to_bytes(), vouch), Err(TicketError::Forged));
        assert_eq!(SignedTicket::open(b"no", vouch), Err(TicketError::Unreadable));
    }
}
