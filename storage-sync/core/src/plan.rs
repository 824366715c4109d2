//! How an object reaches a site.

use atoll_model::id::SiteId;
/// A site that has a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    pub site: SiteId,
    pub reach: Reach,
    /// As far as is known, the destination's agent can fetch it from the one there.
    pub direct: bool,
    /// The policy of the site's own administrator does not let the object leave for the bucket.
    pub withheld: bool,
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

/// What the rules say of an object on its way to one destination; `R` names a rule. Nothing where no rule is against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vetoes<R> {
    /// It may not be at the destination.
    pub destination: Option<R>,
    /// Whatever reads it runs where it is.
    pub leaving: Option<R>,
    pub bucket: Option<R>,
    pub direct: Option<R>,
    /// By way of the bucket rather than straight, where both are to be had.
    pub bucket_first: bool,
}

impl<R> Default for Vetoes<R> {
    fn default() -> Self {
        Self { destination: None, leaving: None, bucket: None, direct: None, bucket_first: false }
    }
}

/// What is known of an object.
#[derive(Debug, Clone, Copy)]
pub struct Knowledge<'a, R> {
    /// In the order in which they are to be asked.
    pub holders: &'a [Holder],
    pub bucket: InBucket,
    /// A push of it is on its way.
    pub transfer: bool,
    pub vetoes: Vetoes<R>,
}

/// What is to be done so that a site has an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan<R> {
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
    /// This rule keeps it from going there.
    Forbidden(R),
    /// This rule closes one way, and the other is not to be had: sites that can reach each other may come to have it.
    Closed(R),
    /// The policy of this site, which has it, does not let it leave.
    Withheld(SiteId),
    /// No copy is left anywhere.
    Unavailable,
}

/// Plans how `destination` gets an object.
pub fn plan<R: Copy>(destination: SiteId, known: &Knowledge<'_, R>) -> Plan<R> {
    let here = known.holders.iter().find(|holder| holder.site == destination);
    if here.is_some_and(|holder| holder.reach != Reach::Gone) {
        return Plan::Present;
    }
    let vetoes = &known.vetoes;
    if let Some(rule) = vetoes.destination {
        return Plan::Forbidden(rule);
    }
    // What is in the bucket got there before a rule was against it.
    if known.bucket == InBucket::Present {
        return Plan::InBucket;
    }
    if let Some(rule) = vetoes.leaving {
        return Plan::Forbidden(rule);
    }
    if known.transfer {
        return Plan::Wait;
    }
    let mut connected = known.holders.iter().filter(|holder| holder.reach == Reach::Connected);
    let direct = connected.clone().find(|holder| holder.direct && vetoes.direct.is_none());
    let pushing = connected.find(|holder| !holder.withheld).filter(|_| vetoes.bucket.is_none());
    match (direct, pushing) {
        (Some(holder), None) => return Plan::DirectFrom(holder.site),
        (Some(holder), Some(_)) if !vetoes.bucket_first => return Plan::DirectFrom(holder.site),
        (_, Some(_)) if known.bucket == InBucket::Deleting => return Plan::Wait,
        (_, Some(holder)) => return Plan::PushFrom(holder.site),
        (None, None) => {}
    }
    let left = |holder: &&Holder| holder.reach != Reach::Gone;
    match (known.holders.iter().find(left), vetoes.bucket) {
        (None, _) => Plan::Unavailable,
        (Some(_), _)
            if known.holders.iter().any(|holder| left(&holder) && !holder.withheld && holder.reach == Reach::Away) =>
        {
            Plan::Wait
        }
        (Some(holder), _) if known.holders.iter().filter(left).all(|holder| holder.withheld) => {
            Plan::Withheld(holder.site)
        }
        (Some(_), Some(rule)) => Plan::Closed(rule),
        (Some(_), None) => Plan::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SiteId = SiteId(1);
    const THERE: SiteId = SiteId(2);

    fn holder(site: SiteId, reach: Reach, direct: bool) -> Holder {
        Holder { site, reach, direct, withheld: false }
    }

    fn check(
        holders: &[(SiteId, Reach)],
        bucket: InBucket,
        change: impl FnOnce(&mut Knowledge<'_, u16>),
        expected: Plan<u16>,
    ) {
        let holders: Vec<_> = holders.iter().map(|(site, reach)| holder(*site, *reach, false)).collect();
        let mut known = Knowledge { holders: &holders, bucket, transfer: false, vetoes: Vetoes::default() };
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
            holder(SiteId(3), Reach::Away, true),
            holder(SiteId(4), Reach::Connected, false),
            holder(THERE, Reach::Connected, true),
        ];
        let vetoes = Vetoes::<u16>::default();
        let known = Knowledge { holders: &holders, bucket: InBucket::Absent, transfer: false, vetoes };
        assert_eq!(plan(HERE, &known), Plan::DirectFrom(THERE));
        assert_eq!(plan(HERE, &Knowledge { bucket: InBucket::Deleting, ..known }), Plan::DirectFrom(THERE));
        assert_eq!(plan(HERE, &Knowledge { bucket: InBucket::Present, ..known }), Plan::InBucket);
        assert_eq!(plan(HERE, &Knowledge { transfer: true, ..known }), Plan::Wait);
        let kept_away = Vetoes { destination: Some(1), ..vetoes };
        assert_eq!(plan(HERE, &Knowledge { vetoes: kept_away, ..known }), Plan::Forbidden(1));
        let past_the_bucket = Vetoes { bucket: Some(1), ..vetoes };
        assert_eq!(plan(HERE, &Knowledge { vetoes: past_the_bucket, ..known }), Plan::DirectFrom(THERE));
        let over_the_bucket = Vetoes { direct: Some(1), ..vetoes };
        assert_eq!(plan(HERE, &Knowledge { vetoes: over_the_bucket, ..known }), Plan::PushFrom(SiteId(4)));
        let bucket_first = Vetoes { bucket_first: true, ..vetoes };
        assert_eq!(plan(HERE, &Knowledge { vetoes: bucket_first, ..known }), Plan::PushFrom(SiteId(4)));
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
        let forbidden = |known: &mut Knowledge<'_, u16>| known.vetoes.destination = Some(4);
        check(&holders, InBucket::Absent, forbidden, Plan::Forbidden(4));
        check(&holders, InBucket::Present, forbidden, Plan::Forbidden(4));
        check(&holders, InBucket::Absent, |known| known.vetoes.leaving = Some(2), Plan::Forbidden(2));
        check(&holders, InBucket::Absent, |known| known.vetoes.bucket = Some(3), Plan::Closed(3));
        let away = [(THERE, Reach::Away)];
        check(&away, InBucket::Absent, |known| known.vetoes.bucket = Some(3), Plan::Wait);
    }

    #[test]
    fn what_every_holder_withholds_is_not_asked_for_again() {
        let kept = Holder { withheld: true, ..holder(THERE, Reach::Connected, false) };
        let away = holder(SiteId(3), Reach::Away, true);
        let known = |holders: &[Holder]| {
            let vetoes = Vetoes::<u16>::default();
            plan(HERE, &Knowledge { holders, bucket: InBucket::Absent, transfer: false, vetoes })
        };
        assert_eq!(known(&[kept]), Plan::Withheld(THERE));
        assert_eq!(known(&[Holder { direct: true, ..kept }]), Plan::DirectFrom(THERE));
        assert_eq!(known(&[kept, away]), Plan::Wait);
        assert_eq!(known(&[Holder { reach: Reach::Away, ..kept }]), Plan::Withheld(THERE));
        assert_eq!(known(&[kept, holder(SiteId(4), Reach::Connected, false)]), Plan::PushFrom(SiteId(4)));
    }
}
