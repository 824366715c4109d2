//! Outputs that are published: where, by which step, and what is wrong with it.

use std::collections::BTreeMap;

use atoll_model::diagnostic::Diagnostic;
use atoll_model::id::StepIndex;
use atoll_model::workflow::{Outside, SiteFacts, Surroundings, Work, Workflow, check_sites, parse};
use expect_test::{Expect, expect};

struct Nothing;

impl Surroundings for Nothing {
    fn action(&self, _: &str) -> Result<Work, String> {
        Err("none".into())
    }
}

const STEPS: &str = "workflow: w\nsteps:\n  a:\n    site: edge\n    run: 'true'\n    outputs: { map: file, tiles: \
                     directory, n: integer }\n  each:\n    foreach: [1, 2]\n    run: 'true'\n    outputs: { part: file }\n";

fn source(outputs: &str) -> String {
    format!("{STEPS}outputs:\n{outputs}\n")
}

fn parsed(outputs: &str) -> Workflow {
    parse("w", &source(outputs), &Nothing).expect("valid")
}

fn shown(diagnostics: &[Diagnostic]) -> String {
    let shown = |Diagnostic { place, message, help, .. }: &Diagnostic| {
        let help = help.as_ref().map(|help| format!("    = {help}\n")).unwrap_or_default();
        format!("{}:{} {message}\n{help}", place.line, place.column)
    };
    diagnostics.iter().map(shown).collect()
}

#[track_caller]
fn check(outputs: &str, expected: Expect) {
    expected.assert_eq(&shown(&parse("w", &source(outputs), &Nothing).expect_err("invalid")));
}

#[test]
fn an_output_is_published_by_a_step_after_all_others_that_reads_it() {
    let workflow = parsed(
        "  n: ${{ steps.a.outputs.n }}\n  map: { value: \"${{ steps.a.outputs.map }}\", publish: { site: hpc, path: \
         /data/maps/map.tif, overwrite: true } }\n  tiles: { value: \"${{ steps.a.outputs.tiles }}\", publish: { url: \
         \"s3://survey/tiles/\" } }",
    );
    assert_eq!(workflow.outputs.keys().collect::<Vec<_>>(), ["n", "map", "tiles"], "they are outputs as ever");
    let [_, _, map, tiles] = &workflow.steps[..] else { panic!("four steps: {:?}", workflow.steps) };
    assert_eq!((map.name.as_str(), map.index), ("outputs.map", StepIndex(2)));
    assert_eq!(map.work, Work::Export { target: Outside::Path("/data/maps/map.tif".into()), overwrite: true });
    assert_eq!(map.site.names, ["hpc".parse().expect("valid")]);
    assert_eq!((&map.needs[..], &map.bindings["map"]), (&[StepIndex(0)][..], &workflow.outputs["map"]));
    assert_eq!(tiles.published_url().map(|url| url.as_str()), Some("s3://survey/tiles/"));
    assert!(tiles.site.names.is_empty() && tiles.retry.other_site && tiles.retry.attempts > 1);
}

#[test]
fn a_workflow_that_publishes_what_it_is_given_needs_no_step_of_its_own() {
    let outputs = "outputs: { data: { value: \"${{ inputs.data }}\", publish: { site: hpc, path: /data/x } } }\n";
    let given = format!("workflow: w\ninputs: {{ data: file }}\n{outputs}");
    assert_eq!(parse("w", &given, &Nothing).expect("valid").steps.len(), 1);
    let held =
        format!("workflow: w\ninputs: {{ data: {{ type: file, default: {{ site: edge, path: x }} }} }}\n{outputs}");
    let held = parse("w", &held, &Nothing).expect("valid");
    assert_eq!(held.steps[1].needs, [held.steps[0].index], "it waits for what takes it in");
}

#[test]
fn an_object_without_a_place_for_it_is_a_value_of_the_run() {
    let workflow = parsed("  all: { value: \"${{ steps.a.outputs.n }}\", unit: m }");
    assert_eq!(workflow.steps.len(), 2);
}

#[test]
fn what_cannot_be_published_is_refused_where_it_stands() {
    check(
        "  n: { value: \"${{ steps.a.outputs.n }}\", publish: { site: hpc, path: /data/n } }\n  parts: { value: \"${{ \
         steps.each.outputs.part }}\", publish: { site: hpc, path: /data/parts } }\n  none: { publish: { site: hpc, path: \
         /data/none } }\n  text: { value: hello, publish: { site: hpc, path: /data/text } }",
        expect![[r#"
            12:16 `n` is an integer; only a file or a directory is published
            13:20 `parts` is a list (each element a file); only a file or a directory is published
                = gather them in a directory, in a step
            14:9 an output that is published needs its `value`
                = write `none: { value: ${{ … }}, publish: … }`
            15:18 `text` is a string; only a file or a directory is published
        "#]],
    );
}

#[test]
fn where_nothing_can_be_published_is_refused_where_it_stands() {
    let places = [
        "{ path: /data/x }",
        "{ site: hpc }",
        "{ site: hpc, path: data/x }",
        "{ site: hpc, path: /data/../etc/x }",
        "{ site: hpc, path: /data/x/ }",
        "{ site: hpc, path: \"/data/${{ inputs.day }}\" }",
        "{ site: hpc, path: /data/x, url: s3://survey/x }",
        "{ url: https://example.org/x }",
        "{ url: s3://survey/tiles/ }",
        "{ url: s3://survey/../x }",
        "{ url: s3://survey/x, site: HPC }",
        "{ url: s3://survey/x, overwrite: always }",
        "{ url: s3://survey/x, replace: true }",
    ];
    let lines = places.iter().enumerate();
    let lines = lines.map(|(number, place)| {
        format!("  o{number}: {{ value: \"${{{{ steps.a.outputs.map }}}}\", publish: {place} }}")
    });
    check(
        &lines.collect::<Vec<_>>().join("\n"),
        expect![[r#"
        12:55 it needs the `site` whose path it is
        13:55 it needs a `path` or a `url`
            = write `publish: { site: hpc, path: /data/map.tif }` or `publish: { url: s3://bucket/map.tif }`
        14:74 a path: it begins with `/`
        15:74 a path: its parts are names: none is empty, `.` or `..`
        16:55 /data/x/ does not say what the file is to be called
        17:74 a path: no expression stands in it: it is known before the run
        18:88 it has a `path` already: it is published at one place
        19:62 a URL: only a bucket is published to: s3://BUCKET/KEY, gs://BUCKET/KEY or az://CONTAINER/KEY
        20:55 s3://survey/tiles/ does not say what the file is to be called
        21:62 a URL: its parts are names: none is empty, `.` or `..`
        22:84 a site: "HPC" is not a site name (a to z, 0 to 9 and -, beginning with a letter, at most 63 characters)
        23:89 `overwrite` is true or false, not `always`
        24:78 where an output is published has no field `replace`
            = known: `site`, `path`, `url`, `overwrite`
    "#]],
    );
}

#[test]
fn confined_data_is_published_neither_elsewhere_nor_outside_of_all_sites() {
    let site = |name: &str| SiteFacts {
        name: name.parse().expect("a name"),
        labels: BTreeMap::new(),
        capacity: None,
        runtimes: Vec::new(),
    };
    let sites = ["edge", "hpc"].map(site);
    let found = |publish: &str| {
        let text = source(&format!("  map: {{ value: \"${{{{ steps.a.outputs.map }}}}\", publish: {publish} }}"));
        let text = format!("{text}placement:\n  - match: {{ step: a }}\n    confine: edge\n");
        shown(&check_sites(&parse("w", &text, &Nothing).expect("valid"), "w", &sites))
    };
    assert_eq!(found("{ site: edge, path: /data/map }"), "");
    expect![[r#"
        12:56 step `outputs.map` reads data that may not leave `edge`, and runs elsewhere
            = placement rule 1 (line 14) confines it; the step is placed at `hpc`
    "#]]
    .assert_eq(&found("{ site: hpc, path: /data/map }"));
    expect![[r#"
        12:56 step `outputs.map` publishes confined data at s3://survey/map, outside of all sites
            = placement rule 1 (line 14) confines it
    "#]]
    .assert_eq(&found("{ site: edge, url: s3://survey/map }"));
}
