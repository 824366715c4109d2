//! The agent's machines.

use super::{Impossible, Machine};

/// Of an attempt that has, or had, a process, and of one that the journal does not know.
const WITH_A_PROCESS_ONCE: &[&str] = &[
    "not known",
    "starting",
    "running",
    "being killed",
    "exited",
    "collecting",
    "stored",
    "orphaned",
    "forgotten and active",
    "ended",
];
/// Of an attempt when nothing is being handled.
const BETWEEN_EVENTS: &[&str] = &[
    "not known",
    "waiting",
    "ready",
    "asked for",
    "starting",
    "running",
    "being killed",
    "exited",
    "collecting",
    "stored",
    "orphaned",
    "forgotten and active",
    "ended",
];

pub(super) const SESSION: Machine = Machine {
    name: "agent's session",
    states: &["offline", "greeting", "comparing", "agreed"],
    events: &["connected", "disconnected", "welcome", "verdicts", "commands", "ready", "acknowledge", "goodbye"],
    impossible: &[],
};

pub(super) const ATTEMPT: Machine = Machine {
    name: "agent's attempt",
    states: &[
        "not known",
        "queued just now",
        "waiting",
        "ready",
        "asked for",
        "queued to end",
        "starting",
        "running",
        "being killed",
        "exited",
        "collecting",
        "stored",
        "orphaned",
        "being found",
        "forgotten and active",
        "ended",
    ],
    events: &[
        "dispatched",
        "cancelled",
        "verdict: cancel",
        "verdict: forget",
        "start intended",
        "start withdrawn",
        "found by a new journal",
        "started",
        "not started",
        "exited",
        "sealed",
        "stored",
        "could not be stored",
        "nothing is done",
        "ends unstarted",
        "finishes",
        "fails, and is tried again",
        "step withdrawn",
        "dropped",
    ],
    impossible: &[
        Impossible {
            events: &["start intended"],
            only: &["ready"],
            why: "only what lacks nothing but room is started",
        },
        Impossible { events: &["found by a new journal"], only: &["not known"], why: "a new journal knows nothing" },
        Impossible {
            events: &["start withdrawn"],
            only: &["being found"],
            why: "a start is withdrawn when a process of the agent begins and finds no trace of it",
        },
        Impossible {
            events: &["dispatched"],
            only: &[
                "starting",
                "running",
                "waiting",
                "ready",
                "collecting",
                "not known",
                "orphaned",
                "forgotten and active",
                "ended",
            ],
            why: "an attempt is given to a journal once, and again by whoever found it there without knowing it, or was \
                  restored from a backup that does not know of it",
        },
        Impossible {
            events: &["nothing is done"],
            only: &["not known", "asked for", "ended"],
            why: "work that is nothing has no process, and is asked for before it is done",
        },
        Impossible {
            events: &["cancelled", "verdict: cancel", "verdict: forget"],
            only: BETWEEN_EVENTS,
            why: "when an event comes nothing is between two states",
        },
        Impossible {
            events: &["ends unstarted"],
            only: &["queued just now", "waiting", "ready", "asked for", "queued to end"],
            why: "what was not started is in the queue until it ends",
        },
        Impossible {
            events: &["finishes"],
            only: &["starting", "being killed", "exited", "collecting", "stored", "orphaned"],
            why: "only what was started comes to its end as such, when it has exited or could not begin, and of what was forgotten nothing is told",
        },
        Impossible {
            events: &["dropped"],
            only: &["forgotten and active"],
            why: "only what was forgotten ends without a word",
        },
        Impossible {
            events: &["started", "exited"],
            only: WITH_A_PROCESS_ONCE,
            why: "what waits in the queue has no process, and when an event comes nothing is between two states",
        },
        Impossible {
            events: &["not started"],
            only: &["not known", "starting", "being killed", "forgotten and active", "ended"],
            why: "what could not begin has not begun",
        },
        Impossible {
            events: &["sealed", "stored", "could not be stored"],
            only: &["not known", "collecting", "forgotten and active", "ended"],
            why: "outputs are taken in once, when they are asked for, after the exit",
        },
    ],
};

pub(super) const FETCH: Machine = Machine {
    name: "agent's fetch",
    states: &["not wanted", "locating", "fetching", "cancelled", "pausing"],
    events: &["located: there", "located: not there", "fetched", "fetch failed"],
    impossible: &[],
};

pub(super) const PUSH: Machine = Machine {
    name: "agent's push",
    states: &["none", "ordered", "cancelled"],
    events: &["push ordered", "push cancelled", "pushed", "push failed"],
    impossible: &[
        Impossible { events: &["push ordered"], only: &["none"], why: "a push is ordered once from a journal" },
        Impossible { events: &["push cancelled"], only: &["none", "ordered"], why: "it is cancelled once" },
        Impossible {
            events: &["pushed", "push failed"],
            only: &["ordered", "cancelled"],
            why: "a push ends once in each process of the agent, and one whose end is on record is not begun again",
        },
    ],
};
