//! Objects, and what crossed a border.

use atoll_model::value::ObjectRef;
use control_plane_core::view::{
    ExpiryState, ExpiryView, LedgerView, ObjectRow, ObjectView, PinView, VerificationView, WantedCopiesView,
    WantedState,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{object_kind, time};

/// One crossing of a border.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LedgerEntryBody {
    pub(crate) object: String,
    pub(crate) bytes: u64,
    /// A site's name, `bucket`, or `client`.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) route: String,
    pub(crate) for_execution: Option<String>,
    pub(crate) run: Option<String>,
    /// Which rule asked for it, or `when-needed`.
    pub(crate) rule: String,
    pub(crate) at: String,
}

impl LedgerEntryBody {
    pub(crate) fn new(view: &LedgerView) -> Self {
        Self {
            object: view.object.to_string(),
            bytes: view.bytes,
            from: view.from.clone(),
            to: view.to.clone(),
            route: view.route.clone(),
            for_execution: view.for_execution.map(|execution| execution.to_string()),
            run: view.run.map(|run| run.to_string()),
            rule: view.rule.clone(),
            at: time(view.at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LedgerBody {
    entries: Vec<LedgerEntryBody>,
    bytes_total: u64,
}

impl LedgerBody {
    pub(crate) fn new(entries: &[LedgerView]) -> Self {
        Self {
            entries: entries.iter().map(LedgerEntryBody::new).collect(),
            bytes_total: entries.iter().map(|entry| entry.bytes).sum(),
        }
    }
}

/// Where an object is, and how it came there.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ObjectBody {
    object: String,
    /// `file` or `tree`.
    kind: &'static str,
    bytes: u64,
    /// Names of sites, and `bucket`.
    replicas: Vec<String>,
    /// The key by which the copy in the bucket is encrypted.
    encrypted: Option<String>,
    ledger: Vec<LedgerEntryBody>,
    /// The only sites that it may be at; nothing if it may be anywhere.
    confined_to: Option<Vec<String>>,
    /// Every rule that bears on it, by file and line.
    rules: Vec<String>,
    /// What sites said whose own policy does not let it leave.
    withheld: Vec<String>,
    pins: Vec<PinBody>,
    /// Why a copy of it stays somewhere, if one must.
    needed: Option<String>,
    /// What rules want of copies at several sites, and what there is.
    copies: Vec<String>,
    /// The same of each rule, as a state.
    wanted: Vec<WantedCopiesBody>,
    /// When its time is over, if a rule says so.
    expiry: Option<ExpiryBody>,
    /// Runs that know it.
    runs: Vec<String>,
}

/// What became of copies that a rule wants.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WantedCopiesBody {
    rule: String,
    copies: u32,
    there: u32,
    /// `ok`, `in-progress`, `stuck`, or `violated` where they are not there in time.
    state: &'static str,
    reason: Option<String>,
    /// When that was made of which there are too few.
    since: Option<String>,
    /// When they have to be there (`within`).
    due: Option<String>,
}

impl WantedCopiesBody {
    fn new(view: &WantedCopiesView) -> Self {
        Self {
            rule: view.rule.clone(),
            copies: view.copies,
            there: view.there,
            state: match view.state {
                WantedState::Ok => "ok",
                WantedState::InProgress => "in-progress",
                WantedState::Stuck => "stuck",
                WantedState::Violated => "violated",
            },
            reason: view.reason.clone(),
            since: view.since.map(time),
            due: view.due.map(time),
        }
    }
}

/// When the time of an object is over, by the rule that says the latest.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExpiryBody {
    rule: String,
    /// `delete` or `ask`.
    then: &'static str,
    /// Nothing as long as its run goes on.
    at: Option<String>,
    /// `pending`, `held` by another rule, `asking` where somebody is to decide, or `going`.
    state: &'static str,
    /// What keeps it all the same.
    waits_for: Vec<String>,
}

impl ExpiryBody {
    fn new(view: &ExpiryView) -> Self {
        Self {
            rule: view.rule.clone(),
            then: if view.deletes { "delete" } else { "ask" },
            at: view.at.map(time),
            state: match view.state {
                ExpiryState::Pending => "pending",
                ExpiryState::Held => "held",
                ExpiryState::Asking => "asking",
                ExpiryState::Going => "going",
            },
            waits_for: view.waits_for.clone(),
        }
    }
}

/// Somebody wants a copy to stay.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PinBody {
    /// The name of a site, `bucket`, or `anywhere`.
    at: String,
    by: String,
    since: String,
}

impl PinBody {
    fn new(view: &PinView) -> Self {
        Self { at: view.at.clone(), by: view.by.clone(), since: time(view.since) }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ObjectsBody {
    objects: Vec<ObjectRowBody>,
    /// What to give as `after` for more; nothing at the end.
    next: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ObjectRowBody {
    object: String,
    /// `file` or `tree`.
    kind: &'static str,
    bytes: u64,
    /// Names of sites, and `bucket`.
    replicas: Vec<String>,
    pins: Vec<PinBody>,
    /// When its time is over, if a rule says so.
    expiry: Option<ExpiryBody>,
}

impl ObjectsBody {
    pub(crate) fn new(rows: &[ObjectRow], limit: usize) -> Self {
        let row = |row: &ObjectRow| ObjectRowBody {
            object: row.object.id.to_string(),
            kind: object_kind(row.object.kind),
            bytes: row.object.bytes,
            replicas: row.replicas.clone(),
            pins: row.pins.iter().map(PinBody::new).collect(),
            expiry: row.expiry.as_ref().map(ExpiryBody::new),
        };
        let next = rows.last().filter(|_| rows.len() >= limit).map(|last| last.object.id.to_string());
        Self { objects: rows.iter().map(row).collect(), next }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VerificationBody {
    asked_at: String,
    /// Nothing while it goes on.
    ended_at: Option<String>,
    files: u64,
    bytes: u64,
    /// Objects that were found damaged, and are out of use.
    damaged: u64,
}

impl VerificationBody {
    pub(crate) fn new(view: &VerificationView) -> Self {
        Self {
            asked_at: time(view.asked_at),
            ended_at: view.ended_at.map(time),
            files: view.files,
            bytes: view.bytes,
            damaged: view.damaged,
        }
    }
}

impl ObjectBody {
    pub(crate) fn new(view: &ObjectView) -> Self {
        let ObjectRef { id, kind, bytes } = view.object;
        Self {
            object: id.to_string(),
            kind: object_kind(kind),
            bytes,
            replicas: view.replicas.clone(),
            encrypted: view.encrypted.clone(),
            ledger: view.ledger.iter().map(LedgerEntryBody::new).collect(),
            pins: view.pins.iter().map(PinBody::new).collect(),
            needed: view.needed.clone(),
            copies: view.copies.clone(),
            wanted: view.wanted.iter().map(WantedCopiesBody::new).collect(),
            expiry: view.expiry.as_ref().map(ExpiryBody::new),
            runs: view.runs.iter().map(ToString::to_string).collect(),
            confined_to: view.confined_to.as_ref().map(|sites| sites.iter().map(ToString::to_string).collect()),
            rules: view.rules.clone(),
            withheld: view.withheld.iter().map(|(site, said)| format!("{site}: {said}")).collect(),
        }
    }
}
