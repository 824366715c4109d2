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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    fn read(text: &str) -> Result<AccountSettings, ConfigError> {
        toml::from_str::<AccountSection>(text).unwrap().checked(false)
    }

    #[test]
    fn nobody_runs_anything_unless_it_is_said_as_whom_and_nothing_runs_as_an_account_of_the_machine() {
        let settings = read("").unwrap();
        assert_eq!((settings.rules.default, settings.uid_min), (AccountChoice::Refuse, 1_000));
        let settings =
            read("default = 'p-{project}'\nuid_min = 0\n[[rules]]\nperson = 'ada'\naccount = 'refuse'\n").unwrap();
        assert_eq!(settings.rules.default, AccountChoice::Named("p-{project}".to_owned()));
        assert_eq!((settings.rules.rules[0].account.clone(), settings.uid_min), (AccountChoice::Refuse, 0));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let error = read("[[rules]]\naccount = 'a'\n[[rules]]\naccount = '{user}'\n").unwrap_err().to_string();
        assert!(error.contains("rule 2: account = \"{user}\""), "{error}");
        let of_jobs = toml::from_str::<AccountSection>("default = 'a'").unwrap().checked(true).unwrap_err().to_string();
        assert!(of_jobs.contains("jobs of a batch system"), "{of_jobs}");
        assert!(toml::from_str::<AccountSection>("fallback = 'a'").is_err());
    }
}
