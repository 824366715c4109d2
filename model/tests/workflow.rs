//! What a workflow file may say, and how it is told what is wrong with it.

mod samples;

use std::collections::BTreeMap;

use atoll_model::action;
use atoll_model::diagnostic::Diagnostic;
use atoll_model::expression::Form;
use atoll_model::id::StepIndex;
use atoll_model::placement::PushMode;
use atoll_model::resources::Capacity;
use atoll_model::value::{Type, Value};
use atoll_model::workflow::{
    OnDisconnect, Outside, SiteFacts, StartMode, Surroundings, Work, Workflow, check_sites, parse,
};
use expect_test::{Expect, expect};

const EVERYTHING: &str = include_str!("samples/everything.yaml");
const EARTHQUAKES: &str = include_str!("../../examples/earthquakes/workflow.yaml");
const CLEAN: &str = include_str!("samples/clean.action.yaml");

struct Actions;

impl Surroundings for Actions {
    fn action(&self, reference: &str) -> Result<Work, String> {
        match reference {
            "clean@1.2" | "./clean" => Ok(action::parse("action.yaml", CLEAN).expect("valid").into_work(None, 0)),
            _ => Err(format!("there is no action `{reference}`")),
        }
    }
}

fn parsed(source: &str) -> Workflow {
    match parse("workflow.yaml", source, &Actions) {
        Ok(workflow) => workflow,
        Err(diagnostics) => panic!("{}", shown(&diagnostics)),
    }
}

fn shown(diagnostics: &[Diagnostic]) -> String {
    let mut text = String::new();
    for Diagnostic { place, message, help, .. } in diagnostics {
        text.push_str(&format!("{}:{} {message}\n", place.line, place.column));
        if let Some(help) = help {
            text.push_str(&format!("    = {help}\n"));
        }
    }
    text
}

#[track_caller]
fn check(source: &str, expected: Expect) {
    let diagnostics = match parse("workflow.yaml", source, &Actions) {
        Ok(_) => Vec::new(),
        Err(diagnostics) => diagnostics,
    };
    expected.assert_eq(&shown(&diagnostics));
}

/// Checks the steps of a workflow that has nothing else.
#[track_caller]
fn check_steps(steps: &str, expected: Expect) {
    check(&format!("workflow: w\nsteps:\n{steps}"), expected);
}

#[test]
fn the_sample_of_the_contract_parses() {
    let workflow = parsed(samples::contract());
    assert_eq!(workflow.steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["make", "join", "check"]);
    let [make, join, check] = &workflow.steps[..] else { panic!("three steps") };
    assert_eq!(make.foreach.as_ref().map(|foreach| foreach.form.clone()), Some(Form::Input("words".into())));
    assert_eq!(make.bindings["word"].form, Form::Item);
    assert_eq!(make.outputs["length"].r#type, Type::Integer);
    assert_eq!(join.needs, [StepIndex(0)]);
    assert_eq!(join.bindings["texts"].form, Form::Output { step: StepIndex(0), output: "text".into() });
    assert_eq!(join.bindings["texts"].r#type, Type::List(Some(Box::new(Type::File))));
    assert_eq!(check.retry.attempts, 2);
    assert_eq!(check.resources.memory_bytes, Some(64 << 20));
    assert!(matches!(check.when.as_ref().expect("given").form, Form::Cel(_)));
    assert_eq!(workflow.outputs["lines"].r#type, Type::Integer);
}

#[test]
fn the_example_parses_and_takes_its_input_in_where_it_is_held() {
    let workflow = parsed(EARTHQUAKES);
    let import = &workflow.steps[0];
    assert_eq!(import.name, "inputs.catalogue");
    assert_eq!(import.work, Work::Import { source: Outside::Path("catalogue.csv".into()), directory: false });
    assert_eq!(workflow.inputs["catalogue"].imported_by, Some(StepIndex(0)));
    let clean = &workflow.steps[1];
    assert_eq!(clean.bindings["catalogue"].form, Form::Output { step: StepIndex(0), output: "catalogue".into() });
    assert_eq!(clean.needs, [StepIndex(0)]);
    let split = workflow.steps.iter().find(|step| step.name == "split").expect("there");
    assert!(split.outputs["regions"].listed, "files() asks for its listing");
    assert_eq!(workflow.requires, ["python3"]);
}

#[test]
fn everything_that_a_file_may_say_is_taken_in() {
    let workflow = parsed(EVERYTHING);
    let step = |name: &str| workflow.steps.iter().find(|step| step.name == name).expect("there");
    let clean = step("clean");
    let Work::Action(action) = &clean.work else { panic!("an action") };
    assert_eq!(action.command, ["./clean.sh", "--fast"]);
    assert_eq!(clean.bindings["strict"].form, Form::Literal(Value::Boolean(true)), "a default of the action");
    assert_eq!(
        clean.bindings["factor"].form,
        Form::Literal(Value::Number(2.0)),
        "an integer where a number is asked for"
    );
    assert_eq!(clean.resources.cpu_millis, 500, "the action's, for the step says nothing");
    assert_eq!(clean.start, StartMode::AtMostOnce);
    assert_eq!(clean.on_disconnect, OnDisconnect::Stop);
    assert!(clean.retry.other_site);
    let model = step("model");
    assert_eq!(model.site.labels, BTreeMap::from([("tier".to_owned(), "hpc".to_owned())]));
    assert_eq!(model.environment["OMP_NUM_THREADS"], "4");
    assert!(model.outputs["warnings"].optional);
    assert!(matches!(model.bindings["title"].form, Form::Template(_)));
    assert!(matches!(model.bindings["options"].form, Form::Object(_)));
    let last = step("last");
    assert_eq!(last.needs.len(), 2, "one by reading, one by `after`");
    assert_eq!(step("nothing").work, Work::Null);
    assert_eq!(workflow.placement[0].said.push, Some(PushMode::Never));
    assert!(workflow.placement[1].matches.covers_output("clean", "table"));
    assert!(workflow.placement[1].confine.is_some());
}

#[test]
fn broken_yaml_is_shown_at_its_place() {
    check(
        "",
        expect![[r#"
        1:1 the file is empty
    "#]],
    );
    check(
        "workflow: w\n  steps: x\n",
        expect![[r#"
        2:8 this is no valid YAML: mapping values are not allowed in this context
    "#]],
    );
    check(
        "steps: { a: { with: { x: ${{ item }} } } }",
        expect![[r#"
        1:27 this is no valid YAML: while parsing a flow mapping, did not find expected ',' or '}'
            = put quotes around an expression that stands inside braces or brackets or holds `: ` or ` #`: "${{ … }}"
    "#]],
    );
    check(
        "workflow: w\nsteps:\n  a:\n    when: ${{ true ? a : b }}\n",
        expect![[r#"
        4:24 this is no valid YAML: mapping values are not allowed in this context
            = put quotes around an expression that stands inside braces or brackets or holds `: ` or ` #`: "${{ … }}"
    "#]],
    );
    check(
        "workflow: w\nworkflow: v\nsteps: { a: { run: x, run: y } }\n",
        expect![[r#"
        2:1 `workflow` is given twice
            = it stands already in line 1
        3:23 `run` is given twice
            = it stands already in line 3
    "#]],
    );
    check(
        "a: &a [*a]",
        expect![[r#"
        1:8 this alias refers to the value that it stands in
    "#]],
    );
    check(
        "a: !!str x",
        expect![[r#"
        1:4 tags have no meaning here
            = write the value without its `!` tag
    "#]],
    );
    check(
        "workflow: w\n---\nworkflow: v\n",
        expect![[r#"
        2:1 a second document begins here
            = write one document to a file
    "#]],
    );
    check(
        "steps:\n\ta: 1\n",
        expect![[r#"
        2:2 this is no valid YAML: tabs disallowed within this context (block indentation)
            = indent with spaces; YAML allows no tabs there
    "#]],
    );
    check(
        "- a\n",
        expect![[r#"
        1:1 a workflow is a mapping, not a list
            = write `name: value` pairs, one to a line
        1:1 a workflow needs a name
            = write `workflow: my-name` in the first line
        1:1 a workflow needs `steps`
            = write `steps:` and below it a step by its name, with `run:` or `action:`
    "#]],
    );
    check(
        "[a, b]: c\n",
        expect![[r#"
        1:1 a key must be a plain text
            = an unquoted expression inside braces needs quotes: "${{ … }}"
    "#]],
    );
}

#[test]
fn unknown_fields_are_errors_with_a_suggestion() {
    check(
        "worklow: w\nstep: {}\n",
        expect![[r#"
        1:1 a workflow has no field `worklow`
            = did you mean `workflow`?
        1:1 a workflow needs a name
            = write `workflow: my-name` in the first line
        1:1 a workflow needs `steps`
            = write `steps:` and below it a step by its name, with `run:` or `action:`
        2:1 a workflow has no field `step`
            = did you mean `steps`?
    "#]],
    );
    check_steps(
        "  a: { runn: x, resources: { memmory: 1GiB, cpus: 1 } }\n",
        expect![[r#"
            3:3 step `a` says nothing of what it does
                = write `run:` with a shell script, `command:` with a program, or `action:` with an action
            3:8 a step has no field `runn`
                = did you mean `run`?
            3:30 `resources` has no field `memmory`
                = did you mean `memory`?
            3:45 `resources` has no field `cpus`
                = did you mean `cpu`?
        "#]],
    );
    check(
        "workflow: w\ninputs: { a: { typ: file } }\nsteps: { a: { run: x } }\n",
        expect![[r#"
        2:14 an input needs a `type`
            = one of string, integer, number, boolean, list, object, file, directory, enum, or `list of file` and the like
        2:16 an input has no field `typ`
            = did you mean `type`?
    "#]],
    );
}

#[test]
fn unknown_references_are_shown_inside_the_line() {
    check(
        "workflow: w\ninputs: { words: list }\nsteps:\n  make:\n    run: x\n    outputs: { text: file }\n  join:\n    when: ${{ \
         inputs.wrods.size() > 0 && steps.mak.outputs.text.size > 0 }}\n    with:\n      a: ${{ steps.make.outputs.txt }}\n      \
         b: \"one ${{ inputs.no }} and ${{ item }}\"\n      c: ${{ wrods }}\n      d: ${{ steps.make.text }}\n      e: ${{ sise(inputs.words) }}\n    run: x\noutputs:\n  \
         x: ${{ steps.join.outputs.y }}\n  y: ${{ item }}\n",
        expect![[r#"
            8:15 the workflow has no input `wrods`
                = did you mean `words`?
            8:42 there is no step `mak`
                = did you mean `make`?
            10:25 step `make` has no output `txt`
                = did you mean `steps.make.outputs.text`?
            11:19 the workflow has no input `no`
                = known: `words`
            11:40 there is no `item` here: the step does not fan out
                = add `foreach: ${{ … }}` to the step
            12:14 there is nothing called `wrods` here
                = known: `inputs`, `steps`, `item`, `index`
            13:14 `steps.make` is followed by one of its outputs
                = write `steps.make.outputs.name`; a name with a `-` in it is written `steps['a-b']`
            14:14 there is no function `sise`
                = did you mean `size`?
            17:21 step `join` has no output `y`
                = it declares none; add `outputs: { y: file }` to it
            18:10 there is no `item` here: the step does not fan out
                = add `foreach: ${{ … }}` to the step
        "#]],
    );
}

#[test]
fn expressions_that_cannot_be_read_are_shown_at_their_place() {
    check_steps(
        "  a:\n    with:\n      a: ${{ 1 + }}\n      b: ${{ 1 = 2 }}\n      c: ${{ (1 }}\n      d: ${{ }}\n      e: ${{ 'a' \n      f: ${{ \
         1u }}\n      g: ${{ x.map(1, 2) }}\n      h: ${{ size() }}\n      i: ${{ 'a'.matches('(') }}\n    run: x\n",
        expect![[r#"
            5:18 the expression cannot be read: found its end expecting expression
            6:16 the expression cannot be read: found '=' expecting its end
                = compare with `==`
            7:17 the expression cannot be read: expected ')'
            8:10 the expression is empty
                = write something like `${{ inputs.name }}`
            9:10 this expression has no end
                = an expression ends with `}}`
            10:14 there are no unsigned numbers here
                = leave out the `u`
            11:20 the expression cannot be read: argument must be a simple name
            12:14 `size` takes 1 argument, not 0
            13:25 "(" is no regular expression: unclosed group
        "#]],
    );
}

#[test]
fn types_are_checked_before_a_run_is_accepted() {
    check(
        "workflow: w\ninputs: { n: integer, s: string, d: directory, l: list of file }\nsteps:\n  \
         a: { run: x, foreach: \"${{ inputs.n }}\", outputs: { t: file } }\n  b: { run: x, foreach: \"${{ inputs.d }}\" }\n  \
         c: { run: x, when: \"${{ inputs.n }}\" }\n  d: { run: x, when: \"${{ inputs.l }}\" }\n  \
         e: { action: ./clean, with: { csv: \"${{ steps.a.outputs.t }}\", factor: \"${{ inputs.s }}\" } }\n  \
         f: { action: ./clean, with: { csv: \"${{ inputs.d }}\", factor: fast, tabel: 1 } }\n  \
         g: { action: ./clean }\n  \
         h: { run: x, with: { a: \"${{ inputs.n + 1.5 }}\", b: \"${{ inputs.l + 'x' }}\", c: \"${{ inputs.l.name }}\", d: \"x ${{ inputs.d }}\" } }\n",
        expect![[r#"
            4:26 `foreach`: expected a list, found an integer
                = write `range(…)` for the numbers below it
            5:26 `foreach`: expected a list, found a directory
                = list its files: `files(…, "*")`
            6:23 `when`: expected a boolean (true or false), found an integer
                = compare it: `… > 0`
            7:23 `when`: expected a boolean (true or false), found a list (each element a file)
                = compare its size: `….size() > 0`
            8:39 `csv`: expected a file, found a list (each element a file)
                = a step that fans out gives a list; take one element with `[0]`, or add `foreach:`
            8:75 `factor`: expected a number, found a string
            9:39 `csv`: expected a file, found a directory
            9:65 `factor`: expected a number, found the text "fast"
            9:71 the action `clean` has no input `tabel`
                = known: `csv`, `factor`, `strict`
            10:3 the action `clean` needs the input `csv`, a file
                = add `csv: …` under `with:`
            10:3 the action `clean` needs the input `factor`, a number
                = add `factor: …` under `with:`
            11:41 `+` needs two integers, two numbers, two strings or two lists (convert with `double(…)`, `string(…)`), not an integer and a number
            11:69 `+` needs two integers, two numbers, two strings or two lists (convert with `double(…)`, `string(…)`), not a list (each element a file) and a string
            11:96 a list (each element a file) has no field `name`
                = take it of each element: `.map(x, x.name)`
            11:113 a directory has no text that could be put into a string
                = hand it over as an input of its own
        "#]],
    );
}

#[test]
fn a_cycle_is_shown_with_its_path() {
    check_steps(
        "  a: { run: x, with: { i: \"${{ steps.c.outputs.o }}\" }, outputs: { o: file } }\n  \
           b: { run: x, with: { i: \"${{ steps.a.outputs.o }}\" }, outputs: { o: file } }\n  \
           c: { run: x, with: { i: \"${{ steps.b.outputs.o }}\" }, outputs: { o: file } }\n  \
           d: { run: x, after: d }\n  e: { run: x, after: [a] }\n",
        expect![[r#"
            3:3 these steps need each other: `a` needs `c` needs `b` needs `a`
                = no step can be the first of them; take one of the references out
            6:3 step `d` needs itself
        "#]],
    );
}

#[test]
fn what_a_step_says_is_checked() {
    check_steps(
        "  a: {}\n  b: { run: x, action: y }\n  c: { run: x, executor: null }\n  d: { run: x, executor: slurm }\n  \
           e: { run: 'echo ${{ inputs.x }}' }\n  f: { run: x, retry: { attempts: 0, backoff: 5 }, resources: { cpu: none, memory: 5 apples, time: 5 } }\n  \
           g: { run: x, start: once, on_disconnect: fnish, env: { ATOLL_X: 1, A: \"${{ item }}\" } }\n  \
           h: { run: x, with: { a-b: 1, PATH: 2 }, outputs: { f: fil, g: { optional: yes } } }\n  \
           9: { run: x, after: [hh] }\n  i: { action: ./other }\n  j: { run: x, with: { t: \"${{ steps.i.outputs.anything }}\" } }\n  \
           k: { run: x, foreach: [1], when: \"${{ item > 0 }}\" }\n  l: { action: ./clean, with: { csv: 1 }, outputs: { a: file } }\n",
        expect![[r#"
            3:3 step `a` says nothing of what it does
                = write `run:` with a shell script, `command:` with a program, or `action:` with an action
            4:13 a step has `run` or `action`, not both
            5:13 a step with `executor: null` does nothing: it has neither `run` nor `action`
            6:26 an executor cannot be `slurm`
                = known: `local`, `null`
            7:13 a script has no expressions in it
                = hand it over under `with:`, and read it as an environment variable: "$name"
            8:35 the number of attempts is a number from 1 to 100, not `0`
            8:47 `backoff`: `5` is not a duration: write `250ms`, `30s`, `5m`, `1h30m` or `2d`
            8:70 `cpu`: `none` is not a number of CPUs: write `2`, `0.5` or `500m`, at least one thousandth
            8:84 `memory`: `5 apples` is not a size: write `512MiB`, `10GB` or a number of bytes
            8:100 `time`: `5` is not a duration: write `250ms`, `30s`, `5m`, `1h30m` or `2d`
            9:23 `start` cannot be `once`
                = known: `at-least-once`, `at-most-once`
            9:44 `on_disconnect` cannot be `fnish`
                = did you mean `finish`?
            9:58 `ATOLL_X` cannot be set under `env`
            9:73 `env` holds plain texts
                = values that are computed are handed over under `with:`
            10:24 `a-b` cannot be the name of an input
                = a to z, A to Z, 0 to 9, `_`; it begins with a letter and has at most 63 characters
            10:32 `PATH` cannot be the name of an input
                = it becomes an environment variable, and this one has a meaning already
            10:57 there is no type `fil`
                = did you mean `file`?
            10:65 an output needs a `type`
                = one of string, integer, number, boolean, list, object, file, directory, enum, or `list of file` and the like
            10:77 `optional` is true or false, not `yes`
            11:3 `9` cannot be the name of a step
                = a to z, A to Z, 0 to 9, `_`, `-`; it begins with a letter and has at most 63 characters
            11:24 there is no step `hh`
                = known: `9`, `a`, `b`, `c`, `d`, `e`, `f`, `g`, `h`, `i`, `j`, `k`, `l`
            12:16 there is no action `./other`
            14:41 `when` decides about the whole step, before it fans out
                = leave elements out in `foreach`: `list.filter(x, …)`
            15:31 the action `clean` needs the input `factor`, a number
                = add `factor: …` under `with:`
            15:38 `csv`: expected a file, found the number 1
            15:52 the outputs of the action `clean` are its own
                = leave `outputs` out: the action declares them
        "#]],
    );
}

#[test]
fn how_long_results_are_taken_is_checked() {
    check_steps(
        "  a: { run: x, cache: 5 }\n  b: { run: x, cache: 2000d }\n  c: { run: x, cache: 1d, start: at-most-once }\n  \
           d: { run: x, cache: 30d }\n",
        expect![[r#"
            3:23 `cache`: `5` is not a duration: write `250ms`, `30s`, `5m`, `1h30m` or `2d`
            4:23 `cache` is a time of at most 366 days, such as 30d
            5:23 `cache` goes with `start: at-least-once` only
                = leave out one of both: what must not start twice does more than make its outputs
        "#]],
    );
}

#[test]
fn what_an_input_says_is_checked() {
    check(
        "workflow: w\ninputs:\n  a: { type: integer, default: x }\n  b: { type: enum }\n  c: { type: enum, values: [x, y], default: z }\n  \
         d: { type: string, default: 1.2 }\n  e: { type: file, default: x.csv }\n  f: { type: file, default: { site: Edge, path: '' } }\n  \
         g: { type: list, of: integer, default: [1, two] }\n  h: {}\n  i: int\n  j: { type: integer, values: [1] }\n  k: { type: list of lists }\nsteps: { a: { run: x } }\n",
        expect![[r#"
            3:32 the default of `a`: expected an integer, found the text "x"
            4:14 an enum needs its `values`
                = write `{ type: enum, values: [a, b] }`
            5:45 the default of `c`: expected one of x, y, found the text "z"
            6:31 the default of `d`: expected a string, found the number 1.2
                = put it in quotes: "1.2"
            7:29 the default of a file or directory cannot be `x.csv`
                = write where it is held, `default: { site: edge, path: data/x.csv }`, or fetched from, `default: { url: https://example.org/x.csv }`; or leave it out, and send one with `-i NAME=@PATH`
            8:37 a site: "Edge" is not a site name (a to z, 0 to 9 and -, beginning with a letter, at most 63 characters)
            8:49 "" cannot be a path
            9:42 the default of `g`: at [1]: expected an integer, found the text "two"
            10:6 an input needs a `type`
                = one of string, integer, number, boolean, list, object, file, directory, enum, or `list of file` and the like
            11:6 there is no type `int`
                = did you mean `integer`?
            12:31 only an enum has `values`
                = write `type: enum`
            13:14 there is no type `list of lists`
                = did you mean `list`?
        "#]],
    );
}

#[test]
fn placement_rules_are_checked() {
    check(
        "workflow: w\ninputs: { data: file }\nsteps: { clean: { run: x, outputs: { raw: file } } }\nplacement:\n  \
         - match: { step: claen, output: raw }\n    confine: edge\n  - match: { step: clean, output: row }\n    push: nevr\n  \
         - match: { input: date }\n    confine: {}\n  - match: { step: clean }\n  - match: { step: 'c*n', input: data }\n    push: never\n  - push: eager\n    confine: edge\n",
        expect![[r#"
            5:20 the rule matches no step: `claen`
                = did you mean `clean`?
            5:35 the rule matches no output: `raw`
            7:35 the rule matches no output: `row`
                = did you mean `raw`?
            8:11 `push` cannot be `nevr`
                = did you mean `never`?
            9:21 the rule matches no input: `date`
                = did you mean `data`?
            10:14 `confine` selects nothing
                = write a name, `{ labels: { key: value } }`, or leave it out: then any site will do
            11:5 the rule says nothing
                = add `confine: { labels: { … } }` or `push: never`
            12:20 `c*n`: a `*` stands at the end only
            12:34 a rule matches an input, or the outputs of steps, not both
                = make it two rules
            14:11 the rule confines what it pushes eagerly
                = leave `push` out: confined data never enters the bucket
        "#]],
    );
}

fn site(name: &str, tier: &str, memory: Option<u64>) -> SiteFacts {
    SiteFacts {
        name: name.parse().expect("valid"),
        labels: BTreeMap::from([("tier".to_owned(), tier.to_owned())]),
        capacity: memory.map(|memory_bytes| Capacity {
            cpu_millis: 4_000,
            memory_bytes,
            disk_free_bytes: 1 << 40,
            ..Capacity::default()
        }),
        runtimes: Vec::new(),
    }
}

#[track_caller]
fn check_placed(source: &str, expected: Expect) {
    let sites = [site("edge", "edge", Some(1 << 30)), site("hpc", "hpc", Some(64 << 30))];
    expected.assert_eq(&shown(&check_sites(&parsed(source), "workflow.yaml", &sites)));
}

#[test]
fn unknown_sites_and_labels_are_named() {
    check_placed(
        "workflow: w\nsteps:\n  a: { run: x, site: egde }\n  b: { run: x, site: { labels: { teir: edge } } }\n  \
         c: { run: x, site: { labels: { tier: hcp } } }\n  d: { run: x, site: { name: edge, labels: { tier: hpc } } }\n",
        expect![[r#"
            3:22 there is no site `egde`
                = did you mean `edge`?
            4:34 no site has a label `teir`
                = did you mean `tier`?
            5:40 no site has `tier: hcp`
                = did you mean `hpc`?
            6:22 no site has everything that the step asks for
        "#]],
    );
    let nowhere = check_sites(&parsed("workflow: w\nsteps: { a: { run: x } }\n"), "workflow.yaml", &[]);
    expect![[r#"
        2:10 there is no site yet
            = make one: `atoll site token create NAME`
    "#]]
    .assert_eq(&shown(&nowhere));
}

#[test]
fn resources_that_no_admissible_site_has_are_refused() {
    check_placed(
        "workflow: w\nsteps:\n  a: { run: x, site: edge, resources: { memory: 2GiB } }\n  b: { run: x, resources: { memory: 2GiB } }\n  \
         c: { run: x, resources: { cpu: 8 } }\n  d: { run: x, resources: { memory: 1TiB } }\n",
        expect![[r#"
            3:49 step `a` asks for 2 GiB of memory, more than any site has where it may run
                = `edge` has the most: 1 GiB
            5:34 step `c` asks for 8 CPUs, more than any site has where it may run
                = `hpc` has the most: 4
            6:37 step `d` asks for 1 TiB of memory, more than any site has where it may run
                = `hpc` has the most: 64 GiB
        "#]],
    );
    let unknown = [site("edge", "edge", None)];
    let workflow = parsed("workflow: w\nsteps: { a: { run: x, resources: { memory: 1TiB } } }\n");
    assert_eq!(check_sites(&workflow, "workflow.yaml", &unknown), [], "it may have that much");
}

#[test]
fn several_nodes_are_refused_where_no_admissible_site_gives_them() {
    let of = |name: &str, tier: &str, runtimes: &[&str]| SiteFacts {
        runtimes: runtimes.iter().map(|runtime| (*runtime).to_owned()).collect(),
        ..site(name, tier, Some(64 << 30))
    };
    let sites = [
        of("edge", "edge", &["command"]),
        of("hpc", "hpc", &["command", "nodes", "slurm"]),
        of("pbs", "pbs", &["command", "nodes"]),
    ];
    let source = "workflow: w\nsteps:\n  a: { run: x, site: edge, resources: { nodes: 2 } }\n  \
                  b: { run: x, site: pbs, resources: { tasks_per_node: 2, launch: srun } }\n  \
                  c: { run: x, site: edge, resources: { sbatch: --exclusive } }\n  \
                  d: { run: x, resources: { nodes: 2, tasks_per_node: 3 } }\n  \
                  e: { run: x, resources: { nodes: 2, tasks_per_node: 2, launch: srun, sbatch: [--constraint=a|b] } }\n";
    expect![[r#"
        3:22 step `a` asks for 2 nodes with 1 task each, and no site gives that where it may run
            = sites whose executions are jobs of Slurm give one execution several
        4:22 step `b` asks for `launch: srun`, and no site gives that where it may run
            = that is for sites whose executions are jobs of Slurm
        5:22 step `c` asks for options of `sbatch`, and no site gives that where it may run
            = that is for sites whose executions are jobs of Slurm
        6:3 step `d` asks for 6 CPUs, more than any site has where it may run
            = `pbs` has the most: 4
    "#]]
    .assert_eq(&shown(&check_sites(&parsed(source), "workflow.yaml", &sites)));
}

#[test]
fn a_step_that_reads_confined_data_elsewhere_is_refused() {
    check_placed(
        "workflow: w\nsteps:\n  raw: { run: x, site: edge, outputs: { table: file, count: integer } }\n  \
         near: { run: x, with: { t: \"${{ steps.raw.outputs.table }}\" }, outputs: { sum: file } }\n  \
         far: { run: x, site: hpc, with: { t: \"${{ steps.raw.outputs.table }}\" } }\n  \
         derived: { run: x, site: { labels: { tier: hpc } }, with: { t: \"${{ steps.near.outputs.sum }}\" } }\n  \
         free: { run: x, site: hpc, when: \"${{ steps.raw.outputs.count > 0 }}\" }\nplacement:\n  - match: { step: raw }\n    confine: { site: edge }\n",
        expect![[r#"
            5:24 step `far` reads data that may not leave `edge`, and runs elsewhere
                = placement rule 1 (line 9) confines it; the step is placed at `hpc`
            6:28 step `derived` reads data that may not leave `edge`, and runs elsewhere
                = placement rule 1 (line 9) confines it; the step is placed at `hpc`
        "#]],
    );
    check_placed(
        "workflow: w\nsteps:\n  a: { run: x, site: hpc, outputs: { o: file } }\nplacement: [{ match: { output: o }, confine: edge }]\n",
        expect![[r#"
            3:22 step `a` makes data that may not leave `edge`, and runs elsewhere
                = placement rule 1 (line 4) confines it; the step is placed at `hpc`
        "#]],
    );
    check_placed(
        "workflow: w\nsteps:\n  a: { run: x, site: hpc, outputs: { o: file } }\n  b: { run: x, site: edge, with: { o: \"${{ steps.a.outputs.o }}\" } }\nplacement: [{ match: { step: a }, push: never }]\n",
        expect![[r#"
            4:22 step `b` reads from `a`, which is never pushed, and runs elsewhere
                = placement rule 1 (line 5) says `push: never`
        "#]],
    );
}

#[test]
fn a_program_without_a_shell_declares_its_own_inputs_and_outputs() {
    let source =
        "workflow: w\nsteps:\n  a:\n    command: [/bin/cp, a, b]\n    with: { n: 1 }\n    outputs: { copy: file }\n";
    let workflow = parsed(source);
    let step = &workflow.steps[0];
    let Work::Action(action) = &step.work else { panic!("{:?}", step.work) };
    assert_eq!((action.command.as_slice(), action.bundle), (["/bin/cp", "a", "b"].map(str::to_owned).as_slice(), None));
    assert_eq!((step.bindings.len(), step.outputs.len()), (1, 1));
}
