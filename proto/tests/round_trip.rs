//! Every frame of the model survives the wire, and no bytes on the wire do harm.
#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

mod frames;

use atoll_model::limits::{FRAME_BYTES_MAX, VALUE_DEPTH_MAX};
use atoll_model::session::{AgentBody, AgentFrame, ControlBody, ControlFrame, Outcome, Report, SiteCommand, Verdict};
use atoll_model::value::Value;
use atoll_proto::{Received, WireError, split_agent_frame, split_control_frame, v1};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

fn read_agent(bytes: &[u8]) -> Result<Received<AgentFrame>, WireError> {
    v1::AgentFrame::decode(bytes).unwrap().try_into()
}

fn read_control(bytes: &[u8]) -> Result<Received<ControlFrame>, WireError> {
    v1::ControlFrame::decode(bytes).unwrap().try_into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_frame_of_an_agent_arrives_as_it_was_sent(frame in frames::agent_frame()) {
        let bytes = v1::AgentFrame::from(frame.clone()).encode_to_vec();
        prop_assert_eq!(read_agent(&bytes).unwrap(), Received { frame, refused: Vec::new() });
    }

    #[test]
    fn a_frame_of_the_control_plane_arrives_as_it_was_sent(frame in frames::control_frame()) {
        let bytes = v1::ControlFrame::from(frame.clone()).encode_to_vec();
        prop_assert_eq!(read_control(&bytes).unwrap(), Received { frame, refused: Vec::new() });
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = v1::AgentFrame::decode(&*bytes).map(Received::<AgentFrame>::try_from);
        let _ = v1::ControlFrame::decode(&*bytes).map(Received::<ControlFrame>::try_from);
    }

    #[test]
    fn a_damaged_frame_of_an_agent_is_refused_without_a_panic(
        frame in frames::agent_frame(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = v1::AgentFrame::from(frame).encode_to_vec();
        damage.into_iter().for_each(|(place, byte)| if !bytes.is_empty() { *place.get_mut(&mut bytes) = byte });
        let _ = v1::AgentFrame::decode(&*bytes).map(Received::<AgentFrame>::try_from);
    }

    #[test]
    fn a_damaged_frame_of_the_control_plane_is_refused_without_a_panic(
        frame in frames::control_frame(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = v1::ControlFrame::from(frame).encode_to_vec();
        damage.into_iter().for_each(|(place, byte)| if !bytes.is_empty() { *place.get_mut(&mut bytes) = byte });
        let _ = v1::ControlFrame::decode(&*bytes).map(Received::<ControlFrame>::try_from);
    }
}

fn agent_frame(reports: Vec<v1::Report>) -> v1::AgentFrame {
    let body = v1::agent_frame::Body::Reports(v1::Reports { first: 5, reports });
    v1::AgentFrame { epoch: 1, acknowledged: 0, body: Some(body) }
}

fn control_frame(commands: Vec<v1::SiteCommand>) -> v1::ControlFrame {
    let body = v1::control_frame::Body::Commands(v1::Commands { first: 5, commands });
    v1::ControlFrame { epoch: 1, acknowledged: 0, lease: None, body: Some(body) }
}

fn forget() -> v1::SiteCommand {
    v1::SiteCommand { kind: Some(v1::site_command::Kind::Forget(v1::Id { high: 0, low: 1 })) }
}

#[test]
fn a_command_of_a_kind_that_is_not_known_keeps_its_number_and_costs_no_other() {
    let frame = control_frame(vec![forget(), v1::SiteCommand { kind: None }, forget()]);
    let received = Received::<ControlFrame>::try_from(frame).unwrap();
    let ControlBody::Commands { first, commands } = received.frame.body else { panic!("not commands") };
    assert_eq!(first.0, 5);
    assert!(matches!(
        &commands[..],
        [SiteCommand::Forget { .. }, SiteCommand::Unknown { .. }, SiteCommand::Forget { .. }]
    ));
    assert_eq!(received.refused, [WireError::UnknownKind { field: "command" }]);
}

fn two_finished(outcomes: v1::Runs, details: Vec<v1::OutcomeDetail>) -> v1::AgentFrame {
    let finished = v1::FinishedElements {
        run: Some(v1::Id { high: 0, low: 1 }),
        elements: Some(v1::Elements { distances: vec![3], lengths: vec![2] }),
        attempts: Some(v1::Runs { values: vec![1], counts: vec![2] }),
        finished_at: vec![10, 0],
        outcomes: Some(outcomes),
        details,
        output_counts: Some(v1::Runs { values: vec![0], counts: vec![2] }),
        ..v1::FinishedElements::default()
    };
    agent_frame(vec![v1::Report { kind: Some(v1::report::Kind::Finished(finished)) }])
}

#[test]
fn an_outcome_that_is_not_known_is_a_failure_that_says_so_and_costs_no_other() {
    let detail = v1::OutcomeDetail { reason: 99, exit_code: None, message: String::new() };
    for outcome in [3, 17] {
        let frame = two_finished(v1::Runs { values: vec![outcome, 1], counts: vec![1, 1] }, vec![detail.clone()]);
        let received = Received::<AgentFrame>::try_from(frame).unwrap();
        let AgentBody::Reports { reports, .. } = received.frame.body else { panic!("not reports") };
        let [Report::Finished { elements, .. }] = &reports[..] else { panic!("not finished: {reports:?}") };
        assert!(matches!(&elements[0].outcome, Outcome::Failed { message, .. } if message.contains("does not know")));
        assert_eq!((elements[1].element, &elements[1].outcome), (4, &Outcome::Succeeded));
        assert_eq!(received.refused.len(), 1);
    }
}

#[test]
fn columns_of_different_lengths_refuse_the_frame_and_name_the_field() {
    let error = Received::<AgentFrame>::try_from(two_finished(v1::Runs { values: vec![1], counts: vec![3] }, vec![]));
    assert_eq!(error.unwrap_err(), WireError::Count { field: "finished.outcomes", expected: 2, found: 3 });
}

#[test]
fn a_few_bytes_that_claim_four_billion_elements_are_refused() {
    let group = v1::InventoryGroup {
        run: Some(v1::Id::default()),
        elements: Some(v1::Elements { distances: vec![0], lengths: vec![u32::MAX] }),
        attempts: Some(v1::Runs { values: vec![1], counts: vec![u32::MAX] }),
        states: Some(v1::Runs { values: vec![1], counts: vec![u32::MAX] }),
        ..v1::InventoryGroup::default()
    };
    let body = v1::agent_frame::Body::Inventory(v1::Inventory { groups: vec![group], ..v1::Inventory::default() });
    let error = Received::<AgentFrame>::try_from(v1::AgentFrame { body: Some(body), ..v1::AgentFrame::default() });
    assert!(matches!(error.unwrap_err(), WireError::TooMany { .. }));
}

#[test]
fn a_verdict_that_is_not_known_keeps_what_the_agent_has() {
    let runs = v1::Runs { values: vec![9, 2], counts: vec![1, 1] };
    let body = v1::control_frame::Body::Verdicts(v1::Verdicts { verdicts: Some(runs), count: 2 });
    let frame = v1::ControlFrame { body: Some(body), ..v1::ControlFrame::default() };
    let received = Received::<ControlFrame>::try_from(frame).unwrap();
    assert_eq!(received.frame.body, ControlBody::Verdicts(vec![Verdict::Keep, Verdict::Cancel]));
    assert_eq!(received.refused.len(), 1);
}

#[test]
fn a_value_as_deep_as_allowed_passes_and_a_deeper_one_is_refused() {
    let nested = |depth| (0..depth).fold(Value::Null, |inner, _| Value::list(vec![inner]));
    let deep = nested(VALUE_DEPTH_MAX);
    let bytes = v1::Value::from(deep.clone()).encode_to_vec();
    assert_eq!(Value::try_from(v1::Value::decode(&*bytes).unwrap()), Ok(deep));
    let error = Value::try_from(v1::Value::from(nested(VALUE_DEPTH_MAX + 1))).unwrap_err();
    assert!(error.refuses_item_only(), "{error}");
}

#[test]
fn a_frame_too_large_for_the_wire_is_split_between_items() {
    let report = v1::Report { kind: Some(v1::report::Kind::Unknown("x".repeat(FRAME_BYTES_MAX / 3))) };
    let frames = split_agent_frame(agent_frame(vec![report; 7]));
    assert!(frames.iter().all(|frame| frame.encoded_len() <= FRAME_BYTES_MAX));
    let firsts = frames.iter().map(|frame| match &frame.body {
        Some(v1::agent_frame::Body::Reports(reports)) => (reports.first, reports.reports.len()),
        other => panic!("not reports: {other:?}"),
    });
    assert_eq!(firsts.collect::<Vec<_>>(), [(5, 2), (7, 2), (9, 2), (11, 1)]);

    let command = v1::SiteCommand { kind: Some(v1::site_command::Kind::Unknown("x".repeat(FRAME_BYTES_MAX * 2))) };
    let frames = split_control_frame(control_frame(vec![command, forget()]));
    assert_eq!(frames.len(), 2, "one that is too large alone goes alone");
}
