//! Sites: listed, drained, revoked, invited.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{SiteName, TokenId};
use atoll_model::time::Timestamp;
use atoll_proto::JoinToken;
use aws_lc_rs::rand;
use axum::extract::State;
use axum::{Extension, Json};
use control_plane_core::Request;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id};
use super::tokens::Person;
use super::views::{SiteBody, SitesBody, time};
use super::{App, Joining};
use crate::driver::wall_clock;
use crate::identity::sha256;

/// A join token lives at least so long, or nobody could use it, and at most so long, since whoever holds it may speak for
/// a site.
const TOKEN_SECONDS: std::ops::RangeInclusive<u64> = 1..=30 * 24 * 3_600;
const TOKEN_SECONDS_DEFAULT: u64 = 3_600;
/// Labels of one site, and characters of one of their names or values: what a person can keep an eye on.
const LABELS_MAX: usize = 64;
const LABEL_LENGTH_MAX: usize = 128;

/// All sites
#[utoipa::path(get, path = "/sites", tag = "sites", responses((status = 200, body = SitesBody)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<SitesBody>, ApiError> {
    let sites = app.handle.query(|core| core.sites()).await?;
    Ok(Json(SitesBody { sites: sites.iter().map(SiteBody::new).collect() }))
}

/// A site
#[utoipa::path(get, path = "/sites/{site}", tag = "sites",
    params(("site" = String, Path, description = "Name of the site")),
    responses((status = 200, body = SiteBody), (status = 404, body = ErrorBody)))]
pub(super) async fn show(State(app): State<Arc<App>>, Id(site): Id<SiteName>) -> Result<Json<SiteBody>, ApiError> {
    let name = site.clone();
    let view = app.handle.query(move |core| core.site(&name)).await?;
    Ok(Json(SiteBody::new(&view.ok_or_else(|| ApiError::not_found(format!("there is no site {site}")))?)))
}

/// Give a site no new work; what runs there goes on
#[utoipa::path(post, path = "/sites/{site}/drain", tag = "sites",
    params(("site" = String, Path, description = "Name of the site")),
    responses((status = 200, body = SiteBody), (status = 404, body = ErrorBody)))]
pub(super) async fn drain(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(site): Id<SiteName>,
) -> Result<Json<SiteBody>, ApiError> {
    let request = Request::DrainSite { site: site.clone(), drained: true };
    app.change(&person, "drain site", site.as_str(), None, request).await?;
    show(State(app), Id(site)).await
}

/// Give a site work again
#[utoipa::path(post, path = "/sites/{site}/undrain", tag = "sites",
    params(("site" = String, Path, description = "Name of the site")),
    responses((status = 200, body = SiteBody), (status = 404, body = ErrorBody)))]
pub(super) async fn undrain(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(site): Id<SiteName>,
) -> Result<Json<SiteBody>, ApiError> {
    let request = Request::DrainSite { site: site.clone(), drained: false };
    app.change(&person, "undrain site", site.as_str(), None, request).await?;
    show(State(app), Id(site)).await
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevokeBody {
    /// Shown with the site.
    reason: Option<String>,
}

/// End a site's identity: its session is closed, its certificate refused
#[utoipa::path(post, path = "/sites/{site}/revoke", tag = "sites",
    params(("site" = String, Path, description = "Name of the site")), request_body = RevokeBody,
    responses((status = 200, body = SiteBody), (status = 404, body = ErrorBody)))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(site): Id<SiteName>,
    Body(body): Body<RevokeBody>,
) -> Result<Json<SiteBody>, ApiError> {
    let reason = body.reason.unwrap_or_else(|| format!("revoked by {}", person.name));
    let request = Request::RevokeSite { site: site.clone(), reason: reason.clone() };
    app.change(&person, "revoke site", site.as_str(), Some(&reason), request).await?;
    show(State(app), Id(site)).await
}

/// Say that a site is gone: what it had is given to others. Refused while its leases may hold
#[utoipa::path(post, path = "/sites/{site}/lost", tag = "sites",
    params(("site" = String, Path, description = "Name of the site")),
    responses((status = 200, body = SiteBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn declare_lost(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(site): Id<SiteName>,
) -> Result<Json<SiteBody>, ApiError> {
    let request = Request::DeclareLost { site: site.clone() };
    app.change(&person, "declare site lost", site.as_str(), None, request).await?;
    show(State(app), Id(site)).await
}

/// Forget a site that is revoked, or has no run that is still alive
#[utoipa::path(delete, path = "/sites/{site}", tag = "sites",
    params(("site" = String, Path, description = "Name of the site")),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(site): Id<SiteName>,
) -> Result<StatusCode, ApiError> {
    let request = Request::RemoveSite { site: site.clone() };
    app.change(&person, "remove site", site.as_str(), None, request).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenRequestBody {
    /// How long the token may be used; an hour unless given.
    ttl_seconds: Option<u64>,
    /// Labels of the site.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct TokenBody {
    token: String,
    /// What to run at the site.
    join_command: String,
    expires_at: String,
}

/// A token for one join; the site is made if there is none of the name
#[utoipa::path(post, path = "/sites/{site}/tokens", tag = "sites",
    params(("site" = String, Path, description = "Name of the site")), request_body = TokenRequestBody,
    responses((status = 201, body = TokenBody), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn create_token(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(site): Id<SiteName>,
    Body(body): Body<TokenRequestBody>,
) -> Result<(StatusCode, Json<TokenBody>), ApiError> {
    let seconds = body.ttl_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
    if !TOKEN_SECONDS.contains(&seconds) {
        let range = format!("give {} to {} seconds", TOKEN_SECONDS.start(), TOKEN_SECONDS.end());
        return Err(ApiError::with_help("ttl_seconds is out of range", range));
    }
    check_labels(&body.labels)?;
    let lifetime = Duration::from_secs(seconds);
    let expires_at: Timestamp = wall_clock() + lifetime;
    let token = TokenId::from_bits(uuid::Uuid::now_v7().as_u128());
    let mut secret = Zeroizing::new([0; 32]);
    rand::fill(&mut *secret)
        .map_err(|_| ApiError::internal("no token can be made", anyhow::anyhow!("the system has no randomness")))?;
    let secret_hash = sha256(&*secret);
    let Joining { url, ca_sha256 } = app.joining.clone();
    let minted = JoinToken { url, token, secret, ca_sha256, expires_at };
    let request = Request::CreateToken { token, secret_hash, site: site.clone(), labels: body.labels, lifetime };
    app.change(&person, "create token", site.as_str(), Some(&token.to_string()), request).await?;
    let text = minted.to_string();
    let join_command = format!("atoll agent join {text} --run");
    Ok((StatusCode::CREATED, Json(TokenBody { token: text, join_command, expires_at: time(expires_at) })))
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if labels.len() > LABELS_MAX {
        return Err(ApiError::bad_request(format!("a site has at most {LABELS_MAX} labels")));
    }
    let wrong = labels.iter().find(|(name, value)| {
        name.is_empty()
            || [name, value].iter().any(|text| text.len() > LABEL_LENGTH_MAX || text.chars().any(char::is_control))
    });
    match wrong {
        Some((name, _)) => {
            let help = format!("names and values are of printable characters, at most {LABEL_LENGTH_MAX} bytes");
            Err(ApiError::with_help(format!("the label {name:?} is not usable"), help))
        }
        None => Ok(()),
    }
}
