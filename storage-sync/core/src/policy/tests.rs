#![expect(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use atoll_model::id::SiteName;
use atoll_model::policy::{
    Attribute, AttributeKind, ByteRange, Comparison, Keep, KeepAt, Literal, Policy, Selector, parse,
};
use proptest::prelude::*;

use super::*;

struct Sites(Vec<(SiteName, Labels)>);

impl Sites {
    fn locations(&self) -> Vec<Location<'_>> {
        self.0.iter().map(|(name, labels)| Location { name, labels }).collect()
    }
}

/// edge and juliet in eu, hpc in us, lab does not say.
fn sites() -> Sites {
    let site = |name: &str, region: Option<&str>, tier: &str| {
        let mut labels = Labels::from([("tier".to_owned(), tier.to_owned())]);
        labels.extend(region.map(|region| ("region".to_owned(), region.to_owned())));
        (name.parse().unwrap(), labels)
    };
    Sites(vec![
        site("edge", Some("eu"), "3"),
        site("juliet", Some("eu"), "1"),
        site("hpc", Some("us"), "1"),
        site("lab", None, "x"),
    ])
}

fn policy(rules: &str) -> Policy {
    let attributes = "attributes:\n  region: { type: enum, values: [eu, us] }\n  tier: { type: integer }\n";
    parse("p.yaml", &format!("{attributes}placement:\n{rules}")).unwrap()
}

const OUTPUT: Origin<'static> = Origin::Output { step: "clean", output: "raw.nc" };

fn verdict<'a>(policies: &'a [(Level, Policy)], bytes: Option<u64>, check: impl FnOnce(Verdict<'a>)) {
    let sites = sites();
    let layers: Vec<_> = policies.iter().map(|(level, policy)| Layer { level: *level, rules: &policy.rules }).collect();
    let labels = Labels::new();
    let object = Object { workflow: "climate-eu", origin: OUTPUT, labels: &labels, bytes };
    check(evaluate(&layers, &object, &BTreeSet::new(), &sites.locations(), None));
}

const fn id(layer: u16, rule: u16) -> RuleId {
    RuleId { layer, rule }
}

#[test]
fn forbidden_sets_add_up_over_levels_and_name_their_rules() {
    let policies = [
        (Level::Instance, policy("  - confine: { to: \"region == 'eu'\", bucket: allowed }\n")),
        (Level::Workflow, policy("  - confine: { to: \"tier <= 2\", bucket: if-encrypted }\n")),
    ];
    verdict(&policies, None, |verdict| {
        assert_eq!(verdict.allowed, BTreeSet::from([1]));
        assert_eq!(verdict.forbidden[&0], BTreeSet::from([id(1, 0)]));
        assert_eq!(verdict.forbidden[&2], BTreeSet::from([id(0, 0)]));
        assert_eq!(verdict.forbidden[&3], BTreeSet::from([id(0, 0), id(1, 0)]));
        assert_eq!(verdict.standing.bucket, Ruled { value: Bucket::Forbidden, by: Some(id(1, 0)) });
    });
}

#[test]
fn a_site_that_does_not_say_is_neither_in_a_set_nor_in_its_opposite() {
    for rule in ["\"region == 'us'\"", "\"!(region == 'us')\"", "\"region != 'us'\"", "\"tier < 9 && has(tier)\""] {
        let policies = [(Level::Project, policy(&format!("  - confine: {{ to: {rule} }}\n")))];
        verdict(&policies, None, |verdict| assert!(!verdict.allowed.contains(&3), "{rule}"));
    }
}

#[test]
fn encryption_opens_the_bucket_to_what_may_enter_it_encrypted() {
    let rules = "  - confine: { to: \"region == 'eu'\", bucket: if-encrypted }\n  - encrypt: { key: project }\n";
    verdict(&[(Level::Project, policy(rules))], None, |verdict| {
        assert_eq!(verdict.standing.bucket, Ruled { value: Bucket::Encrypted, by: Some(id(0, 1)) });
    });
}

#[test]
fn what_may_come_to_match_confines_from_the_start_and_asks_for_nothing_yet() {
    let rules = "  - match: { bytes: '>= 1GiB' }\n    confine: edge\n    push: never\n";
    let policies = [(Level::Project, policy(rules))];
    verdict(&policies, None, |verdict| {
        assert_eq!(verdict.allowed, BTreeSet::from([0]));
        assert_eq!(verdict.standing.push.by, None);
    });
    verdict(&policies, Some(1 << 30), |verdict| assert_eq!(verdict.standing.push.value, PushMode::Never));
    verdict(&policies, Some(1), |verdict| assert_eq!(verdict.allowed.len(), 4));
}

#[test]
fn the_most_specific_level_wins_and_at_one_level_the_safer_value() {
    let policies = [
        (Level::Project, policy("  - push: eager\n    keep: { for: 90d after run.end }\n")),
        (
            Level::Step,
            policy(
                "  - push: when-needed\n  - push: on-success\n  - keep: { for: 1d after run.end }\n  - keep: { for: 7d after run.end }\n",
            ),
        ),
    ];
    verdict(&policies, None, |verdict| {
        assert_eq!(verdict.standing.push, Ruled { value: PushMode::OnSuccess, by: Some(id(1, 1)) });
        let (keep, by) = verdict.standing.keep.unwrap();
        assert_eq!(*keep, Keep { at: KeepAt::Producer, until: Until::AfterRun(Duration::from_secs(7 * 86_400)) });
        assert_eq!(by, id(1, 3));
    });
}

#[test]
fn what_must_be_where_it_may_not_be_is_refused_with_all_rules_named() {
    let policies = [
        (Level::Instance, policy("  - confine: { to: \"region == 'eu'\" }\n")),
        (
            Level::Workflow,
            policy(
                "  - pin: { at: hpc, until: run.end }\n    replicate: { copies: 3, across: site }\n  - push: eager\n",
            ),
        ),
    ];
    verdict(&policies, None, |verdict| {
        let confining = BTreeSet::from([id(0, 0)]);
        let conflict = |unmet, rule| Conflict { unmet, rule: Some(rule), with: confining.clone() };
        assert_eq!(
            verdict.conflicts,
            [
                conflict(Unmet::Pin, id(1, 0)),
                conflict(Unmet::Push, id(1, 1)),
                conflict(Unmet::Replicate { wanted: 3, possible: 2 }, id(1, 0)),
            ]
        );
    });
    let should = "  - replicate: { copies: 2, across: region, to: hpc, importance: should }\n";
    verdict(&[(Level::Workflow, policy(should))], None, |verdict| {
        assert!(verdict.conflicts.is_empty());
        assert_eq!(verdict.warnings.len(), 1);
    });
}

#[test]
fn the_last_copy_stays_while_anything_needs_or_holds_it() {
    let policies = [(Level::Project, policy("  - expire: { after: 90d }\n  - hold: { reason: publication }\n"))];
    verdict(&policies, None, |verdict| {
        assert!(!may_remove(0, false, &verdict.standing, Some(Duration::MAX)));
        assert!(may_remove(1, false, &verdict.standing, None));
    });
    let kept = [(Level::Project, policy("  - pin: { at: edge, until: 7d after run.end }\n"))];
    verdict(&kept, None, |verdict| {
        assert!(!may_remove(0, false, &verdict.standing, None));
        assert!(!may_remove(0, false, &verdict.standing, Some(Duration::from_secs(86_400))));
        assert!(may_remove(0, false, &verdict.standing, Some(Duration::from_secs(8 * 86_400))));
        assert!(!may_remove(0, true, &verdict.standing, Some(Duration::from_secs(8 * 86_400))));
    });
}

fn any_selector() -> impl Strategy<Value = Selector> {
    let attribute = Attribute { kind: AttributeKind::Enum(vec!["eu".into(), "us".into()]), description: None };
    let leaf = prop_oneof![
        Just(Selector::Every),
        Just(Selector::Has("region".into())),
        (any::<bool>(), any::<bool>()).prop_map(move |(eu, equal)| Selector::Compare {
            attribute: "region".into(),
            kind: attribute.kind.clone(),
            comparison: if equal { Comparison::Equal } else { Comparison::NotEqual },
            literal: Literal::Text(if eu { "eu" } else { "us" }.into()),
        }),
        (0..4_i64).prop_map(|tier| Selector::Compare {
            attribute: "tier".into(),
            kind: AttributeKind::Integer,
            comparison: Comparison::LessOrEqual,
            literal: Literal::Integer(tier),
        }),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|inner| Selector::Not(Box::new(inner))),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Selector::All),
            prop::collection::vec(inner, 0..3).prop_map(Selector::Some),
        ]
    })
}

fn any_push() -> impl Strategy<Value = PushMode> {
    prop::sample::select(vec![PushMode::WhenNeeded, PushMode::Eager, PushMode::OnSuccess, PushMode::Never])
}

fn any_bucket() -> impl Strategy<Value = BucketUse> {
    prop::sample::select(vec![BucketUse::Allowed, BucketUse::IfEncrypted, BucketUse::Forbidden])
}

fn any_rule() -> impl Strategy<Value = PolicyRule> {
    let step = prop::option::of(prop::sample::select(vec!["clean", "c*", "fit", "*"]));
    let confine = prop::option::of((any_selector(), any_bucket()).prop_map(|(to, bucket)| Confine { to, bucket }));
    let bytes = prop::option::of((0..4_u64, 4..9_u64).prop_map(|(least, most)| ByteRange { least, most }));
    let pin = prop::option::of(any_selector().prop_map(|at| Pin { at, until: Until::Forever }));
    let replicate =
        prop::option::of((any_selector(), 1..5_u32, any::<bool>()).prop_map(|(to, copies, must)| Replicate {
            copies,
            across: "site".into(),
            to,
            within: None,
            importance: if must { Importance::Must } else { Importance::Should },
        }));
    (step, bytes, confine, prop::option::of(any_push()), pin, replicate, any::<bool>()).prop_map(
        |(step, bytes, confine, push, pin, replicate, encrypt)| PolicyRule {
            matches: PolicyMatch { step: step.map(Into::into), bytes, ..PolicyMatch::default() },
            confine,
            push,
            pin,
            replicate,
            encrypt: encrypt.then_some(KeyScope::Project),
            ..PolicyRule::default()
        },
    )
}

fn any_level() -> impl Strategy<Value = Level> {
    use Level::{Instance, Output, Project, Site, Step, Workflow};
    prop::sample::select(vec![Instance, Project, Workflow, Step, Output, Site])
}

type Layers = Vec<(Level, Vec<PolicyRule>)>;

fn any_layers() -> impl Strategy<Value = Layers> {
    prop::collection::vec((any_level(), prop::collection::vec(any_rule(), 0..4)), 0..4)
}

fn with<T>(
    layers: &Layers,
    bytes: Option<u64>,
    inherited: &BTreeSet<RuleId>,
    read: impl FnOnce(Verdict<'_>) -> T,
) -> T {
    let sites = sites();
    let layers: Vec<_> = layers.iter().map(|(level, rules)| Layer { level: *level, rules }).collect();
    let labels = Labels::new();
    let object = Object { workflow: "w", origin: OUTPUT, labels: &labels, bytes };
    read(evaluate(&layers, &object, inherited, &sites.locations(), None))
}

/// More means stricter: what a verdict allows, and whether the bucket is shut.
fn reach(layers: &Layers, bytes: Option<u64>, inherited: &BTreeSet<RuleId>) -> (BTreeSet<usize>, bool) {
    with(layers, bytes, inherited, |verdict| (verdict.allowed, verdict.standing.bucket.value == Bucket::Forbidden))
}

proptest! {
    #[test]
    fn no_rule_widens_what_others_allow(layers in any_layers(), level in any_level(), rule in any_rule(), bytes in prop::option::of(0..10_u64)) {
        let before = reach(&layers, bytes, &BTreeSet::new()).0;
        let mut more = layers;
        more.push((level, vec![rule]));
        prop_assert!(reach(&more, bytes, &BTreeSet::new()).0.is_subset(&before));
    }

    #[test]
    fn a_confinement_shuts_the_bucket_no_less_than_before(layers in any_layers(), level in any_level(), to in any_selector(), bucket in any_bucket()) {
        let before = reach(&layers, None, &BTreeSet::new());
        let mut more = layers;
        more.push((level, vec![PolicyRule { confine: Some(Confine { to, bucket }), ..PolicyRule::default() }]));
        prop_assert!(reach(&more, None, &BTreeSet::new()).1 >= before.1);
    }

    #[test]
    fn what_is_derived_may_be_nowhere_that_its_origin_may_not(layers in any_layers(), bytes in prop::option::of(0..10_u64)) {
        let (allowed, confined) = with(&layers, None, &BTreeSet::new(), |verdict| (verdict.allowed, verdict.standing.confined_by));
        let (derived, shut) = reach(&layers, bytes, &confined);
        prop_assert!(derived.is_subset(&allowed));
        let origin = reach(&layers, None, &BTreeSet::new());
        // Encryption rules may bear on the origin alone; without any, the bucket is shut for both.
        prop_assert!(shut >= (origin.1 && layers.iter().flat_map(|(_, rules)| rules).all(|rule| rule.encrypt.is_none())));
    }

    #[test]
    fn what_is_not_known_yet_is_allowed_no_more_than_what_is(layers in any_layers(), bytes in 0..10_u64) {
        prop_assert!(reach(&layers, None, &BTreeSet::new()).0.is_subset(&reach(&layers, Some(bytes), &BTreeSet::new()).0));
    }

    #[test]
    fn every_forbidden_site_names_its_rules_and_the_rest_is_allowed(layers in any_layers()) {
        with(&layers, None, &BTreeSet::new(), |verdict| {
            for (site, rules) in &verdict.forbidden {
                prop_assert!(!rules.is_empty() && rules.is_subset(&verdict.standing.confined_by));
                prop_assert!(!verdict.allowed.contains(site));
            }
            prop_assert_eq!(verdict.forbidden.len() + verdict.allowed.len(), 4);
            Ok(())
        })?;
    }

    #[test]
    fn what_is_admitted_can_be_kept(layers in any_layers()) {
        let sites = sites();
        let locations = sites.locations();
        with(&layers, Some(5), &BTreeSet::new(), |verdict| {
            if !verdict.conflicts.is_empty() {
                return Ok(());
            }
            if let Some((pin, _)) = verdict.standing.pin {
                prop_assert!(verdict.allowed.iter().any(|site| pin.at.admits(locations[*site])));
            }
            if let Some((replicate, _)) = verdict.standing.replicate.filter(|(replicate, _)| replicate.importance == Importance::Must) {
                let fit = verdict.allowed.iter().filter(|site| replicate.to.admits(locations[**site])).count();
                prop_assert!(fit >= replicate.copies as usize);
            }
            prop_assert!(verdict.standing.confined_by.is_empty() || !verdict.allowed.is_empty());
            Ok(())
        })?;
    }

    #[test]
    fn the_push_rule_is_of_the_most_specific_level_and_the_safest_there(layers in any_layers()) {
        with(&layers, Some(5), &BTreeSet::new(), |verdict| {
            let labels = Labels::new();
            let object = Object { workflow: "w", origin: OUTPUT, labels: &labels, bytes: Some(5) };
            let saying = layers.iter().flat_map(|(level, rules)| rules.iter().map(move |rule| (level, rule)))
                .filter(|(_, rule)| fit(&rule.matches, &object) == Fit::Yes)
                .filter_map(|(level, rule)| Some((*level, push_safety(rule.push?))));
            let best = saying.max().map(|(_, safety)| safety);
            prop_assert_eq!(verdict.standing.push.by.map(|_| push_safety(verdict.standing.push.value)), best);
            Ok(())
        })?;
    }
}
