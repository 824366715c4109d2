//! Inputs that a site takes in: where they are said to be, and what is wrong with it.

use atoll_model::diagnostic::Diagnostic;
use atoll_model::workflow::{Given, HeldAt, Outside, Surroundings, TakenIn, Work, Workflow, parse};
use expect_test::{Expect, expect};

struct With(Given);

impl Surroundings for With {
    fn action(&self, _: &str) -> Result<Work, String> {
        Err("none".into())
    }
    fn given(&self, _: &str) -> Given {
        self.0.clone()
    }
}

fn parsed(source: &str) -> Workflow {
    parse("w", source, &With(Given::Nothing)).expect("valid")
}

#[track_caller]
fn check(source: &str, expected: Expect) {
    let diagnostics = parse("w", source, &With(Given::Nothing)).expect_err("invalid");
    let shown = |Diagnostic { place, message, help, .. }: &Diagnostic| {
        let help = help.as_ref().map(|help| format!("    = {help}\n")).unwrap_or_default();
        format!("{}:{} {message}\n{help}", place.line, place.column)
    };
    expected.assert_eq(&diagnostics.iter().map(shown).collect::<String>());
}

#[test]
fn what_was_given_for_an_input_decides_whether_it_is_taken_in() {
    let source = "workflow: w\ninputs: { data: { type: directory, default: { site: edge, path: d } } }\nsteps:\n  a:\n    \
                  foreach: ${{ files(inputs.data, '*.csv') }}\n    with: { f: \"${{ item }}\" }\n    run: 'true'\n";
    let held = parse("w", source, &With(Given::Nothing)).expect("valid");
    assert_eq!(held.steps.len(), 2);
    assert!(held.steps[0].outputs["data"].listed);
    let sent = parse("w", source, &With(Given::Value)).expect("valid");
    assert_eq!(sent.steps.len(), 1);
    assert!(sent.inputs["data"].listed && sent.inputs["data"].imported_by.is_none());
    let elsewhere = HeldAt { site: "hpc".parse().expect("valid"), path: "/scratch/d".into() };
    let elsewhere = parse("w", source, &With(Given::TakenIn(TakenIn::Held(elsewhere)))).expect("valid");
    assert_eq!(elsewhere.steps[0].work, Work::Import { source: Outside::Path("/scratch/d".into()), directory: true });
    assert_eq!(elsewhere.steps[0].site.names, ["hpc".parse().expect("valid")]);
}

#[test]
fn an_input_that_is_fetched_is_taken_in_by_a_step_of_its_own_at_any_site_or_the_named_one() {
    let source = |default: &str| {
        format!(
            "workflow: w\ninputs: {{ data: {{ type: TYPE, default: {default} }} }}\nsteps:\n  a: {{ with: {{ f: '${{{{ \
             inputs.data }}}}' }}, run: 'true' }}\n"
        )
    };
    let file = parsed(&source("{ url: https://example.org/a.csv }").replace("TYPE", "file"));
    let Work::Import { source: Outside::Url(url), directory: false } = &file.steps[0].work else {
        panic!("{:?}", file.steps[0].work)
    };
    assert_eq!(url.as_str(), "https://example.org/a.csv");
    assert!(file.steps[0].site.names.is_empty() && file.steps[0].retry.other_site);
    assert!(file.steps[0].retry.attempts > 1, "what does not come is asked for again");
    let directory = parsed(&source("{ url: s3://survey/tiles, site: hpc }").replace("TYPE", "directory"));
    assert_eq!(directory.steps[0].site.names, ["hpc".parse().expect("valid")]);
    assert!(!directory.steps[0].retry.other_site);
    check(
        &source("{ url: https://example.org/tiles }").replace("TYPE", "directory"),
        expect![[r#"
            2:11 https://example.org/tiles cannot be a directory: only a bucket has some
                = fetch an archive as a file, and unpack it in a step
        "#]],
    );
    check(
        &source("{ url: https://example.org/ }").replace("TYPE", "file"),
        expect![[r#"
        2:11 https://example.org/ does not say which file it is: it has no path
    "#]],
    );
    check(
        &source("{ url: ftp://example.org/a, path: /x }").replace("TYPE", "file"),
        expect![[r#"
        2:74 it has a `url` already: what is fetched has no `path` at the site
    "#]],
    );
    check(
        &source("{ url: ftp://example.org/a }").replace("TYPE", "file"),
        expect![[r#"
        2:47 a URL: it begins with https://, http://, s3://, gs:// or az://
    "#]],
    );
}
