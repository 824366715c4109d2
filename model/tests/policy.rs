//! Policy files: what is read, what is refused and where.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

use std::time::Duration;

use atoll_model::action::PublicKey;
use atoll_model::id::SiteName;
use atoll_model::placement::{Labels, PushMode};
use atoll_model::policy::{
    BucketUse, ByteRange, Expiry, Importance, KeepAt, Location, Route, SitePolicy, Until, parse, policy_schema,
};
use expect_test::{Expect, expect};

const WHOLE: &str = "\
attributes:
  region: { type: enum, values: [eu, us], description: where it stands }
  tier: { type: integer }
  disk: { type: bytes }
  os: { type: version }
  gpu: { type: boolean }
placement:
  - match: { workflow: 'climate-*', output: '*.nc', labels: { class: raw }, bytes: '>= 1GiB' }
    confine: { to: \"region == 'eu'\", bucket: if-encrypted }
    route: [direct, bucket]
    keep: { at: producer, for: 7d after run.end }
    push: on-success
    replicate: { copies: 2, across: region, to: \"tier <= 2 && region in ['eu', 'us']\", within: 6h, importance: should }
    pin: { at: \"site == 'juliet'\", until: run.end }
    expire: { after: 90d, then: ask }
    encrypt: { key: project }
    hold: { reason: publication }
  - match: { input: patients }
    confine: { labels: { region: eu, tier: 1 } }
  - confine: [edge, juliet]
    push: never
  - confine: { to: \"!(os < '9.2') || disk >= 4GiB && gpu == true || has(gpu)\" }
";

fn problems(source: &str, expected: &Expect) {
    let problems = parse("p.yaml", source).expect_err("the file is refused");
    let line = |problem: &atoll_model::diagnostic::Diagnostic| {
        let help = problem.help.as_ref().map(|help| format!("\n    = {help}")).unwrap_or_default();
        format!("{}:{} {}{help}\n", problem.place.line, problem.place.column, problem.message)
    };
    expected.assert_eq(&problems.iter().map(line).collect::<String>());
}

#[test]
fn every_part_of_a_rule_is_read() {
    let policy = parse("p.yaml", WHOLE).unwrap();
    let rule = &policy.rules[0];
    assert_eq!(rule.place.line, 8);
    assert_eq!(rule.matches.bytes, Some(ByteRange { least: 1 << 30, most: u64::MAX }));
    assert_eq!(rule.confine.as_ref().unwrap().bucket, BucketUse::IfEncrypted);
    assert_eq!(rule.route, Some(vec![Route::Direct, Route::Bucket]));
    assert_eq!(rule.push, Some(PushMode::OnSuccess));
    let keep = rule.keep.as_ref().unwrap();
    assert_eq!((&keep.at, keep.until), (&KeepAt::Producer, Until::AfterRun(Duration::from_secs(7 * 86_400))));
    let replicate = rule.replicate.as_ref().unwrap();
    assert_eq!((replicate.copies, replicate.across.as_str(), replicate.importance), (2, "region", Importance::Should));
    assert_eq!(rule.pin.as_ref().unwrap().until, Until::AfterRun(Duration::ZERO));
    assert_eq!(rule.expire.unwrap().then, Expiry::Ask);
    assert_eq!(rule.hold.as_ref().unwrap().reason, "publication");
    assert_eq!(policy.rules[2].confine.as_ref().unwrap().bucket, BucketUse::Forbidden);
}

#[test]
fn selectors_mean_what_they_say() {
    let policy = parse("p.yaml", WHOLE).unwrap();
    let admits = |rule: usize, name: &str, labels: &[(&str, &str)]| {
        let name: SiteName = name.parse().unwrap();
        let labels: Labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        policy.rules[rule].confine.as_ref().unwrap().to.admits(Location { name: &name, labels: &labels })
    };
    assert!(admits(0, "a", &[("region", "eu")]));
    assert!(!admits(0, "a", &[("region", "us")]));
    assert!(!admits(0, "a", &[("region", "EU")]), "what is no value of the attribute is unknown");
    assert!(!admits(0, "a", &[]));
    assert!(admits(1, "a", &[("region", "eu"), ("tier", "1")]));
    assert!(!admits(1, "a", &[("region", "eu"), ("tier", "2")]));
    assert!(admits(2, "juliet", &[]));
    assert!(!admits(2, "hpc", &[]));
    assert!(admits(3, "a", &[("os", "10.0")]), "versions are compared by their numbers");
    assert!(admits(3, "a", &[("os", "9.2.0")]));
    assert!(!admits(3, "a", &[("os", "9.1.9")]));
    assert!(!admits(3, "a", &[("disk", "8GiB")]), "`&&` binds closer than `||`");
    assert!(admits(3, "a", &[("gpu", "false")]));
}

#[test]
fn what_is_unknown_is_refused_where_it_stands() {
    problems(
        "attributes:\n  region: { type: enum, values: [eu, us] }\n  tier: { type: integer }\n  size: { type: float }\n  os: { type: enum }\nplacement:\n  \
         - confine: \"regoin == 'eu'\"\n  - confine: \"region == 'EU'\"\n  - confine: \"region < 'eu'\"\n  \
         - confine: { labels: { region: asia } }\n  - confine: { labels: { zone: a } }\n  - confine: { to: \"tier <= many\" }\n  \
         - confine: { to: \"(tier <= 2\" }\n  - confine: \"tier = 2\"\n  - confine: \"tier == 2 region == 'eu'\"\n  - confine: []\n",
        &expect![[r#"
            4:17 the type of an attribute cannot be `float`
                = known: `enum`, `integer`, `bytes`, `version`, `boolean`
            5:15 an enum needs its `values`
            7:15 no attribute `regoin` is declared
                = did you mean `region`?
            8:25 `region` cannot be `EU`
                = did you mean `eu`?
            9:22 `region` has no order: it is one of eu, us
                = compare it with `==`, `!=` or `in`
            10:34 `region` cannot be `asia`
                = known: `eu`, `us`
            11:26 no attribute `zone` is declared
                = known: `site`, `region`, `tier`
            12:20 `tier` cannot be `many`
                = it is an integer
            13:20 `)` is missing at the end
            14:20 `=` means nothing here
                = write `==`
            15:25 nothing is expected here
                = join comparisons with `&&` or `||`
            16:14 it selects nothing
        "#]],
    );
}

#[test]
fn what_makes_no_sense_is_refused_where_it_stands() {
    problems(
        "placement:\n  - match: { bytes: 'big' }\n    push: sometimes\n  - match: { bytes: '< 0' }\n    route: [bucket, bucket, mail]\n  \
         - match: { input: a, step: b }\n    replicate: { copies: 0, across: planet }\n  - {}\n  - keep: { for: 7 days }\n  \
         - pin: { at: edge }\n  - confine: { bucket: open }\n  - confine: edge\n    push: eager\n  - expire: { then: burn, after: 1d }\n  \
         - encrypt: { key: mine }\n  - hold: {}\n  - mirror: yes\n  \
         - expire: { after: 1d, then: archive }\n",
        &expect![[r#"
            2:21 `bytes`: `big` is no range of sizes: write `>= 1GiB`, `< 4MiB` or `1MiB..1GiB`
            3:11 `push` cannot be `sometimes`
                = known: `when-needed`, `eager`, `on-success`, `never`
            4:21 `bytes`: nothing has `< 0` bytes
            5:21 `bucket` is named twice
            5:29 there is no route `mail`
                = known: `direct`, `bucket`
            6:21 a rule matches an input, or the outputs of steps, not both
                = make it two rules
            7:26 `copies` is a number from 1 to 64, not `0`
            7:37 no attribute `planet` is declared
                = known: `site`
            8:5 the rule says nothing
                = add `confine: { to: … }`, `push: never` or the like
            9:18 `for`: `7 days` is no time: write `7d after run.end`, `run.end` or `forever`
            10:10 `pin` needs `until`
            11:14 `confine` needs `to`
            11:24 `bucket` cannot be `open`
                = known: `allowed`, `if-encrypted`, `forbidden`
            13:11 the rule keeps out of the bucket what it pushes there
                = leave `push` out, or allow the `bucket` where it confines
            14:21 `then` cannot be `burn`
                = known: `delete`, `ask`
            15:21 `key` cannot be `mine`
                = known: `project`
            16:11 `hold` needs `reason`
            17:5 a rule has no field `mirror`
                = known: `match`, `confine`, `route`, `push`, `replicate`, `keep`, `pin`, `expire`, `encrypt`, `hold`
            17:5 the rule says nothing
                = add `confine: { to: … }`, `push: never` or the like
            18:32 there is no archive that Atoll could bring it to
                = publish the output where it is to stay, and write `delete`; or `ask`, and decide then
        "#]],
    );
}

#[test]
fn rules_overlap_unless_their_forms_say_that_they_are_about_different_data() {
    let matches = |text: &str| parse("p.yaml", &format!("placement:\n  - match: {text}\n    push: never\n")).unwrap();
    let overlap = |one: &str, other: &str| {
        let (one, other) = (matches(one), matches(other));
        let (one, other) = (&one.rules[0].matches, &other.rules[0].matches);
        assert_eq!(one.may_overlap(other), other.may_overlap(one));
        one.may_overlap(other)
    };
    for (one, other) in [
        ("{}", "{ workflow: climate, step: a }"),
        ("{ workflow: 'climate-*' }", "{ workflow: climate-eu, output: f }"),
        ("{ step: '*a' }", "{ step: 'a*' }"),
        ("{ labels: { class: raw } }", "{ labels: { level: 1 } }"),
        ("{ bytes: '>= 1GiB' }", "{ bytes: '1KiB..2GiB' }"),
    ] {
        assert!(overlap(one, other), "{one} and {other}");
    }
    for (one, other) in [
        ("{ workflow: climate }", "{ workflow: weather }"),
        ("{ workflow: 'climate-*' }", "{ workflow: weather }"),
        ("{ input: a }", "{ output: a }"),
        ("{ labels: { class: raw } }", "{ labels: { class: fine } }"),
        ("{ bytes: '>= 1GiB' }", "{ bytes: '< 1GiB' }"),
    ] {
        assert!(!overlap(one, other), "{one} and {other}");
    }
}

#[test]
fn a_selector_nested_beyond_reason_is_refused() {
    let deep = format!("placement:\n  - confine: \"{}site == 'a'{}\"\n", "(".repeat(5000), ")".repeat(5000));
    let problems = parse("p.yaml", &deep).unwrap_err();
    assert_eq!(problems[0].message, "this is nested more than 32 deep");
}

#[test]
fn the_hash_is_of_what_the_rules_say_not_of_how_they_are_written() {
    let hash = |source: &str| parse("p.yaml", source).unwrap().hash();
    let first = hash("placement:\n  - push: never\n");
    assert_eq!(first, hash("# one rule\nplacement: [{ push: never }]\n"));
    assert_ne!(first, hash("placement:\n  - push: eager\n"));
}

#[test]
fn the_schema_admits_what_the_parser_admits() {
    let schema = jsonschema::validator_for(&policy_schema()).unwrap();
    assert!(schema.is_valid(&atoll_model::yaml_to_json(WHOLE).unwrap()));
    for refused in
        ["placement:\n  - {}\n", "placement:\n  - push: sometimes\n", "placement:\n  - mirror: yes\n", "{}\n"]
    {
        assert!(parse("p.yaml", refused).is_err());
        assert!(!schema.is_valid(&atoll_model::yaml_to_json(refused).unwrap()), "{refused}");
    }
}

#[test]
fn a_site_names_the_keys_that_it_trusts() {
    let key = PublicKey::from_bytes([1; 32]);
    let policy = SitePolicy::parse(
        "site.yaml",
        &format!("keys: {{ release: \"{key}\" }}\nrun:\n  - allow: {{ signed_by: [release] }}\n  - refuse: {{}}\n"),
    );
    let rule = &policy.expect("a valid policy").run[0];
    assert_eq!((rule.matches.signed_by[0].name.as_str(), rule.matches.signed_by[0].key), ("release", key));
    let broken = format!(
        "keys: {{ release: \"{key}\", other: ssh-ed25519 }}\nrun:\n  - allow: {{ signed_by: relaese }}\n  \
         - allow: {{ signed_by: [] }}\nleave:\n  - allow: {{ signed_by: release }}\n"
    );
    let diagnostics = SitePolicy::parse("site.yaml", &broken).expect_err("an invalid policy");
    let lines: Vec<String> = diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect();
    expect![[r#"
        site.yaml:1:80: a key: "ssh-ed25519" is no public key: `atoll action key show FILE` prints one (ed25519:…)
        site.yaml:3:25: there is no key `relaese` (did you mean `release`?)
        site.yaml:6:14: what a rule matches has no field `signed_by` (known: `workflow`, `step`, `output`, `work`, `path`, `to`)
    "#]]
    .assert_eq(&lines.concat());
}
