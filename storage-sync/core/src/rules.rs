//! How the rules of a workflow bear on an output or an input.

use atoll_model::id::SiteName;
use atoll_model::placement::{Labels, PushMode, Rule, RuleMatch};

/// What a rule may match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    Output {
        step: &'a str,
        output: &'a str,
    },
    /// An input of the workflow, wherever it comes from.
    Input {
        name: &'a str,
    },
}

/// When an object is pushed, and which rule (by its place, from 0) says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PushRule {
    pub mode: PushMode,
    pub rule: Option<u16>,
}

/// The places (from 0) of the rules that confine the subject itself.
pub fn confining(rules: &[Rule], subject: Subject<'_>) -> Vec<u16> {
    numbered(rules).filter(|(_, rule)| rule.confine.is_some() && applies(&rule.matches, subject)).map(first).collect()
}

/// When the subject is pushed. Of several rules the safer wins: `never` before `eager` before `when-needed`.
pub fn push_rule(rules: &[Rule], subject: Subject<'_>) -> PushRule {
    let safety = |mode: PushMode| match mode {
        PushMode::WhenNeeded => 0,
        PushMode::OnSuccess => 1,
        PushMode::Eager => 2,
        PushMode::Never => 3,
    };
    let mut chosen = PushRule::default();
    for (number, rule) in numbered(rules).filter(|(_, rule)| applies(&rule.matches, subject)) {
        if let Some(mode) = rule.push
            && (chosen.rule.is_none() || safety(mode) > safety(chosen.mode))
        {
            chosen = PushRule { mode, rule: Some(number) };
        }
    }
    chosen
}

/// Whether data under these rules may not enter the bucket: anything that is confined at all.
pub fn is_confined(confined_by: &[u16]) -> bool {
    !confined_by.is_empty()
}

/// The first of these rules that keeps the data away from the site. Forbidden sets add up.
pub fn forbidden_by(rules: &[Rule], confined_by: &[u16], site: &SiteName, labels: &Labels) -> Option<u16> {
    confined_by.iter().copied().find(|number| {
        rules
            .get(usize::from(*number))
            .and_then(|rule| rule.confine.as_ref())
            .is_some_and(|allowed| !allowed.admits(site, labels))
    })
}

fn numbered(rules: &[Rule]) -> impl Iterator<Item = (u16, &Rule)> {
    (0..=u16::MAX).zip(rules)
}

fn first<A, B>(pair: (A, B)) -> A {
    pair.0
}

fn applies(matches: &RuleMatch, subject: Subject<'_>) -> bool {
    match subject {
        Subject::Output { step, output } => {
            matches.input.is_none() && fits(matches.step.as_deref(), step) && fits(matches.output.as_deref(), output)
        }
        Subject::Input { name } => {
            matches.step.is_none() && matches.output.is_none() && fits(matches.input.as_deref(), name)
        }
    }
}

fn fits(pattern: Option<&str>, name: &str) -> bool {
    match pattern {
        None => true,
        Some(pattern) => match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => pattern == name,
        },
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may")]

    use atoll_model::placement::SiteSelector;

    use super::*;

    fn rule(step: Option<&str>, output: Option<&str>, push: Option<PushMode>, confine: Option<&str>) -> Rule {
        Rule {
            matches: RuleMatch { step: step.map(Into::into), output: output.map(Into::into), input: None },
            confine: confine.map(|site| SiteSelector { names: vec![site.parse().unwrap()], ..SiteSelector::default() }),
            push,
            place: Default::default(),
        }
    }

    #[test]
    fn every_part_of_a_match_must_hold() {
        let rules = [rule(Some("clean"), Some("raw*"), None, Some("edge"))];
        assert_eq!(confining(&rules, Subject::Output { step: "clean", output: "raw-csv" }), [0]);
        assert!(confining(&rules, Subject::Output { step: "clean", output: "table" }).is_empty());
        assert!(confining(&rules, Subject::Output { step: "model", output: "raw" }).is_empty());
        assert!(confining(&rules, Subject::Input { name: "raw" }).is_empty());
    }

    #[test]
    fn an_empty_match_applies_to_everything() {
        let rules = [rule(None, None, Some(PushMode::Never), None)];
        assert_eq!(push_rule(&rules, Subject::Output { step: "a", output: "b" }).mode, PushMode::Never);
        assert_eq!(push_rule(&rules, Subject::Input { name: "c" }).rule, Some(0));
    }

    #[test]
    fn the_safer_of_two_push_rules_wins() {
        let rules = [rule(None, None, Some(PushMode::Eager), None), rule(Some("a"), None, Some(PushMode::Never), None)];
        let subject = Subject::Output { step: "a", output: "x" };
        assert_eq!(push_rule(&rules, subject), PushRule { mode: PushMode::Never, rule: Some(1) });
    }

    #[test]
    fn confinements_add_up() {
        let rules = [rule(None, None, None, Some("edge")), rule(None, None, None, Some("hpc"))];
        let confined = confining(&rules, Subject::Output { step: "a", output: "x" });
        assert_eq!(forbidden_by(&rules, &confined, &"edge".parse().unwrap(), &Labels::new()), Some(1));
        assert_eq!(forbidden_by(&rules, &confined, &"hpc".parse().unwrap(), &Labels::new()), Some(0));
        assert_eq!(forbidden_by(&rules, &confined[..1], &"edge".parse().unwrap(), &Labels::new()), None);
    }
}
