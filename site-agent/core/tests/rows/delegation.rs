//! Steps that were delegated whole.

use std::time::Duration;

use atoll_model::diagnostic::Place;
use atoll_model::elements::ElementSet;
use atoll_model::expression::{Expression, Form};
use atoll_model::id::{Attempt, StepIndex};
use atoll_model::session::{
    AgentBody, AgentFrame, Delegation, GivenInput, Logs, Need, NeedState, Report, SiteCommand, StepTemplate,
    TemplateOutput, TemplateWork,
};
use atoll_model::value::{Type, Value};
use atoll_model::workflow::{OnDisconnect, Retry};
use site_agent_core::event::{ExitKind, Found, StoredOutputs};
use site_agent_core::{Command, Event, Fact, Items};

use crate::harness::{FIRST, RUN, Site, exec, exit_at, plain, template};

fn form(form: Form) -> Expression {
    let (place, r#type) = (Place::default(), Type::Any);
    Expression { form, place, r#type, reads_steps: Vec::new(), reads_inputs: Vec::new(), reads_item: false }
}

fn output(step: u16) -> Expression {
    form(Form::Output { step: StepIndex(step), output: "n".to_owned() })
}

fn makes_n(step: u16) -> StepTemplate {
    let n = TemplateOutput { name: "n".to_owned(), r#type: Type::Any, optional: false, listed: false };
    StepTemplate { outputs: vec![n], ..template(step) }
}

/// A step that needs one that was dispatched, or delegated, before it.
fn delegation(step: u16, state: NeedState, fans_out: bool) -> Delegation {
    Delegation {
        template: makes_n(step),
        attempt: FIRST,
        retry: Retry::default(),
        needs: vec![Need { step: StepIndex(step - 1), fans_out, state }],
        inputs: Vec::new(),
        when: None,
        foreach: None,
        shared: Vec::new(),
        own: Vec::new(),
    }
}

fn delegate(site: &mut Site, delegation: Delegation) {
    site.command(SiteCommand::Delegate(Box::new(delegation)));
}

/// A step that makes a list, and one that is delegated over it.
fn over_a_list(retry: Retry) -> Site {
    let mut site = Site::connected();
    site.prepare(&makes_n(0));
    site.dispatch(0, 0..1);
    let own = vec![("item".to_owned(), form(Form::Item)), ("place".to_owned(), form(Form::Index))];
    let step = delegation(1, NeedState::Dispatched { count: 1 }, false);
    delegate(&mut site, Delegation { foreach: Some(output(0)), own, retry, ..step });
    site
}

fn end_list(site: &mut Site, values: &[i64]) {
    site.exit(exec(0, 0), ExitKind::Code(0));
    let list = Value::list(values.iter().map(|value| Value::Integer(*value)).collect());
    site.store(exec(0, 0), vec![list]);
}

fn finish(site: &mut Site, step: u16, element: u32, value: i64) {
    site.exit(exec(step, element), ExitKind::Code(0));
    site.store(exec(step, element), vec![Value::Integer(value)]);
}

type Ended = (u16, Vec<(Attempt, ElementSet)>, String);

fn ended(site: &Site) -> Vec<Ended> {
    let reports = site.reports().into_iter();
    reports
        .filter_map(|(_, report)| match report {
            Report::DelegationEnded { step, kept, reason, .. } => Some((step.0, kept, reason)),
            _ => None,
        })
        .collect()
}

#[test]
fn b5_a_step_over_what_another_makes_is_expanded_and_started_without_asking() {
    let mut site = over_a_list(Retry::default());
    site.event(Event::Disconnected);
    end_list(&mut site, &[7, 8, 9]);
    // There is room for two of them at a time.
    finish(&mut site, 1, 0, 1);
    let started: Vec<_> = site.starts().into_iter().filter(|(execution, _)| execution.step == StepIndex(1)).collect();
    assert_eq!(started, [(exec(1, 0), FIRST), (exec(1, 1), FIRST), (exec(1, 2), FIRST)]);
    let inputs = site.commands.iter().rev().find_map(|command| match command {
        Command::Start { inputs, .. } => Some(inputs.clone()),
        _ => None,
    });
    let values: Vec<_> = inputs.unwrap().into_iter().map(|input| format!("{:?}", input.value)).collect();
    assert_eq!(values, ["Value(Integer(9))", "Value(Integer(2))"]);
    (1..3).for_each(|element| finish(&mut site, 1, element, 1));
    site.connect();
    assert_eq!(ended(&site), [(1, Vec::new(), "done".to_owned())]);
}

#[test]
fn a_fan_out_of_a_hundred_thousand_is_one_command_and_a_range() {
    let mut site = Site::connected();
    site.prepare(&makes_n(0));
    site.dispatch(0, 0..1);
    let step = delegation(1, NeedState::Dispatched { count: 1 }, false);
    let template = StepTemplate { work: TemplateWork::Null, outputs: Vec::new(), ..template(1) };
    let items = Value::list((0..100_000).map(Value::Integer).collect());
    delegate(&mut site, Delegation { template, foreach: Some(form(Form::Literal(items))), ..step });
    let before = site.facts.len();
    end_list(&mut site, &[]);
    assert!(site.facts.len() - before < 12, "{}", site.facts.len() - before);
    assert!(site.has(|command| matches!(command, Command::StartNull { elements, .. } if elements.len() == 100_000)));
}

#[test]
fn elements_with_inputs_of_their_own_are_taken_up_as_the_queue_runs_low() {
    let mut site = Site::connected();
    site.prepare(&makes_n(0));
    site.dispatch(0, 0..1);
    let own = vec![("item".to_owned(), form(Form::Item))];
    let items = Value::list((0..100_000).map(Value::Integer).collect());
    let step = delegation(1, NeedState::Dispatched { count: 1 }, false);
    delegate(&mut site, Delegation { foreach: Some(form(Form::Literal(items))), own, ..step });
    end_list(&mut site, &[]);
    let taken = site.facts.iter().filter(|fact| matches!(fact, Fact::ElementsTaken { .. })).count();
    assert!((1..4).contains(&taken), "{taken}");
    site.agent.check();
}

#[test]
fn a_failed_element_is_tried_again_by_the_policy_of_its_step_and_told_of_as_such() {
    let mut site = over_a_list(Retry { attempts: 2, backoff: Duration::from_secs(3), ..Retry::default() });
    end_list(&mut site, &[7]);
    site.exit(exec(1, 0), ExitKind::Code(1));
    site.store(exec(1, 0), Vec::new());
    assert!(!site.starts().contains(&(exec(1, 0), Attempt(2))), "it waits first");
    site.pass(Duration::from_secs(4));
    assert!(site.starts().contains(&(exec(1, 0), Attempt(2))));
    assert!(
        site.reports()
            .iter()
            .any(|(_, report)| matches!(report, Report::Retried { elements, .. } if elements[0].attempt == FIRST))
    );
    let exit = exit_at(site.now, ExitKind::Code(1));
    site.event(Event::Exited { execution: exec(1, 0), attempt: Attempt(2), exit, stored: None });
    let result = Ok(StoredOutputs { outputs: Vec::new(), logs: Logs::default(), bytes_out: 0 });
    site.event(Event::OutputsStored { execution: exec(1, 0), attempt: Attempt(2), result });
    site.pass(Duration::from_secs(60));
    assert!(!site.starts().contains(&(exec(1, 0), Attempt(3))));
    assert_eq!(ended(&site).len(), 1, "the run fails, and nothing more of it is started");
}

#[test]
fn a_false_condition_skips_the_step_and_what_needs_it() {
    let mut site = Site::connected();
    site.prepare(&makes_n(0));
    site.dispatch(0, 0..1);
    let when = Some(form(Form::Input("go".to_owned())));
    let inputs = vec![("go".to_owned(), GivenInput::Value(Value::Boolean(false)))];
    delegate(&mut site, Delegation { when, inputs, ..delegation(1, NeedState::Dispatched { count: 1 }, false) });
    delegate(&mut site, delegation(2, NeedState::Delegated, false));
    end_list(&mut site, &[]);
    let ended: Vec<_> = ended(&site).into_iter().map(|(step, _, reason)| (step, reason)).collect();
    assert_eq!(ended, [(1, "it is skipped".to_owned()), (2, "it is skipped".to_owned())]);
    assert!(site.starts().iter().all(|(execution, _)| execution.step == StepIndex(0)));
}

#[test]
fn a_step_whose_expression_has_no_value_is_handed_back_with_the_reason() {
    let mut site = over_a_list(Retry::default());
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.store(exec(0, 0), vec![Value::Integer(3)]);
    let ended = ended(&site);
    assert!(ended[0].2.contains("a step fans out over a list, not over"), "{ended:?}");
}

#[test]
fn a_withdrawn_step_says_what_it_kept_and_starts_nothing_more() {
    let mut site = over_a_list(Retry::default());
    end_list(&mut site, &[1, 2, 3]);
    site.command(SiteCommand::Withdraw { run: RUN, step: StepIndex(1), stop: false });
    let kept = vec![(FIRST, ElementSet::from_range(0..2))];
    assert_eq!(ended(&site), [(1, kept, "it was withdrawn".to_owned())]);
    assert!(!site.has(|command| matches!(command, Command::Kill { .. })));
    // Handed over again under the same numbers, what was not started runs.
    site.dispatch(1, 0..3);
    site.agent.check();
}

#[test]
fn a_step_that_is_withdrawn_to_be_stopped_is_stopped() {
    let mut site = over_a_list(Retry::default());
    end_list(&mut site, &[1]);
    site.command(SiteCommand::Withdraw { run: RUN, step: StepIndex(1), stop: true });
    assert!(site.has(|command| matches!(command, Command::Kill { execution, .. } if *execution == exec(1, 0))));
}

#[test]
fn an_agent_that_starts_anew_in_the_middle_goes_on_where_it_was() {
    let mut site = over_a_list(Retry { attempts: 3, backoff: Duration::from_secs(5), ..Retry::default() });
    end_list(&mut site, &[4, 5]);
    finish(&mut site, 1, 1, 1);
    site.exit(exec(1, 0), ExitKind::Code(1));
    site.store(exec(1, 0), Vec::new());
    site.restart_with(Found::default());
    assert!(site.facts.iter().any(|fact| matches!(fact, Fact::StepExpanded { items: Items::List(_), .. })));
    site.connect();
    site.pass(Duration::from_secs(6));
    assert!(site.starts().contains(&(exec(1, 0), Attempt(2))));
    assert!(!site.starts().contains(&(exec(1, 1), Attempt(2))));
}

#[test]
fn a_step_whose_need_was_never_here_is_handed_back() {
    let mut site = Site::connected();
    site.prepare(&makes_n(0));
    site.command(SiteCommand::Dispatch(plain(0, 0..1)));
    delegate(&mut site, delegation(1, NeedState::Dispatched { count: 2 }, true));
    assert!(ended(&site)[0].2.contains("goes on elsewhere"));
}

#[test]
fn b5_a_step_that_does_nothing_and_only_waits_is_decided_by_a_site_that_is_cut_off() {
    let mut site = Site::connected();
    site.prepare(&makes_n(0));
    site.dispatch(0, 0..1);
    let nothing = StepTemplate { work: TemplateWork::Null, outputs: Vec::new(), ..template(1) };
    let gate = delegation(1, NeedState::Dispatched { count: 1 }, false);
    delegate(&mut site, Delegation { template: nothing, ..gate });
    delegate(&mut site, delegation(2, NeedState::Delegated, false));
    site.event(Event::Disconnected);
    finish(&mut site, 0, 0, 1);
    assert!(site.has(|command| matches!(command, Command::StartNull { step, .. } if *step == StepIndex(1))));
    let elements = ElementSet::from_range(0..1);
    site.event(Event::NullFinished { run: RUN, step: StepIndex(1), attempt: FIRST, elements, at: site.now });
    assert!(site.starts().contains(&(exec(2, 0), FIRST)));
}

#[test]
fn c6_a_delegated_step_is_begun_under_the_lease_that_it_asks_for_and_else_when_the_link_is_back() {
    for (on_disconnect, after, begins) in
        [(OnDisconnect::Finish, 300, true), (OnDisconnect::Finish, 901, false), (OnDisconnect::Stop, 300, false)]
    {
        let mut site = Site::connected();
        site.prepare(&makes_n(0));
        site.dispatch(0, 0..1);
        let step = delegation(1, NeedState::Dispatched { count: 1 }, false);
        delegate(&mut site, Delegation { template: StepTemplate { on_disconnect, ..makes_n(1) }, ..step });
        site.event(Event::Disconnected);
        site.pass(Duration::from_secs(after));
        finish(&mut site, 0, 0, 1);
        assert_eq!(site.starts().contains(&(exec(1, 0), FIRST)), begins, "{on_disconnect:?} after {after} s");
        site.connect();
        let begun = site.starts().into_iter().filter(|start| *start == (exec(1, 0), FIRST)).count();
        assert!(begun == 1 || begins, "{on_disconnect:?} after {after} s");
    }
}

#[test]
fn b6_a_control_plane_that_lacks_what_was_delegated_gets_it_back_and_may_delegate_it_again() {
    let mut site = Site::connected();
    site.prepare(&makes_n(0));
    site.dispatch(0, 0..1);
    let step = delegation(1, NeedState::Dispatched { count: 1 }, false);
    delegate(&mut site, step.clone());
    site.event(Event::Disconnected);
    site.lacking = true;
    site.connect();
    assert_eq!(ended(&site), [(1, Vec::new(), "the control plane does not know of it any more".to_owned())]);
    let is_end = |report: &Report| matches!(report, Report::DelegationEnded { .. });
    let ends_at = site.reports().into_iter().find_map(|(number, report)| is_end(&report).then_some(number));
    let named = site.commands.iter().rev().find_map(|command| match command {
        Command::Send { frame: AgentFrame { body: AgentBody::Inventory(inventory), .. } } => {
            Some(inventory.last_report.0)
        }
        _ => None,
    });
    assert!(ends_at.is_some() && ends_at <= named, "the inventory says up to where reports tell of before");
    site.lacking = false;
    // The same attempt: it was never begun here.
    delegate(&mut site, step.clone());
    finish(&mut site, 0, 0, 7);
    assert_eq!(site.starts().last(), Some(&(exec(1, 0), FIRST)));
    finish(&mut site, 1, 0, 8);
    site.pass(Duration::from_secs(1));
    site.commands.clear();
    // Now it was.
    delegate(&mut site, step);
    site.pass(Duration::from_secs(1));
    let (handed_back, kept, reason) = ended(&site).pop().expect("it is handed back");
    assert!((handed_back, kept.len()) == (1, 0) && reason.contains("restored from a backup"), "{reason}");
    assert!(site.starts().is_empty());
}
