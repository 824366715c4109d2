//! The accounts that executions are to run as, where the administrator has said so.

use super::report::Check;
use crate::accounts::{refuses_all, try_named};
use crate::config::Config;

const NAME: &str = "accounts";

/// Tries those that are named whoever asks: what stands for a project or a person is for `atoll site idmap test`.
pub(super) fn look(config: &Config) -> Option<Check> {
    let settings = config.accounts.as_ref()?;
    if let Some(why) = refuses_all(config) {
        return Some(Check::problem(NAME, why, "start the agent, and this command, as root"));
    }
    let mut named: Vec<&str> = settings.rules.fixed().chain(settings.installer.as_deref()).collect();
    named.sort_unstable();
    named.dedup();
    for account in &named {
        if let Err((problem, advice)) = try_named(config, settings, account) {
            return Some(Check::problem(NAME, problem, advice));
        }
    }
    let found = match named.as_slice() {
        [] => "none is named without who asks: atoll site idmap test --project P".to_owned(),
        named => format!("programs run as {}", named.join(", ")),
    };
    Some(Check::ok(NAME, found))
}
