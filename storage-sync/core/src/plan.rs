//! How an object reaches a site.

use atoll_model::id::SiteId;
use atoll_model::placement::PushMode;

use crate::rules::PushRule;

/// A site that has a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    pub site: SiteId,
    pub reach: Reach,
    /// As far as is known, the destination's agent can fetch it from the one there.
    pub direct: bool,
}

/// Whether a holder can be asked for its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Connected,
    /// Not now, but it is expected back.
    Away,
    /// Lost or revoked: not to be waited for.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InBucket {
    Absent,
    Present,
    /// Being deleted: a push now could be deleted with it.
    Deleting,
}

/// What is known of an object.
#[derive(Debug, Clone, Copy)]
pub struct Knowledge<'a> {
    /// In the order in which they are to be asked.
    pub holders: &'a [Holder],
    pub bucket: InBucket,
    /// A push of it is on its way.
    pub transfer: bool,
    /// The first rule that confines it, if any: then it never enters the bucket.
    pub confined_by: Option<u16>,
    pub push: PushRule,
}

/// What is to be done so that a site has an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// It is there.
    Present,
    /// The site fetches it from the bucket.
    InBucket,
    /// The site fetches it from this one.
    DirectFrom(SiteId),
    /// This site is to push it to the bucket first.
    PushFrom(SiteId),
    /// Nothing now: a push or a deletion is on its way, or a holder is expected back.
    Wait,
    /// This rule (by its place, from 0) keeps it from going there.
    Forbidden(u16),
    /// No copy is left anywhere.
    Unavailable,
}

/// Plans how `destination` gets an object.
pub fn plan(destination: SiteId, known: &Knowledge<'_>) -> Plan {
    let here = known.holders.iter().find(|holder| holder.site == destination);
    if here.is_some_and(|holder| holder.reach != Reach::Gone) {
        return Plan::Present;
    }
    if known.bucket == InBucket::Present {
        return Plan::InBucket;
    }
    let forbidding = known.confined_by.or(match known.push.mode {
        PushMode::Never => known.push.rule,
        PushMode::WhenNeeded | PushMode::Eager | PushMode::OnSuccess => None,
    });
    if let Some(rule) = forbidding {
        return Plan::Forbidden(rule);
    }
    if known.transfer {
        return Plan::Wait;
    }
    let direct = known.holders.iter().find(|holder| holder.direct && holder.reach == Reach::Connected);
    if let Some(holder) = direct {
        return Plan::DirectFrom(holder.site);
    }
    let connected = known.holders.iter().find(|holder| holder.reach == Reach::Connected);
    let away = known.holders.iter().any(|holder| holder.reach == Reach::Away);
    match connected {
        Some(_) if known.bucket == InBucket::Deleting => Plan::Wait,
        Some(holder) => Plan::PushFrom(holder.site),
        None if away => Plan::Wait,
        None => Plan::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SiteId = SiteId(1);
    const THERE: SiteId = SiteId(2);

    fn check(holders: &[(SiteId, Reach)], bucket: InBucket, change: impl FnOnce(&mut Knowledge<'_>), expected: Plan) {
        let holders: Vec<_> =
            holders.iter().map(|(site, reach)| Holder { site: *site, reach: *reach, direct: false }).collect();
        let mut known =
            Knowledge { holders: &holders, bucket, transfer: false, confined_by: None, push: PushRule::default() };
        change(&mut known);
        assert_eq!(plan(HERE, &known), expected);
    }

    #[test]
    fn what_is_there_needs_nothing() {
        check(&[(HERE, Reach::Connected)], InBucket::Present, |_| {}, Plan::Present);
    }

    #[test]
    fn what_is_in_the_bucket_is_not_pushed_again() {
        check(&[(THERE, Reach::Connected)], InBucket::Present, |_| {}, Plan::InBucket);
    }

    #[test]
    fn a_connected_holder_pushes_and_one_push_is_enough() {
        let holders = [(SiteId(3), Reach::Away), (THERE, Reach::Connected)];
        check(&holders, InBucket::Absent, |_| {}, Plan::PushFrom(THERE));
        check(&holders, InBucket::Absent, |known| known.transfer = true, Plan::Wait);
    }

    #[test]
    fn a_holder_that_can_be_reached_is_asked_instead_of_the_bucket() {
        let holders = [
            Holder { site: SiteId(3), reach: Reach::Away, direct: true },
            Holder { site: SiteId(4), reach: Reach::Connected, direct: false },
            Holder { site: THERE, reach: Reach::Connected, direct: true },
        ];
        let known = Knowledge {
            holders: &holders,
            bucket: InBucket::Absent,
            transfer: false,
            confined_by: None,
            push: PushRule::default(),
        };
        assert_eq!(plan(HERE, &known), Plan::DirectFrom(THERE));
        assert_eq!(plan(HERE, &Knowledge { bucket: InBucket::Deleting, ..known }), Plan::DirectFrom(THERE));
        assert_eq!(plan(HERE, &Knowledge { bucket: InBucket::Present, ..known }), Plan::InBucket);
        assert_eq!(plan(HERE, &Knowledge { transfer: true, ..known }), Plan::Wait);
        assert_eq!(plan(HERE, &Knowledge { confined_by: Some(1), ..known }), Plan::Forbidden(1));
    }

    #[test]
    fn nothing_is_pushed_while_a_deletion_is_not_confirmed() {
        check(&[(THERE, Reach::Connected)], InBucket::Deleting, |_| {}, Plan::Wait);
    }

    #[test]
    fn a_holder_that_is_away_is_waited_for_and_one_that_is_gone_is_not() {
        check(&[(THERE, Reach::Away)], InBucket::Absent, |_| {}, Plan::Wait);
        check(&[(THERE, Reach::Gone)], InBucket::Absent, |_| {}, Plan::Unavailable);
        check(&[(HERE, Reach::Gone)], InBucket::Absent, |_| {}, Plan::Unavailable);
        check(&[], InBucket::Absent, |_| {}, Plan::Unavailable);
    }

    #[test]
    fn confined_data_and_data_that_is_never_pushed_stay() {
        let holders = [(THERE, Reach::Connected)];
        check(&holders, InBucket::Absent, |known| known.confined_by = Some(4), Plan::Forbidden(4));
        let never = PushRule { mode: PushMode::Never, rule: Some(2) };
        check(&holders, InBucket::Absent, |known| known.push = never, Plan::Forbidden(2));
    }
}
