//! The local accounts that executions run as: which one is meant for the project of a run and the person who asked for it.

use serde::{Deserialize, Serialize};

use super::glob_matches;
use crate::session::Requester;

/// Stands for the project of the run in the name of an account.
const PROJECT: &str = "{project}";
/// Stands for the person who has asked for the run.
const PERSON: &str = "{person}";
/// Stands where the name of an account does.
const REFUSE: &str = "refuse";

/// What the administrator of a site says of accounts: the first rule that fits decides, and else the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRules {
    pub rules: Vec<AccountRule>,
    pub default: AccountChoice,
}

/// All parts that are given must fit. They are patterns: `*` is any text, `?` any character.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRule {
    pub project: Option<String>,
    pub person: Option<String>,
    pub account: AccountChoice,
}

/// What becomes of an execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountChoice {
    /// It does not run here.
    Refuse,
    /// It runs as the account of this name, in which `{project}` and `{person}` stand for what they say.
    Named(String),
}

/// The account that is meant, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenAccount {
    pub name: String,
    /// In words.
    pub rule: String,
}

impl AccountChoice {
    /// Reads what stands where an account is named.
    ///
    /// # Errors
    /// When that names none; the message says why.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == REFUSE {
            return Ok(Self::Refuse);
        }
        let rest = text.replace(PROJECT, "").replace(PERSON, "");
        if text.trim().is_empty() {
            return Err(format!("an account has a name: write one, or \"{REFUSE}\""));
        }
        match rest.contains(['{', '}', ':', '/', ',', '\n', '\0']) {
            true => Err(format!("{text:?} is no account: of what stands in braces there are {PROJECT} and {PERSON}")),
            false => Ok(Self::Named(text.to_owned())),
        }
    }

    fn asks_who(&self) -> bool {
        matches!(self, Self::Named(name) if name.contains(PROJECT) || name.contains(PERSON))
    }
}

impl AccountRules {
    /// The account for a run that this one has asked for.
    ///
    /// # Errors
    /// When there is none; the message says by which rule.
    pub fn choose(&self, requester: Option<&Requester>) -> Result<ChosenAccount, String> {
        let fitting = self.rules.iter().enumerate().find(|(_, rule)| rule.fits(requester));
        let (choice, rule) = match fitting {
            Some((index, rule)) => (&rule.account, format!("rule {} of [accounts]", index + 1)),
            None => (&self.default, "the default of [accounts]".to_owned()),
        };
        let AccountChoice::Named(pattern) = choice else {
            let whose = requester.map_or_else(
                || "a run of unknown origin".to_owned(),
                |requester| format!("runs of {} in the project {}", requester.person, requester.project),
            );
            return Err(format!("the site's administrator has no account for {whose} ({rule})"));
        };
        let name = match requester {
            Some(Requester { project, person }) => filled(pattern, project, person),
            None if !choice.asks_who() => pattern.clone(),
            None => {
                return Err(format!(
                    "the control plane does not say who has asked for the run, and {rule} asks for it: run a newer server"
                ));
            }
        };
        Ok(ChosenAccount { name, rule })
    }

    /// The accounts that are named whoever asks.
    pub fn fixed(&self) -> impl Iterator<Item = &str> {
        let choices = self.rules.iter().map(|rule| &rule.account).chain([&self.default]);
        choices.filter(|choice| !choice.asks_who()).filter_map(|choice| match choice {
            AccountChoice::Named(name) => Some(name.as_str()),
            AccountChoice::Refuse => None,
        })
    }
}

impl AccountRule {
    fn fits(&self, requester: Option<&Requester>) -> bool {
        let fits = |pattern: &Option<String>, name: Option<&String>| match (pattern, name) {
            (None, _) => true,
            (Some(pattern), Some(name)) => glob_matches(pattern, name),
            // Of a run of which that is not known no rule can be shown to be for it.
            (Some(_), None) => false,
        };
        fits(&self.project, requester.map(|requester| &requester.project))
            && fits(&self.person, requester.map(|requester| &requester.person))
    }
}

/// In one pass, so that what a name holds stands for nothing.
fn filled(pattern: &str, project: &str, person: &str) -> String {
    let of_project = |part: &str| part.split(PERSON).collect::<Vec<_>>().join(person);
    pattern.split(PROJECT).map(of_project).collect::<Vec<_>>().join(project)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    fn rule(project: Option<&str>, person: Option<&str>, account: &str) -> AccountRule {
        let account = AccountChoice::parse(account).unwrap();
        AccountRule { project: project.map(str::to_owned), person: person.map(str::to_owned), account }
    }

    fn rules() -> AccountRules {
        let rules = vec![
            rule(Some("secret"), None, "refuse"),
            rule(Some("climate*"), Some("ada"), "ada"),
            rule(Some("climate*"), None, "p-{project}"),
            rule(None, Some("guest-*"), "{person}.{project}"),
        ];
        AccountRules { rules, default: AccountChoice::parse("nobody-else").unwrap() }
    }

    fn chosen(project: &str, person: &str) -> Result<String, String> {
        let requester = Requester { project: project.to_owned(), person: person.to_owned() };
        rules().choose(Some(&requester)).map(|chosen| format!("{} by {}", chosen.name, chosen.rule))
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_else_the_default() {
        let by = |name: &str, rule: &str| Ok(format!("{name} by {rule} of [accounts]"));
        assert_eq!(chosen("climate", "ada"), by("ada", "rule 2"));
        assert_eq!(chosen("climate-2", "bob"), by("p-climate-2", "rule 3"));
        assert_eq!(chosen("other", "guest-1"), by("guest-1.other", "rule 4"));
        assert_eq!(chosen("other", "bob"), by("nobody-else", "the default"));
        assert!(chosen("secret", "ada").unwrap_err().contains("rule 1"));
    }

    #[test]
    fn a_name_that_looks_like_a_pattern_stands_for_itself() {
        assert_eq!(filled("{project}-{person}", "{person}", "{project}"), "{person}-{project}");
    }

    #[test]
    fn a_run_of_which_nothing_is_known_gets_no_account_that_was_meant_for_somebody() {
        assert_eq!(rules().choose(None).unwrap().name, "nobody-else");
        let of_project = AccountRules { rules: Vec::new(), default: AccountChoice::parse("{project}").unwrap() };
        assert!(of_project.choose(None).unwrap_err().contains("newer server"));
    }

    #[test]
    fn what_cannot_be_an_account_is_refused_when_it_is_read() {
        for wrong in ["", " ", "{user}", "a:b", "../x"] {
            assert!(AccountChoice::parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(AccountChoice::parse("refuse"), Ok(AccountChoice::Refuse));
    }
}
