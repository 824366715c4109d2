//! Memory that grows from attempt to attempt: what a step may say of it.

use atoll_model::diagnostic::Diagnostic;
use atoll_model::workflow::{Surroundings, Work, parse};
use expect_test::expect;

struct Nothing;

impl Surroundings for Nothing {
    fn action(&self, _: &str) -> Result<Work, String> {
        Err("none".into())
    }
}

fn shown(diagnostics: &[Diagnostic]) -> String {
    let shown = |Diagnostic { place, message, help, .. }: &Diagnostic| {
        let help = help.as_ref().map(|help| format!("    = {help}\n")).unwrap_or_default();
        format!("{}:{} {message}\n{help}", place.line, place.column)
    };
    diagnostics.iter().map(shown).collect()
}

#[test]
fn memory_that_grows_is_a_factor_of_what_the_step_asks_for() {
    let source = "workflow: w\nsteps:\n  a: { run: x, retry: { attempts: 2, memory: 1x }, resources: { memory: 1GiB } }\n  b: { run: x, retry: { attempts: 2, memory: 17x }, resources: { memory: 1GiB } }\n  \
           c: { run: x, retry: { attempts: 2, memory: 2 }, resources: { memory: 1GiB } }\n  d: { run: x, retry: { memory: 2x }, resources: { memory: 1GiB } }\n  \
           e: { run: x, retry: { attempts: 3, memory: 1.5x } }\n";
    let Err(diagnostics) = parse("workflow.yaml", source, &Nothing) else { panic!("nothing is wrong with it") };
    expect![[r#"
        3:46 `memory`: `1x` is not a factor of growth: write `1.5x` or `2x`, more than 1x and at most 16x
        4:46 `memory`: `17x` is not a factor of growth: write `1.5x` or `2x`, more than 1x and at most 16x
        5:46 `memory`: `2` is not a factor of growth: write `1.5x` or `2x`, more than 1x and at most 16x
        6:33 `memory` grows from attempt to attempt, and there is one
            = add `attempts: 3`, say
        7:46 `memory` cannot grow where the step asks for none
            = say under `resources` how much the first attempt may use: `memory: 512MiB`
    "#]]
    .assert_eq(&shown(&diagnostics));
    let text =
        "workflow: w\nsteps:\n  a: { run: x, retry: { attempts: 3, memory: 1.5x }, resources: { memory: 1GiB } }\n";
    let workflow = parse("workflow.yaml", text, &Nothing).expect("valid");
    let step = &workflow.steps[0];
    assert_eq!([0, 1, 2].map(|grown| step.memory_after(grown)), [1 << 30, 3 << 29, 9 << 28].map(Some));
}
