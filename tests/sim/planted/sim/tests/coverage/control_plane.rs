//! The control plane's machines.

use super::{Impossible, Machine};

/// Of a session that there is.
const CONNECTED: &[&str] = &["awaiting inventory", "draining", "ready", "superseded"];
/// Of an execution that was sent to an agent, and goes on.
const WITH_AN_AGENT: &[&str] = &["dispatched", "dispatched ahead", "running"];
/// Of one that an agent has, or may have.
const GIVEN_TO_AN_AGENT: &[&str] = &["dispatched", "dispatched ahead", "running", "being cancelled", "unknown"];
/// The same where what was given out since a backup was made is not known to whoever was restored from it.
const GIVEN_TO_AN_AGENT_OR_SO_SINCE_THE_BACKUP: &[&str] =
    &["placed", "dispatched", "dispatched ahead", "running", "being cancelled", "unknown"];
/// Of an object that is on its way to the bucket.
const PUSHED: &[&str] = &["being pushed", "present and being pushed", "being deleted and pushed"];

pub(super) const SESSION: Machine = Machine {
    name: "session",
    states: &["none", "awaiting inventory", "draining", "ready", "superseded"],
    events: &["hello", "inventory", "reports", "heartbeat", "acknowledge", "connection lost"],
    impossible: &[
        Impossible {
            events: &["hello"],
            only: &["none", "awaiting inventory", "draining", "ready"],
            why: "a hello is met by the session of its site",
        },
        Impossible {
            events: &["inventory"],
            only: &["awaiting inventory", "superseded"],
            why: "an agent sends one inventory in a session, before all else",
        },
        Impossible {
            events: &["reports", "heartbeat"],
            only: &["draining", "ready", "superseded"],
            why: "an agent that has had no verdicts says nothing",
        },
        Impossible {
            events: &["acknowledge", "connection lost"],
            only: CONNECTED,
            why: "a connection and its session are forgotten together",
        },
    ],
};

pub(super) const EXECUTION: Machine = Machine {
    name: "execution",
    states: &[
        "waiting",
        "ready",
        "ready again",
        "placed",
        "dispatched",
        "dispatched ahead",
        "running",
        "being cancelled",
        "unknown",
        "succeeded",
        "failed",
        "cancelled",
        "run forgotten",
    ],
    events: &[
        "placed",
        "dispatched",
        "dispatched ahead",
        "started",
        "succeeds",
        "fails",
        "is cancelled",
        "given up",
        "returned: failed",
        "returned: interrupted",
        "returned: not started",
        "returned: lost",
        "returned: never sent",
        "returned: withdrawn",
        "returned: input unavailable",
        "returned: resolved",
        "returned: stopped",
        "crashed",
        "becomes unknown",
        "former adopted",
        "outcome superseded",
        "recompute ordered",
        "cancel ordered",
        "reported: started",
        "reported: own attempt started",
        "reported: other attempt started",
        "reported: succeeded",
        "reported: failed",
        "reported: cancelled",
        "reported: interrupted",
        "reported: not started",
        "reported: kept",
        "reported: tried again",
        "reported: own attempt ended",
        "reported: other attempt ended",
    ],
    impossible: &[
        Impossible {
            events: &["crashed", "returned: stopped"],
            only: GIVEN_TO_AN_AGENT,
            why: "only what an agent has, or may have, is cut off or stopped there",
        },
        Impossible {
            events: &["started"],
            only: &["dispatched", "dispatched ahead", "being cancelled"],
            why: "a start counts only for the current attempt, once",
        },
        Impossible {
            events: &["placed"],
            only: &["ready", "ready again"],
            why: "only what waits to be given out is placed",
        },
        Impossible {
            events: &["dispatched"],
            only: &["ready", "ready again", "placed", "dispatched", "running"],
            why: "what waits is given out, and what goes on is told again to a new journal, with what it waits for",
        },
        Impossible {
            events: &["dispatched ahead"],
            only: &["waiting", "ready", "ready again", "dispatched ahead", "running"],
            why: "what waits is given out, and what goes on is told again to a new journal, as what it was",
        },
        Impossible {
            events: &["returned: lost"],
            only: WITH_AN_AGENT,
            why: "only what was sent to an agent is lost with it, and what is being cancelled is given up",
        },
        Impossible {
            events: &["returned: never sent"],
            only: &["placed", "dispatched", "dispatched ahead"],
            why: "what was not sent has not begun",
        },
        Impossible {
            events: &["returned: input unavailable"],
            only: &["placed"],
            why: "only what waits for its inputs is taken back for want of them",
        },
        Impossible { events: &["returned: resolved"], only: &["unknown"], why: "people decide only what is unknown" },
        Impossible {
            events: &["becomes unknown"],
            only: WITH_AN_AGENT,
            why: "only what an agent has can have a fate that nobody knows, and what is being cancelled is given up",
        },
        Impossible {
            events: &["outcome superseded"],
            only: &[
                "waiting",
                "ready",
                "ready again",
                "placed",
                "dispatched",
                "dispatched ahead",
                "running",
                "being cancelled",
                "unknown",
                "succeeded",
                "failed",
                "cancelled",
            ],
            why: "of a forgotten run nothing is decided",
        },
        Impossible {
            events: &["recompute ordered"],
            only: &["succeeded"],
            why: "only outputs that were there are made again",
        },
        Impossible {
            events: &[
                "reported: started",
                "reported: succeeded",
                "reported: failed",
                "reported: cancelled",
                "reported: interrupted",
                "reported: not started",
            ],
            only: GIVEN_TO_AN_AGENT_OR_SO_SINCE_THE_BACKUP,
            why: "an agent tells of the current attempt only if it was given to it, perhaps after a backup was made",
        },
        Impossible {
            events: &["reported: own attempt started", "reported: own attempt ended"],
            only: &["waiting", "ready", "ready again"],
            why: "what the agent of a delegated step has told of once is an attempt like any other",
        },
        Impossible {
            events: &["succeeds", "fails"],
            only: GIVEN_TO_AN_AGENT_OR_SO_SINCE_THE_BACKUP,
            why: "the outcome that counts is that of the attempt which an agent has, or may have",
        },
        Impossible {
            events: &["is cancelled"],
            only: &["dispatched", "running", "being cancelled", "unknown"],
            why: "what nobody has is not cancelled by an agent; one with a delegated step ends all that it has when the run fails",
        },
        Impossible {
            events: &["given up"],
            only: &["ready", "ready again", "placed", "running", "being cancelled", "unknown"],
            why: "what waits for others has no elements yet, what was sent and has not begun is cancelled first, and what has ended is not given up",
        },
        Impossible {
            events: &["returned: failed", "returned: interrupted", "returned: not started"],
            only: &["dispatched", "dispatched ahead", "running", "unknown"],
            why: "only an attempt that an agent has, or may have, is followed by another, and none that is being cancelled",
        },
        Impossible {
            events: &["returned: withdrawn"],
            only: &["dispatched ahead", "running", "being cancelled", "unknown"],
            why: "only what waits at an agent for others is taken back from it",
        },
        Impossible {
            events: &["former adopted"],
            only: &[
                "waiting",
                "ready",
                "ready again",
                "placed",
                "dispatched",
                "dispatched ahead",
                "running",
                "being cancelled",
                "unknown",
            ],
            why: "an attempt that was given away, or of which a backup knows nothing, is adopted while no other has ended",
        },
        Impossible {
            events: &["cancel ordered"],
            only: &[
                "ready again",
                "dispatched",
                "dispatched ahead",
                "running",
                "unknown",
                "succeeded",
                "failed",
                "cancelled",
            ],
            why: "only what an agent has is cancelled there, once, or what it had before somebody decided that it runs again; \
                  what was placed waits no more when its run does not go on",
        },
    ],
};

pub(super) const OBJECT_IN_THE_BUCKET: Machine = Machine {
    name: "object in the bucket",
    states: &[
        "not known",
        "absent",
        "being pushed",
        "present",
        "present and being pushed",
        "being deleted",
        "being deleted and pushed",
        "being looked for",
    ],
    events: &[
        "uploaded",
        "fetched",
        "push ordered",
        "push cancelled",
        "push ended",
        "push failed: unavailable",
        "push failed: refused",
        "push failed: cancelled",
        "push failed: forbidden",
        "copy lost at a site",
        "copy found damaged",
        "released",
        "is deleted (heard)",
        "is looked for (heard)",
    ],
    impossible: &[
        Impossible {
            events: &["uploaded"],
            only: &["not known", "absent", "being pushed", "present", "present and being pushed"],
            why: "who sends in what is just being deleted is asked to send it again",
        },
        Impossible {
            events: &["push ordered"],
            only: &["absent", "being pushed", "present and being pushed", "being deleted and pushed"],
            why: "a push is ordered of what is not in the bucket and not on its way, and told again to a new journal",
        },
        Impossible {
            events: &[
                "push cancelled",
                "push ended",
                "push failed: unavailable",
                "push failed: refused",
                "push failed: cancelled",
                "push failed: forbidden",
            ],
            only: PUSHED,
            why: "an object knows the push that moves it",
        },
        Impossible {
            events: &["copy lost at a site"],
            only: &[
                "absent",
                "being pushed",
                "present",
                "present and being pushed",
                "being deleted",
                "being deleted and pushed",
                "being looked for",
            ],
            why: "of what nobody knows no copy is missed",
        },
        Impossible {
            events: &["copy found damaged"],
            only: &["present", "present and being pushed"],
            why: "a copy in the bucket is found damaged only while it counts",
        },
        Impossible {
            events: &["released"],
            only: &["present"],
            why: "only what is there, and is not on its way, is released",
        },
    ],
};

pub(super) const TRANSFER: Machine = Machine {
    name: "transfer",
    states: &["none", "ordered", "cancelled"],
    events: &[
        "push ordered",
        "push cancelled",
        "push ended",
        "push failed: unavailable",
        "push failed: refused",
        "push failed: cancelled",
    ],
    impossible: &[
        Impossible {
            events: &["push ordered"],
            only: &["none", "ordered"],
            why: "a push that was cancelled is not told again to a new journal: it is over",
        },
        Impossible { events: &["push cancelled"], only: &["ordered"], why: "it is cancelled once" },
        Impossible {
            events: &["push ended", "push failed: unavailable", "push failed: refused", "push failed: cancelled"],
            only: &["ordered", "cancelled"],
            why: "what is over does not end again",
        },
    ],
};
