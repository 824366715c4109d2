//! What an administrator hands to a site: `atoll-join.<base64url of JSON>`. It pins the CA, so that there is no trust on
//! first use.

use std::fmt;
use std::str::FromStr;

use atoll_model::id::TokenId;
use atoll_model::time::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const PREFIX: &str = "atoll-join.";

/// A join token. Printed by `Display` only, whole and with its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Where agents connect: `https://host:port`.
    pub url: String,
    pub token: TokenId,
    pub secret: Zeroizing<[u8; 32]>,
    /// SHA-256 of the CA's public key (its SubjectPublicKeyInfo, DER).
    pub ca_sha256: [u8; 32],
    pub expires_at: Timestamp,
}

/// A text that is not a join token. Never shows the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJoinToken {
    #[error("this is not a join token: it does not begin with {PREFIX:?}")]
    Prefix,
    #[error("the join token is damaged: {0}; copy it again, whole")]
    Damaged(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Content {
    url: String,
    token: String,
    secret: Zeroizing<String>,
    ca_sha256: String,
    expires_at: String,
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, InvalidJoinToken> {
        use InvalidJoinToken::Damaged;
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(InvalidJoinToken::Prefix)?;
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Damaged("its text is not base64url"))?);
        let content: Content = serde_json::from_slice(&json).map_err(|_| Damaged("its content is not complete"))?;
        if !content.url.starts_with("https://") {
            return Err(Damaged("its URL does not begin with https://"));
        }
        Ok(Self {
            url: content.url,
            token: content.token.parse().map_err(|_| Damaged("its id is not the id of a token"))?,
            secret: Zeroizing::new(read_32_bytes(&content.secret).ok_or(Damaged("its secret is not 32 bytes"))?),
            ca_sha256: read_32_bytes(&content.ca_sha256).ok_or(Damaged("its pin is not 32 bytes"))?,
            expires_at: Timestamp::parse_rfc3339(&content.expires_at).map_err(|_| Damaged("its end is not a time"))?,
        })
    }
}

fn read_32_bytes(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

impl fmt::Display for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = Content {
            url: self.url.clone(),
            token: self.token.to_string(),
            secret: Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.secret)),
            ca_sha256: URL_SAFE_NO_PAD.encode(self.ca_sha256),
            expires_at: self.expires_at.to_string(),
        };
        let json = Zeroizing::new(serde_json::to_vec(&content).map_err(|_| fmt::Error)?);
        write!(formatter, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(&*json))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JoinToken").field("url", &self.url).field("token", &self.token).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            url: "https://atoll.example.org:7381".to_owned(),
            token: TokenId::from_bits(77),
            secret: Zeroizing::new([9; 32]),
            ca_sha256: [8; 32],
            expires_at: Timestamp::from_micros(1_700_000_000_000_000),
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_written_and_shows_no_secret_when_debugged() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains('9'), "{:?}", token());
    }

    #[test]
    fn a_damaged_token_is_refused_with_what_to_do() {
        let text = token().to_string();
        assert_eq!("atoll.abc".parse::<JoinToken>(), Err(InvalidJoinToken::Prefix));
        for cut in [&text[..text.len() - 9], &text[..PREFIX.len() + 5], "atoll-join.", "atoll-join.{}"] {
            let error = cut.parse::<JoinToken>().expect_err("it is cut");
            assert!(error.to_string().contains("copy it again"), "{error}");
        }
    }
}
