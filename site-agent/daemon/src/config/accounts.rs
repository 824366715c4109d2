//! The local accounts that executions run as.

use atoll_model::policy::{AccountChoice, AccountRule, AccountRules};
use serde::Deserialize;

use super::ConfigError;

/// Below this are the accounts of the machine itself, root before all, on nearly every system.
const UID_MIN: u32 = 1_000;

/// The table `[accounts]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountSection {
    #[serde(default)]
    rules: Vec<RuleSection>,
    default: Option<String>,
    uid_min: Option<u32>,
    installer: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleSection {
    project: Option<String>,
    person: Option<String>,
    account: String,
}

/// What an agent that becomes other accounts goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountSettings {
    pub rules: AccountRules,
    /// Accounts with a lower number are never taken on.
    pub uid_min: u32,
    /// The account that packages of actions are installed as; without one none are.
    pub installer: Option<String>,
}

impl AccountSection {
    pub(super) fn checked(self, has_jobs: bool) -> Result<AccountSettings, ConfigError> {
        if has_jobs {
            return Err(ConfigError::Accounts(
                "executions of this site are jobs of a batch system, which an agent submits as itself: run an agent for each \
                 account, or leave [accounts] out"
                    .to_owned(),
            ));
        }
        let choice = |place: String, text: &str| {
            AccountChoice::parse(text).map_err(|why| ConfigError::Accounts(format!("{place}: {why}")))
        };
        let rules = self.rules.into_iter().enumerate().map(|(index, rule)| {
            let account = choice(format!("rule {}: account = {:?}", index + 1, rule.account), &rule.account)?;
            Ok(AccountRule { project: rule.project, person: rule.person, account })
        });
        let rules = rules.collect::<Result<_, ConfigError>>()?;
        let default = match self.default {
            Some(text) => choice(format!("default = {text:?}"), &text)?,
            None => AccountChoice::Refuse,
        };
        let rules = AccountRules { rules, default };
        Ok(AccountSettings { rules, uid_min: self.uid_min.unwrap_or(UID_MIN), installer: self.installer })
    }
}
