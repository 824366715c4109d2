//! Signatures of the URLs of a directory bucket: an HMAC-SHA256 over everything that the URL allows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Key;

/// What one URL allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Grant {
    Download,
    /// One PUT of this many bytes.
    Upload {
        length: u64,
    },
    /// One PUT of this many bytes as part of an upload, from 0.
    Part {
        upload: String,
        part: u32,
        length: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    Expired,
    /// The URL is not one that this server made, or was made for another method or object.
    Signature,
}

pub(super) struct UrlSigner {
    key: hmac::Key,
}

impl std::fmt::Debug for UrlSigner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("UrlSigner").finish_non_exhaustive()
    }
}

impl Grant {
    fn query(&self) -> String {
        match self {
            Self::Download => String::new(),
            Self::Upload { length } => format!("length={length}&"),
            Self::Part { upload, part, length } => format!("length={length}&part={part}&upload={upload}&"),
        }
    }

    fn method(&self) -> &'static str {
        match self {
            Self::Download => "GET",
            Self::Upload { .. } | Self::Part { .. } => "PUT",
        }
    }
}

impl UrlSigner {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// Path and query of a URL, from the object's key on.
    pub(super) fn sign(&self, key: &Key, grant: &Grant, expires_at: SystemTime) -> String {
        let expires = seconds(expires_at);
        let tag = hmac::sign(&self.key, text(key, grant, expires).as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(tag.as_ref());
        format!("{key}?{}expires={expires}&signature={signature}", grant.query())
    }

    /// What a request with this method and query may do.
    pub(super) fn check(&self, method: &str, key: &Key, query: &str, now: SystemTime) -> Result<Grant, Refused> {
        let value = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.split_once('=').filter(|(known, _)| *known == name).map(|(_, value)| value))
        };
        let number = |name: &str| value(name).and_then(|text| text.parse::<u64>().ok());
        let grant = match (method, value("upload")) {
            ("GET" | "HEAD", _) => Grant::Download,
            ("PUT", None) => Grant::Upload { length: number("length").ok_or(Refused::Signature)? },
            ("PUT", Some(upload)) => Grant::Part {
                upload: upload.to_owned(),
                part: number("part").and_then(|part| part.try_into().ok()).ok_or(Refused::Signature)?,
                length: number("length").ok_or(Refused::Signature)?,
            },
            _ => return Err(Refused::Signature),
        };
        let expires = number("expires").ok_or(Refused::Signature)?;
        let signature = value("signature").and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let signature = signature.ok_or(Refused::Signature)?;
        hmac::verify(&self.key, text(key, &grant, expires).as_bytes(), &signature).map_err(|_| Refused::Signature)?;
        // Said only of a URL that is genuine.
        if seconds(now) >= expires { Err(Refused::Expired) } else { Ok(grant) }
    }
}

fn text(key: &Key, grant: &Grant, expires: u64) -> String {
    format!("atoll bucket url 1\n{}\n{key}\n{}\n{expires}", grant.method(), grant.query())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(folder: &str, byte: u8) -> Key {
        let hex = format!("{byte:02x}").repeat(32);
        Key::parse(&format!("{folder}/{}/{hex}", &hex[..2])).expect("it is the key of an object")
    }

    fn query(url: &str) -> &str {
        url.split_once('?').expect("it has a query").1
    }

    #[test]
    fn a_url_allows_what_it_was_made_for_and_nothing_else() {
        let signer = UrlSigner::new(&[7; 32]);
        let now = SystemTime::now();
        let later = now + Duration::from_secs(60);
        let part = Grant::Part { upload: "u1".to_owned(), part: 3, length: 9 };
        for grant in [Grant::Download, Grant::Upload { length: 9 }, part] {
            let url = signer.sign(&key("o", 1), &grant, later);
            assert_eq!(signer.check(grant.method(), &key("o", 1), query(&url), now), Ok(grant.clone()));
            assert_eq!(signer.check(grant.method(), &key("o", 1), query(&url), later), Err(Refused::Expired));
            assert_eq!(signer.check(grant.method(), &key("o", 2), query(&url), now), Err(Refused::Signature));
            let tree = key("t", 1);
            assert_eq!(signer.check(grant.method(), &tree, query(&url), now), Err(Refused::Signature));
            let other = if grant.method() == "GET" { "PUT" } else { "GET" };
            assert_eq!(signer.check(other, &key("o", 1), query(&url), now), Err(Refused::Signature));
            assert_eq!(signer.check("DELETE", &key("o", 1), query(&url), now), Err(Refused::Signature));
            let longer = url.replace("expires=", "expires=9");
            assert_eq!(signer.check(grant.method(), &key("o", 1), query(&longer), now), Err(Refused::Signature));
            let other_key = UrlSigner::new(&[8; 32]);
            assert_eq!(other_key.check(grant.method(), &key("o", 1), query(&url), now), Err(Refused::Signature));
        }
        let url = signer.sign(&key("o", 1), &Grant::Upload { length: 9 }, later);
        let larger = url.replace("length=9", "length=90");
        assert_eq!(signer.check("PUT", &key("o", 1), query(&larger), now), Err(Refused::Signature));
    }
}
