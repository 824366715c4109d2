//! Who this agent is, or is to be.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_model::limits::RECOVERY_WINDOW;
use atoll_model::time::Timestamp;
use atoll_proto::JoinToken;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::report::Check;
use crate::link::{Identity, IdentityError};

/// What the data directory says; `runs` is whether an agent works in it now.
pub(super) fn judge_identity(
    found: &Result<Identity, IdentityError>,
    data_dir: &Path,
    runs: bool,
    now: SystemTime,
) -> Check {
    let name = "identity";
    match found {
        Ok(identity) => judge_certificate(identity.expires_at(), now, &who(identity, runs)),
        Err(IdentityError::NotJoined(_)) => {
            Check::skipped(name, format!("no agent has joined with {}", data_dir.display()))
        }
        Err(error @ IdentityError::File { source, .. }) => Check::problem(
            name,
            format!("{error}: {source}"),
            "run this as the user that the agent runs as, and see that the data directory belongs to it",
        ),
        Err(error @ (IdentityError::Damaged { .. } | IdentityError::Key)) => Check::problem(
            name,
            error.to_string(),
            "revoke the site (`atoll site revoke`), remove it, and join anew with a new token and an empty data directory",
        ),
    }
}

fn who(identity: &Identity, runs: bool) -> String {
    let agent = if runs { "its agent runs" } else { "its agent does not run now" };
    format!("{} ({}); {agent}", identity.site, identity.agent)
}

fn judge_certificate(expires_at: SystemTime, now: SystemTime, who: &str) -> Check {
    let name = "identity";
    let found = format!("{who}; certificate until {}", shown(expires_at));
    let check = match now.duration_since(expires_at) {
        Err(_) => Check::ok(name, found),
        Ok(late) if late < RECOVERY_WINDOW => Check::warning(
            name,
            format!("{found}, which is over"),
            format!(
                "start the agent (`atoll agent run`): it gets a new one for {} days",
                RECOVERY_WINDOW.as_secs() / 86_400
            ),
        ),
        Ok(_) => Check::problem(
            name,
            format!("{found}, which is over for too long to be recovered"),
            "join anew: `atoll site revoke` and `atoll site remove` at the control plane, then a new token and an empty data \
             directory",
        ),
    };
    check.with("certificate_expires_at", shown(expires_at))
}

/// The join token that was given; `site` is the one that the data directory belongs to already.
pub(super) fn judge_token(token: &JoinToken, site: Option<&str>, now: SystemTime) -> Check {
    let name = "token";
    if let Some(site) = site {
        return Check::skipped(name, format!("this data directory belongs to {site} already: nothing is to be joined"));
    }
    let now = Timestamp::ZERO + now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let until = shown(UNIX_EPOCH + Duration::from_micros(u64::try_from(token.expires_at.micros()).unwrap_or(0)));
    if now > token.expires_at {
        let advice =
            "make another one at the control plane (`atoll site token create`), or put this machine's clock right";
        return Check::problem(name, format!("it could be used until {until}"), advice);
    }
    Check::ok(name, format!("it may be used until {until}, once")).with("expires_at", until)
}

fn shown(time: SystemTime) -> String {
    let whole = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let at =
        OffsetDateTime::from_unix_timestamp(i64::try_from(whole).unwrap_or(0)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use atoll_model::id::TokenId;

    use super::super::report::CheckState;
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_certificate_that_is_over_can_be_recovered_for_a_while() {
        let at = UNIX_EPOCH + 1_000 * DAY;
        let state = |now| judge_certificate(at, now, "edge").state;
        assert_eq!(state(at - DAY), CheckState::Ok);
        assert_eq!(state(at + DAY), CheckState::Warning);
        assert_eq!(state(at + RECOVERY_WINDOW + DAY), CheckState::Problem);
        let check = judge_certificate(at, at - DAY, "edge");
        assert_eq!(check.found, "edge; certificate until 1972-09-27T00:00:00Z");
    }

    #[test]
    fn a_token_is_of_use_until_it_expires_and_not_for_a_site_that_has_joined() {
        let token = JoinToken {
            url: "https://a:1".to_owned(),
            token: TokenId::from_bits(1),
            secret: zeroize::Zeroizing::new([1; 32]),
            ca_sha256: [2; 32],
            expires_at: Timestamp::ZERO + 10 * DAY,
        };
        let state = |site, now| judge_token(&token, site, now).state;
        assert_eq!(state(None, UNIX_EPOCH + 9 * DAY), CheckState::Ok);
        assert_eq!(state(None, UNIX_EPOCH + 11 * DAY), CheckState::Problem);
        assert_eq!(state(Some("edge"), UNIX_EPOCH + 11 * DAY), CheckState::Skipped);
    }

    #[test]
    fn a_directory_that_nobody_has_joined_with_is_no_problem_and_one_that_cannot_be_read_is() {
        let directory = Path::new("/var/lib/atoll");
        let judge = |error| judge_identity(&Err(error), directory, false, UNIX_EPOCH).state;
        assert_eq!(judge(IdentityError::NotJoined(directory.to_owned())), CheckState::Skipped);
        let source = std::io::ErrorKind::PermissionDenied.into();
        assert_eq!(judge(IdentityError::File { path: directory.to_owned(), source }), CheckState::Problem);
        let damaged = IdentityError::Damaged { path: directory.to_owned(), problem: "cut".to_owned() };
        assert_eq!(judge(damaged), CheckState::Problem);
    }
}
