//! Signatures of bundles, verified before anything relies on them.

use atoll_model::session::{ControlBody, ControlFrame, SiteCommand, TemplateWork};
use storage_sync_engine::signature::is_valid;

/// Drops the signatures in a frame that do not hold. What is left of them the site's own policy may trust.
pub(super) fn drop_false(frame: &mut ControlFrame) {
    let ControlBody::Commands { commands, .. } = &mut frame.body else { return };
    for command in commands {
        let work = match command {
            SiteCommand::Prepare(template) | SiteCommand::MakeReady(template) => &mut template.work,
            SiteCommand::Delegate(delegation) => &mut delegation.template.work,
            SiteCommand::Dispatch(_)
            | SiteCommand::Cancel { .. }
            | SiteCommand::Push { .. }
            | SiteCommand::CancelPush { .. }
            | SiteCommand::Forget { .. }
            | SiteCommand::Evict { .. }
            | SiteCommand::ProposeEviction { .. }
            | SiteCommand::Verify { .. }
            | SiteCommand::Unknown { .. }
            | SiteCommand::Withdraw { .. }
            | SiteCommand::Replicate { .. } => continue,
        };
        let (TemplateWork::SignedCommand { bundle, signatures, .. }
        | TemplateWork::Python { bundle, signatures }
        | TemplateWork::Container { bundle, signatures }
        | TemplateWork::Wasm { bundle, signatures }) = work
        else {
            continue;
        };
        signatures.retain(|signature| {
            let holds = is_valid(signature, bundle.id);
            if !holds {
                tracing::warn!(key = %signature.key, bundle = %bundle.id, "a signature does not hold, and counts for nothing");
            }
            holds
        });
    }
}

#[cfg(test)]
mod tests {
    use atoll_model::action::BundleSignature;
    use atoll_model::id::{CommandSeq, Epoch, ObjectId, ReportSeq, RunId, StepIndex};
    use atoll_model::session::{Origin, StepTemplate};
    use atoll_model::value::{ObjectKind, ObjectRef};
    use storage_sync_engine::signature::SigningKey;

    use super::*;

    #[test]
    fn only_signatures_that_hold_are_taken_in() {
        let der = SigningKey::generate_pkcs8().expect("randomness");
        let key = SigningKey::from_pkcs8(&der).expect("a key");
        let bundle = ObjectRef { id: ObjectId::from_digest([1; 32]), kind: ObjectKind::Tree, bytes: 10 };
        let holds = key.sign(bundle.id);
        let of_another = key.sign(ObjectId::from_digest([2; 32]));
        let forged = BundleSignature::from_bytes(key.public_key(), &[7; 64]).expect("64 bytes");
        let template = StepTemplate {
            run: RunId::from_bits(1),
            step: StepIndex(0),
            step_name: "a".to_owned(),
            workflow: "w".to_owned(),
            work: TemplateWork::SignedCommand {
                command: vec!["x".to_owned()],
                bundle,
                signatures: vec![of_another, holds, forged],
            },
            resources: Default::default(),
            outputs: Vec::new(),
            bindings: Vec::new(),
            environment: Vec::new(),
            start: Default::default(),
            on_disconnect: Default::default(),
            priority: 0,
            origin: Origin::default(),
        };
        let commands = vec![SiteCommand::Prepare(Box::new(template))];
        let body = ControlBody::Commands { first: CommandSeq(1), commands };
        let mut frame = ControlFrame { epoch: Epoch(1), acknowledged: ReportSeq(0), lease: None, body };
        drop_false(&mut frame);
        let ControlBody::Commands { commands, .. } = frame.body else { panic!("commands stay commands") };
        let [SiteCommand::Prepare(template)] = commands.as_slice() else { panic!("{commands:?}") };
        assert_eq!(template.work.signatures(), [holds]);
    }
}
