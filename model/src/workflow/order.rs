//! The order of steps: each before those that need it, in no cycle.

use crate::id::StepIndex;
use crate::reading::Report;
use crate::workflow::Step;

/// The steps in an order in which each comes after all that it needs; where they need each other, only those that can be
/// ordered.
pub(super) fn in_order(steps: &[Step]) -> Vec<StepIndex> {
    let mut successors = vec![Vec::new(); steps.len()];
    let mut waits: Vec<usize> = steps.iter().map(|step| step.needs.len()).collect();
    for step in steps {
        for need in &step.needs {
            successors[need.index()].push(step.index);
        }
    }
    let mut order: Vec<StepIndex> = steps.iter().filter(|step| step.needs.is_empty()).map(|step| step.index).collect();
    let mut next = 0;
    while let Some(step) = order.get(next).copied() {
        next += 1;
        for successor in &successors[step.index()] {
            waits[successor.index()] -= 1;
            if waits[successor.index()] == 0 {
                order.push(*successor);
            }
        }
    }
    order
}

/// Reports the steps that need each other.
pub(super) fn order_steps(report: &mut Report, steps: &[Step]) {
    let order = in_order(steps);
    if order.len() == steps.len() {
        return;
    }
    let mut left = vec![true; steps.len()];
    for step in &order {
        left[step.index()] = false;
    }
    // From any step that is left, what it needs leads into a cycle.
    while let Some(start) = left.iter().position(|left| *left) {
        let mut path = vec![start];
        let cycle = loop {
            let at = path[path.len() - 1];
            let Some(next) = steps[at].needs.iter().map(|need| need.index()).find(|need| left[*need]) else {
                break None;
            };
            if let Some(from) = path.iter().position(|step| *step == next) {
                break Some(path[from..].to_vec());
            }
            path.push(next);
        };
        path.iter().for_each(|step| left[*step] = false);
        if let Some(cycle) = cycle {
            report_cycle(report, steps, cycle);
        }
    }
}

fn report_cycle(report: &mut Report, steps: &[Step], mut cycle: Vec<usize>) {
    let first = cycle.iter().enumerate().min_by_key(|(_, step)| **step).map_or(0, |(position, _)| position);
    cycle.rotate_left(first);
    let step = &steps[cycle[0]];
    if cycle.len() == 1 {
        report.error(step.place, format!("step `{}` needs itself", step.name), None);
        return;
    }
    let names: Vec<String> = cycle.iter().chain(&cycle[..1]).map(|step| format!("`{}`", steps[*step].name)).collect();
    let message = format!("these steps need each other: {}", names.join(" needs "));
    report.error(
        step.place,
        message,
        Some("no step can be the first of them; take one of the references out".to_owned()),
    );
}
