//! Google Cloud Storage as far as it can be had without Google. Who asks is checked as Google says that it is checked, by code
//! that shares nothing with what signs; what is asked for is then done by a real S3 server, for Google's XML API is that of
//! S3. No server of Google's was ever asked.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use atoll_model::time::Timestamp;
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, RANGE, TRANSFER_ENCODING};
use http::{Method, StatusCode};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer as _};
use reqwest::Url;
use serde_json::{Value, json};

/// Signed, whatever the address is that is asked.
pub(crate) const HOST: &str = "storage.googleapis.com";
const EMAIL: &str = "atoll@tests.iam.gserviceaccount.com";
/// Parts of 16 MiB, and those of streams.
const BODY_BYTES_MAX: usize = 64 << 20;

pub(crate) struct Google {
    s3: AmazonS3,
    client: reqwest::Client,
    public_key: Vec<u8>,
    /// What Google hands out for the service account.
    pub(crate) credentials: String,
}

impl Google {
    /// In front of the bucket `name`; its own address, and what it knows.
    pub(crate) async fn start(name: &str) -> Result<(String, Arc<Self>)> {
        let s3 = super::s3::store(&format!("s3://{name}"))?;
        let key = KeyPair::generate(KeySize::Rsa2048)?;
        let private: Pkcs8V1Der<'_> = key.as_der()?;
        let private = STANDARD.encode(private.as_ref());
        let lines: Vec<_> = private.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let credentials = json!({
            "type": "service_account",
            "client_email": EMAIL,
            "private_key_id": "1",
            "private_key": format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")),
        });
        let google = Arc::new(Self {
            s3,
            client: reqwest::Client::builder().build()?,
            public_key: key.public_key().as_ref().to_vec(),
            credentials: credentials.to_string(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let router = axum::Router::new().fallback(answer).with_state(google.clone());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await });
        // It ends with the test's runtime.
        tasks.detach_all();
        Ok((address, google))
    }

    /// Who asks is somebody with a URL, or the service account itself.
    fn check(&self, request: &Request, url: &Url) -> Result<(), Refused> {
        if url.query_pairs().any(|(name, _)| name == "X-Goog-Signature") {
            return check_url(request.method().as_str(), url, HOST, &self.public_key, SystemTime::now());
        }
        let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer "));
        token.and_then(|token| self.check_token(token).ok()).ok_or(Refused::Token)
    }

    fn check_token(&self, token: &str) -> Result<()> {
        let (signed, signature) = token.rsplit_once('.').context("a signature")?;
        let (_, claims) = signed.split_once('.').context("claims")?;
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public_key);
        key.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature)?)?;
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        ensure!(claims["iss"] == EMAIL && claims["exp"].as_u64().is_some_and(|end| end > now));
        Ok(())
    }

    /// Has the S3 server do it.
    async fn pass_on(&self, request: Request, url: &Url) -> Result<Response> {
        // Behind the name of the bucket.
        let key = url.path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        let path = Path::from_url_path(key)?;
        let query = url.query_pairs().filter(|(name, _)| !name.starts_with("X-Goog-"));
        let options = SignedUrlOptions::new().with_query(query);
        let (parts, body) = request.into_parts();
        let to = self.s3.signed_url_opts(parts.method.clone(), &path, Duration::from_secs(60), &options).await?;
        let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await?;
        let mut asked = self.client.request(parts.method.clone(), to);
        if let Method::PUT | Method::POST = parts.method {
            // Said of an empty one too.
            asked = asked.header(CONTENT_LENGTH, body.len());
        }
        asked = asked.body(body);
        if let Some(range) = parts.headers.get(RANGE) {
            asked = asked.header(RANGE, range);
        }
        let mut answered = http::Response::from(asked.send().await?);
        // Of that connection, not of this one.
        answered.headers_mut().remove(TRANSFER_ENCODING);
        answered.headers_mut().remove(CONNECTION);
        Ok(answered.map(Body::new))
    }
}

async fn answer(State(google): State<Arc<Google>>, request: Request) -> Response {
    let url = Url::parse(&format!("https://{HOST}{}", request.uri())).expect("a request's path and query");
    let answered = match google.check(&request, &url) {
        Ok(()) => google.pass_on(request, &url).await,
        Err(refused) => {
            // Read to its end, so that the sender hears the answer.
            let _ = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
            let (status, code) = refused.answer();
            let text = format!("<Error><Code>{code}</Code></Error>");
            Ok(Response::builder().status(status).body(Body::from(text)).expect("it is a response"))
        }
    };
    answered.unwrap_or_else(|error| {
        Response::builder().status(StatusCode::BAD_GATEWAY).body(Body::from(format!("{error:#}"))).expect("a response")
    })
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Token,
    Signature,
    Expired,
}

impl Refused {
    /// As Google answers.
    fn answer(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Token => (StatusCode::UNAUTHORIZED, "AuthenticationRequired"),
            Self::Signature => (StatusCode::FORBIDDEN, "SignatureDoesNotMatch"),
            Self::Expired => (StatusCode::BAD_REQUEST, "ExpiredToken"),
        }
    }
}

/// Checks a URL as Google's documents of the "V4 signing process" say. The key is an RSA key of RFC 8017.
pub(crate) fn check_url(method: &str, url: &Url, host: &str, key: &[u8], now: SystemTime) -> Result<(), Refused> {
    let value = |wanted: &str| url.query_pairs().find_map(|(name, value)| (name == wanted).then(|| value.into_owned()));
    let needed = |name: &str| value(name).ok_or(Refused::Signature);
    let (date, credential) = (needed("X-Goog-Date")?, needed("X-Goog-Credential")?);
    let (_, scope) = credential.split_once('/').ok_or(Refused::Signature)?;
    let mut query: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| name != "X-Goog-Signature")
        .map(|(name, value)| (encoded(&name), encoded(&value)))
        .collect();
    query.sort();
    let query: Vec<_> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let canonical = format!("{method}\n{}\n{}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD", url.path(), query.join("&"));
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, canonical.as_bytes());
    let signed = format!("GOOG4-RSA-SHA256\n{date}\n{scope}\n{}", hex(digest.as_ref()));
    let signature = unhex(&needed("X-Goog-Signature")?).ok_or(Refused::Signature)?;
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key);
    key.verify(signed.as_bytes(), &signature).map_err(|_| Refused::Signature)?;
    let life = needed("X-Goog-Expires")?.parse().map_err(|_| Refused::Signature)?;
    let begun = begun(&date).ok_or(Refused::Signature)?;
    if now >= begun + Duration::from_secs(life) { Err(Refused::Expired) } else { Ok(()) }
}

/// Of `20190201T090000Z`.
fn begun(date: &str) -> Option<SystemTime> {
    let part = |range| date.get(range);
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4)?,
        part(4..6)?,
        part(6..8)?,
        part(9..11)?,
        part(11..13)?,
        part(13..15)?
    );
    let time = Timestamp::parse_rfc3339(&text).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_micros(time.micros().try_into().ok()?))
}

/// All but letters, digits and four signs.
fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
