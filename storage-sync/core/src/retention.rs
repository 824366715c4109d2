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

#[cfg(test)]
mod tests {
    use super::*;

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
