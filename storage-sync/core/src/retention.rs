//! What the bucket keeps.

/// Who may still need an object in the bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Steps of live runs that read what made it and have not ended.
    pub unfinished_readers: u32,
    /// A live run has a rule that keeps it in the bucket.
    pub kept_by_rule: bool,
    /// A person waits for it, or has sent it in for a run to come.
    pub held: bool,
    /// A push of it is on its way.
    pub transfer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Keep,
    Delete,
}

/// Decides whether an object stays in the bucket.
pub fn retain(needs: Needs) -> Retention {
    if needs.unfinished_readers > 0 || needs.kept_by_rule || needs.held || needs.transfer {
        Retention::Keep
    } else {
        Retention::Delete
    }
}

/// Who may still need the copy of an object at one site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyNeeds {
    /// An execution that is there reads it, or it is on its way from there.
    pub in_use: bool,
    /// A rule, or a person, wants it there.
    pub kept_there: bool,
    /// Somebody needs a copy, wherever it is: a step of a live run, who may ask for an output, a rule, a person.
    pub needed: bool,
    /// Copies elsewhere that can be had, and stay.
    pub others: u32,
}

/// Why a copy may not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    InUse,
    KeptThere,
    LastCopy,
}

/// Decides whether a site may let go of its copy.
///
/// # Errors
/// Why it may not.
pub fn may_evict(needs: CopyNeeds) -> Result<(), Stays> {
    match needs {
        CopyNeeds { in_use: true, .. } => Err(Stays::InUse),
        CopyNeeds { kept_there: true, .. } => Err(Stays::KeptThere),
        CopyNeeds { needed: true, others: 0, .. } => Err(Stays::LastCopy),
        CopyNeeds { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_copy_of_what_is_needed_stays_and_others_go_where_nothing_is_done_with_them() {
        let needed = CopyNeeds { needed: true, ..CopyNeeds::default() };
        assert_eq!(may_evict(needed), Err(Stays::LastCopy));
        assert_eq!(may_evict(CopyNeeds { others: 1, ..needed }), Ok(()));
        assert_eq!(may_evict(CopyNeeds { others: 1, in_use: true, ..needed }), Err(Stays::InUse));
        assert_eq!(may_evict(CopyNeeds { others: 1, kept_there: true, ..needed }), Err(Stays::KeptThere));
        assert_eq!(may_evict(CopyNeeds::default()), Ok(()));
    }

    #[test]
    fn what_nobody_needs_goes() {
        assert_eq!(retain(Needs::default()), Retention::Delete);
    }

    #[test]
    fn each_need_alone_keeps_an_object() {
        for needs in [
            Needs { unfinished_readers: 1, ..Needs::default() },
            Needs { kept_by_rule: true, ..Needs::default() },
            Needs { held: true, ..Needs::default() },
            Needs { transfer: true, ..Needs::default() },
        ] {
            assert_eq!(retain(needs), Retention::Keep, "{needs:?}");
        }
    }
}
