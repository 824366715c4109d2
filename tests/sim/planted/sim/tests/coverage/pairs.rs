//! The machines, their states and events, and the pairs that cannot be.

/// A machine of one of the cores.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) states: &'static [&'static str],
    pub(crate) events: &'static [&'static str],
    pub(crate) impossible: &'static [Impossible],
}

/// Events that meet only some states.
#[derive(Debug)]
pub(crate) struct Impossible {
    pub(crate) events: &'static [&'static str],
    /// The only states that they can meet.
    pub(crate) only: &'static [&'static str],
    pub(crate) why: &'static str,
}

impl Machine {
    pub(crate) fn why_impossible(&self, state: &str, event: &str) -> Option<&'static str> {
        let rule = self.impossible.iter().find(|rule| rule.events.contains(&event) && !rule.only.contains(&state));
        rule.map(|rule| rule.why)
    }
}

pub(crate) const MACHINES: &[Machine] = &[
    Machine {
        name: "session",
        states: &["none", "awaiting inventory", "draining", "ready", "superseded"],
        events: &["hello", "inventory", "reports", "heartbeat", "acknowledge", "connection lost"],
        impossible: &[],
    },
    Machine {
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
            "becomes unknown",
            "former adopted",
            "outcome superseded",
            "recompute ordered",
            "cancel ordered",
            "reported: started",
            "reported: other attempt started",
            "reported: succeeded",
            "reported: failed",
            "reported: cancelled",
            "reported: interrupted",
            "reported: not started",
            "reported: other attempt ended",
        ],
        impossible: &[
            Impossible {
                events: &["started"],
                only: &["dispatched", "dispatched ahead", "being cancelled"],
                why: "a start counts only for the current attempt, once",
            },
            Impossible {
                events: &["becomes unknown"],
                only: &["dispatched", "dispatched ahead", "running", "being cancelled"],
                why: "only what an agent has can have a fate that nobody knows",
            },
            Impossible {
                events: &["returned: resolved"],
                only: &["unknown"],
                why: "people decide only what is unknown",
            },
            Impossible {
                events: &["recompute ordered"],
                only: &["succeeded"],
                why: "only outputs that were there are made again",
            },
        ],
    },
    Machine {
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
            "copy lost at a site",
            "copy found damaged",
            "released",
            "is deleted (heard)",
            "is looked for (heard)",
        ],
        impossible: &[],
    },
    Machine {
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
            Impossible { events: &["push cancelled"], only: &["ordered"], why: "it is cancelled once" },
            Impossible {
                events: &["push ended", "push failed: unavailable", "push failed: refused", "push failed: cancelled"],
                only: &["ordered", "cancelled"],
                why: "what is over does not end again",
            },
        ],
    },
    Machine {
        name: "agent's session",
        states: &["offline", "greeting", "comparing", "agreed"],
        events: &["connected", "disconnected", "welcome", "verdicts", "commands", "ready", "acknowledge", "goodbye"],
        impossible: &[],
    },
    Machine {
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
            "dropped",
        ],
        impossible: &[
            Impossible {
                events: &["start intended"],
                only: &["ready"],
                why: "only what lacks nothing but room is started",
            },
            Impossible {
                events: &["found by a new journal"],
                only: &["not known"],
                why: "a new journal knows nothing",
            },
        ],
    },
    Machine {
        name: "agent's fetch",
        states: &["not wanted", "locating", "fetching", "cancelled", "pausing"],
        events: &["located: there", "located: not there", "fetched", "fetch failed"],
        impossible: &[],
    },
    Machine {
        name: "agent's push",
        states: &["none", "ordered", "cancelled"],
        events: &["push ordered", "push cancelled", "pushed", "push failed"],
        impossible: &[],
    },
];
