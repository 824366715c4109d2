//! Faults on purpose: the simulator catches each of them within a few seeds. What caught it is printed, for the table of
//! docs/simulation.md: `just sim-faults`.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use planted_sim_tests::{Scenario, UNPLANTED, run};

/// A fault that is not caught in so many seeds counts as missed.
const SEEDS_MAX: u64 = 10_000;

thread_local! {
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("something that is no text").lines().next().unwrap_or_default().to_owned()
}

/// Plays seeds with a fault until one fails.
fn is_caught(name: &str) {
    let fault = planted::faults().into_iter().find(|fault| fault.name == name).expect("it is in the list");
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        PLACE.set(place.rsplit_once("/src/").map_or(place.clone(), |(_, file)| file.to_owned()));
    }));
    planted::switch(Some(fault.name));
    let caught = (0..SEEDS_MAX).find_map(|seed| {
        let ending = catch_unwind(AssertUnwindSafe(|| run(Scenario::drawn(seed))));
        ending.err().map(|panic| (seed + 1, text_of(&*panic)))
    });
    planted::switch(None);
    let _ = std::panic::take_hook();
    let (seeds, caught_by) = caught.unwrap_or_else(|| panic!("{name} was not caught in {SEEDS_MAX} seeds"));
    println!("FAULT {name}\t{seeds}\t{caught_by}\t{}", PLACE.take());
}

macro_rules! caught {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                is_caught($name);
            }
        )*

        #[test]
        fn every_fault_of_the_list_has_a_test() {
            let listed: Vec<&str> = planted::faults().iter().map(|fault| fault.name).collect();
            assert_eq!(listed, [$($name),*]);
        }
    };
}

caught! {
    server_acts_before_its_journal_is_caught: "server-acts-before-its-journal",
    agent_acts_before_its_journal_is_caught: "agent-acts-before-its-journal",
    journal_loses_its_last_record_is_caught: "journal-loses-its-last-record",
    recovery_skips_a_fact_is_caught: "recovery-skips-a-fact",
    agent_recovery_skips_a_fact_is_caught: "agent-recovery-skips-a-fact",
    reports_count_twice_is_caught: "reports-count-twice",
    new_journal_is_taken_for_the_old_is_caught: "new-journal-is-taken-for-the-old",
    commands_are_sent_from_a_wrong_number_is_caught: "commands-are-sent-from-a-wrong-number",
    nothing_is_sent_again_is_caught: "nothing-is-sent-again",
    dispatch_twice_starts_twice_is_caught: "dispatch-twice-starts-twice",
    known_commands_are_taken_again_is_caught: "known-commands-are-taken-again",
    survivors_are_not_looked_for_is_caught: "survivors-are-not-looked-for",
    work_is_given_away_too_soon_is_caught: "work-is-given-away-too-soon",
    report_is_dropped_at_a_full_outbox_is_caught: "report-is-dropped-at-a-full-outbox",
    fetch_is_entered_twice_is_caught: "fetch-is-entered-twice",
    arrival_is_not_told_is_caught: "arrival-is-not-told",
    object_is_deleted_under_its_readers_is_caught: "object-is-deleted-under-its-readers",
    object_is_never_deleted_is_caught: "object-is-never-deleted",
    missing_work_is_not_taken_back_is_caught: "missing-work-is-not-taken-back",
    torn_tail_is_not_cut_is_caught: "torn-tail-is-not-cut",
    checksum_is_not_looked_at_is_caught: "checksum-is-not-looked-at",
    superseded_leader_writes_is_caught: "superseded-leader-writes",
    standby_misses_a_batch_is_caught: "standby-misses-a-batch",
    work_starts_without_a_lease_is_caught: "work-starts-without-a-lease",
    lease_begins_when_its_answer_comes_is_caught: "lease-begins-when-its-answer-comes",
    lease_outlives_the_machine_is_caught: "lease-outlives-the-machine",
    lost_at_most_once_starts_again_is_caught: "lost-at-most-once-starts-again",
    interrupted_at_most_once_starts_again_is_caught: "interrupted-at-most-once-starts-again",
    deletion_counts_when_it_is_asked_for_is_caught: "deletion-counts-when-it-is-asked-for",
    transfer_is_planned_without_the_rules_is_caught: "transfer-is-planned-without-the-rules",
    run_is_forgotten_before_it_is_kept_is_caught: "run-is-forgotten-before-it-is-kept",
    hold_ends_with_the_process_is_caught: "hold-ends-with-the-process",
    leader_that_was_held_up_answers_is_caught: "leader-that-was-held-up-answers",
    attempt_does_not_wait_for_an_earlier_one_is_caught: "attempt-does-not-wait-for-an-earlier-one",
    outcome_of_another_attempt_counts_is_caught: "outcome-of-another-attempt-counts",
    run_is_kept_while_its_objects_move_is_caught: "run-is-kept-while-its-objects-move",
    limit_is_not_looked_at_is_caught: "limit-is-not-looked-at",
    rules_are_forgotten_with_their_run_is_caught: "rules-are-forgotten-with-their-run",
    rule_keeps_nothing_at_its_site_is_caught: "rule-keeps-nothing-at-its-site",
    the_last_copy_that_is_wanted_is_not_made_is_caught: "the-last-copy-that-is-wanted-is-not-made",
    remade_inputs_are_not_sent_anew_is_caught: "remade-inputs-are-not-sent-anew",
    what_has_expired_goes_from_its_readers_is_caught: "what-has-expired-goes-from-its-readers",
    what_stayed_is_not_asked_for_again_is_caught: "what-stayed-is-not-asked-for-again",
    result_of_other_inputs_is_taken_is_caught: "result-of-other-inputs-is-taken",
    record_counts_twice_is_caught: "record-counts-twice",
    record_of_an_earlier_attempt_counts_is_caught: "record-of-an-earlier-attempt-counts",
    offset_is_forgotten_is_caught: "offset-is-forgotten",
}

#[test]
fn every_edit_finds_what_it_changes() {
    assert_eq!(UNPLANTED, [""; 3], "edits of faults.txt and probes.txt that do not fit the sources any more");
}

#[test]
fn a_copy_without_a_fault_does_what_the_original_does() {
    for seed in 0..20 {
        let (copy, original) = (run(Scenario::drawn(seed)), sim_tests::run(sim_tests::Scenario::drawn(seed)));
        assert_eq!(format!("{:?}", copy.digest), format!("{:?}", original.digest), "seed {seed}");
    }
}
