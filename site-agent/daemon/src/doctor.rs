//! What `atoll site doctor` looks at, before a site joins and ever after. Each part sees first (what a program, a file or a
//! server says) and judges then, by a function of what was seen alone.

mod accounts;
mod batch;
mod commands;
mod containers;
mod engine;
mod identity;
mod machine;
mod ports;
mod report;
mod server;
mod storage;

use std::ffi::OsString;
use std::time::{Duration, SystemTime};

use atoll_proto::{InvalidJoinToken, JoinToken};

use crate::config::Config;
use crate::link::{Expected, Identity, urls};
use crate::{IDENTITY, lock};
use commands::Commands;
pub use report::{Check, CheckState, Diagnosis};
use server::Server;

/// What a program of the machine gets to answer.
const COMMAND_PATIENCE: Duration = Duration::from_secs(15);

/// # Errors
/// When the token is not one.
pub(crate) async fn diagnose(config: &Config, token: Option<&str>) -> Result<Diagnosis, InvalidJoinToken> {
    let token = token.map(str::parse::<JoinToken>).transpose()?;
    let identity = Identity::load(&config.data_dir.join(IDENTITY));
    let runs = lock::is_held(&config.data_dir);
    let server = server_of(config, token.as_ref(), identity.as_ref().ok());
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let commands = Commands::new(path, COMMAND_PATIENCE);

    let kubernetes = config.kubernetes.as_ref().map(|settings| (settings, config.data_dir.as_path()));
    let machine = machine::look(config, &commands).await;
    let is_root = rustix::process::geteuid().is_root();
    let (of_server, batch, containers) = tokio::join!(
        look_at(server.as_ref()),
        batch::look(config.batch.as_ref(), kubernetes, &commands),
        containers::look(&commands, is_root, machine.has_namespaces()),
    );
    // Alone, since what others do on the disk would be measured too.
    let storage = storage::look(&config.data_dir).await;
    let work = match &config.work_dir {
        Some(folder) => Some(storage::look(folder).await),
        None => None,
    };
    let between = storage::Between::see(config);

    let addresses = server.map(|server| server.urls.replace("https://", ""));
    let reached = of_server.iter().any(|check| check.name == "server-identity" && check.state != CheckState::Problem)
        && of_server.iter().any(|check| check.name == "agent-port" && check.state == CheckState::Ok);
    let site = identity.as_ref().ok().map(|identity| identity.site.clone());
    let now = SystemTime::now();
    let mut checks = vec![identity::judge_identity(&identity, &config.data_dir, runs, now)];
    checks.extend(token.map(|token| identity::judge_token(&token, site.as_ref().map(|site| site.as_str()), now)));
    checks.extend(of_server);
    checks.extend(ports::look(config.direct_listen, config.metrics_listen, config.workers.as_ref(), runs));
    checks.push(ports::judge_proxy(&|name| std::env::var(name).ok(), addresses.as_deref(), reached));
    checks.extend(storage::judge(&storage));
    checks.extend(work.as_ref().map(storage::judge_work));
    checks.push(storage::judge_between(between));
    checks.extend(machine::judge(&machine));
    checks.extend(batch);
    checks.extend(containers);
    let settings = config.clone();
    let engine = tokio::task::spawn_blocking(move || (engine::look(&settings), accounts::look(&settings)));
    let (engine, accounts) = engine.await.expect("a look does not panic");
    checks.extend(engine);
    checks.extend(accounts);
    Ok(Diagnosis { site, server: addresses, data_dir: config.data_dir.clone(), checks })
}

/// The servers to look at, as an agent would find them: an identity knows them best, then a token.
fn server_of(config: &Config, token: Option<&JoinToken>, identity: Option<&Identity>) -> Option<Server> {
    let named = config.server.as_deref().map(urls);
    let (urls, expected) = match (identity, token) {
        (Some(identity), _) => (Some(identity.url.clone()), Expected::Known(Box::new(identity.clone()))),
        (None, Some(token)) => (Some(token.url.clone()), Expected::Pinned(token.ca_sha256)),
        (None, None) => (None, Expected::Anyone),
    };
    Some(Server { urls: named.or(urls)?, expected })
}

async fn look_at(server: Option<&Server>) -> Vec<Check> {
    match server {
        Some(server) => server::look(server).await,
        None => {
            let none = "no server is known before the site has joined";
            let advice = "give the server or the join token: --server HOST:PORT, or --server atoll-join.…";
            vec![Check::skipped("agent-port", none).with_advice(advice)]
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;
    use crate::config::ShimProgram;

    fn config(folder: &tempfile::TempDir) -> Config {
        // This program is none that shims can be started from.
        let arguments = ["-c", "echo namespaces"].map(str::to_owned).to_vec();
        let shim_program = Some(ShimProgram { program: "/bin/sh".into(), arguments });
        Config { shim_program, ..Config::for_data_dir(folder.path().join("atoll")) }
    }

    #[tokio::test]
    async fn a_machine_is_looked_at_without_a_server_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let diagnosis = diagnose(&config(&folder), None).await.unwrap();
        let state = |name: &str| diagnosis.checks.iter().find(|check| check.name == name).map(|check| check.state);
        assert_eq!((state("identity"), state("agent-port")), (Some(CheckState::Skipped), Some(CheckState::Skipped)));
        assert_eq!(state("data-dir"), Some(CheckState::Ok));
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
        let without_advice = diagnosis
            .checks
            .iter()
            .filter(|check| matches!(check.state, CheckState::Warning | CheckState::Problem) && check.advice.is_none());
        assert_eq!(without_advice.count(), 0, "{:#?}", diagnosis.checks);
    }

    #[test]
    fn the_server_is_the_one_that_an_agent_would_connect_to() {
        let folder = tempfile::tempdir().unwrap();
        let token = JoinToken {
            url: "https://a:1".to_owned(),
            token: atoll_model::id::TokenId::from_bits(1),
            secret: zeroize::Zeroizing::new([1; 32]),
            ca_sha256: [2; 32],
            expires_at: atoll_model::time::Timestamp::ZERO,
        };
        let of = |config: &Config, token| server_of(config, token, None).map(|server| server.urls);
        assert_eq!(of(&config(&folder), None), None);
        assert_eq!(of(&config(&folder), Some(&token)).as_deref(), Some("https://a:1"));
        let named = Config { server: Some("b:2,c:3".to_owned()), ..config(&folder) };
        assert_eq!(of(&named, Some(&token)).as_deref(), Some("https://b:2,https://c:3"));
    }
}
