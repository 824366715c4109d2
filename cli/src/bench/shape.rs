//! Workflows of many executions, in the shapes that real ones have.

use std::fmt::Write as _;

use clap::ValueEnum;

use super::ExecutorKind;
use super::counting::ACTION;

/// Steps of one chain.
const CHAIN_STEPS: u32 = 1_000;

/// How the executions depend on one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shape {
    /// One step with a fan-out.
    Fan,
    /// Chains of a thousand steps, many at a time.
    Chains,
    /// Layers that wait for one another, with the proportions of a mosaic of images: each image is projected, each pair of
    /// neighbours compared, a background modelled from all, and taken off each image.
    Layers,
}

impl Shape {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fan => "fan",
            Self::Chains => "chains",
            Self::Layers => "layers",
        }
    }

    /// The workflows of at least this many executions together, each with its number of them.
    pub(super) fn workflows(self, executions: u32, executor: ExecutorKind) -> Vec<(String, u32)> {
        match self {
            Self::Fan => vec![(layers(&[executions], executor), executions)],
            Self::Chains => {
                let steps = executions.min(CHAIN_STEPS);
                let chain = chain(steps, executor);
                vec![(chain, steps); executions.div_ceil(steps) as usize]
            }
            Self::Layers => {
                let images = (executions / 5).max(1);
                let widths = [images, 3 * images, 1, 1, images, 1];
                vec![(layers(&widths, executor), widths.iter().sum())]
            }
        }
    }
}

fn work(executor: ExecutorKind) -> String {
    match executor {
        ExecutorKind::Null => "executor: \"null\"".to_owned(),
        ExecutorKind::Process => "command: [/bin/true]".to_owned(),
        ExecutorKind::Python => format!("action: {ACTION}"),
    }
}

fn chain(steps: u32, executor: ExecutorKind) -> String {
    layers(&vec![1; steps as usize], executor)
}

/// Each layer waits for all of the one before it.
fn layers(widths: &[u32], executor: ExecutorKind) -> String {
    let work = work(executor);
    let mut text = "workflow: bench-engine\nsteps:\n".to_owned();
    for (number, width) in widths.iter().enumerate() {
        let mut line = |line: &str| writeln!(text, "{line}").expect("writing to a string cannot fail");
        line(&format!("  s{number}:"));
        if let Some(previous) = number.checked_sub(1) {
            line(&format!("    after: [s{previous}]"));
        }
        if *width > 1 {
            line(&format!("    foreach: ${{{{ range({width}) }}}}"));
        }
        line(&format!("    {work}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_of_as_many_executions_as_it_says_and_each_layer_waits_for_the_last() {
        for shape in Shape::value_variants() {
            let workflows = shape.workflows(10_000, ExecutorKind::Null);
            let said: u32 = workflows.iter().map(|(_, executions)| executions).sum();
            assert!((10_000..10_100).contains(&said), "{shape:?}: {said}");
            let (source, _) = &workflows[0];
            let steps = source.matches("executor: \"null\"").count();
            assert!(steps > 0 && source.matches("after:").count() == steps - 1, "{shape:?}: {source}");
        }
    }
}
