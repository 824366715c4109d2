//! Whatever a person sends as a workflow or a manifest, the answer is a workflow or a list of what is wrong.

mod samples;

use atoll_model::action;
use atoll_model::workflow::{SiteFacts, Surroundings, Work, check_sites, parse};
use proptest::prelude::*;

const EVERYTHING: &str = include_str!("samples/everything.yaml");
const CLEAN: &str = include_str!("samples/clean.action.yaml");

struct Clean;

impl Surroundings for Clean {
    fn action(&self, reference: &str) -> Result<Work, String> {
        if reference.len() > 12 {
            return Err("no".to_owned());
        }
        Ok(action::parse("action.yaml", CLEAN).expect("valid").into_work(None, 0))
    }
}

fn take_in(text: &str) {
    match parse("workflow.yaml", text, &Clean) {
        Ok(workflow) => {
            let site = SiteFacts {
                name: "edge".parse().expect("valid"),
                labels: Default::default(),
                capacity: None,
                runtimes: Vec::new(),
            };
            let found = check_sites(&workflow, "workflow.yaml", &[site]);
            assert!(found.iter().all(|diagnostic| diagnostic.place.line > 0));
        }
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty());
            for diagnostic in diagnostics {
                assert!(diagnostic.place.line >= 1 && diagnostic.place.column >= 1, "{diagnostic}");
                let (start, end) = (diagnostic.place.start as usize, diagnostic.place.end as usize);
                assert!(start <= end && text.get(start..end).is_some(), "{diagnostic} {start}..{end}");
            }
        }
    }
    for file in action::MANIFEST_NAMES {
        if let Err(diagnostics) = action::parse(file, text) {
            assert!(!diagnostics.is_empty());
        }
    }
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = level - 1;
        let aliases = vec![format!("*a{before}"); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let diagnostics = parse("w", &bomb, &Clean).expect_err("refused");
    assert!(diagnostics[0].message.contains("more than 500000 values"), "{}", diagnostics[0]);
}

#[test]
fn depth_and_size_are_bounded() {
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")] {
        for depth in [63, 65, 300, 100_000] {
            take_in(&format!("{}{}", open.repeat(depth), close.repeat(depth)));
        }
    }
    let deep = parse("w", &format!("{}{}", "[".repeat(100), "]".repeat(100)), &Clean).expect_err("refused");
    assert!(deep[0].message.contains("nested more than"), "{}", deep[0]);
    let large = parse("w", &"a".repeat(5 << 20), &Clean).expect_err("refused");
    assert!(large[0].message.contains("more than 4194304"), "{}", large[0]);
}

#[test]
fn ten_thousand_steps_are_checked_at_once() {
    let mut source = "workflow: w\nsteps:\n  s0: { run: x, outputs: { o: file } }\n".to_owned();
    for step in 1..10_000 {
        source.push_str(&format!(
            "  s{step}: {{ run: x, with: {{ i: \"${{{{ steps.s{}.outputs.o }}}}\" }}, outputs: {{ o: file }} }}\n",
            step - 1
        ));
    }
    let started = std::time::Instant::now();
    let workflow = parse("w", &source, &Clean).expect("valid");
    assert_eq!(workflow.steps.len(), 10_000);
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_taken_in(text in "\\PC{0,200}|[-a-z:{}\\[\\]\"'&*!|>#$ \n]{0,200}") {
        take_in(&text);
    }

    #[test]
    fn a_sample_that_was_changed_is_taken_in(
        sample in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4, "\\PC|[-:{}\\[\\]\"'&*!|>#$ \n\t]|é|\\$\\{\\{|\\}\\}", 0usize..40), 1..6),
    ) {
        let mut text = [samples::contract(), EVERYTHING, CLEAN][sample].to_owned();
        for (at, change, inserted, length) in changes {
            let places: Vec<usize> = text.char_indices().map(|(place, _)| place).collect();
            if places.is_empty() {
                break;
            }
            let start = at.index(places.len());
            let end = places.get(start + length).copied().unwrap_or(text.len());
            let start = places[start];
            match change {
                0 => text.insert_str(start, &inserted),
                1 => text.replace_range(start..end, &inserted),
                2 => text.replace_range(start..end, ""),
                _ => {
                    let copied = text[start..end].to_owned();
                    text.insert_str(start, &copied);
                }
            }
        }
        take_in(&text);
    }

    #[test]
    fn any_expression_is_taken_in(expression in "[a-z0-9 .,()\\[\\]{}'\"+*/%!<>=&|?:-]{0,60}|(inputs|steps|item|size|files|map|\\.|\\(|\\)|,|'|\\[|\\]|x|1| |==|&&){1,30}") {
        let quoted = serde_json::Value::String(format!("${{{{ {expression} }}}}"));
        take_in(&format!("workflow: w\ninputs: {{ x: directory }}\nsteps:\n  a: {{ run: x, foreach: [1], with: {{ v: {quoted} }} }}\n"));
    }
}
