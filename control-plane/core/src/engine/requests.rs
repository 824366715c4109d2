//! Requests of people and shells, each answered once.

use crate::control_plane::ControlPlane;
use crate::event::{Request, RequestId};

use super::submit::Submission;

impl ControlPlane {
    pub(crate) fn request(&mut self, request: RequestId, body: Request) {
        let result = match body {
            Request::Submit { run, workflow, source, inputs, submitted_by, traceparent, tags } => {
                self.submit(Submission { run, workflow, source, inputs, submitted_by, traceparent, tags })
            }
            Request::CancelRun { run, reason } => self.cancel_run(run, reason),
            Request::CreateToken { token, secret_hash, site, labels, lifetime } => {
                self.create_token(token, secret_hash, site, labels, lifetime)
            }
            Request::Enrol { token, secret_hash, identity_key, agent } => {
                self.enrol(token, secret_hash, identity_key, agent)
            }
            Request::RenewCertificate { agent, join_counter } => self.renew_certificate(agent, join_counter),
            Request::RecoverIdentity { agent, identity_key, join_counter } => {
                self.recover_identity(agent, identity_key, join_counter)
            }
            Request::DrainSite { site, drained } => self.drain_site(&site, drained),
            Request::RevokeSite { site, reason } => self.revoke_site(&site, reason),
            Request::DeclareLost { site } => self.declare_site_lost(&site),
            Request::RemoveSite { site } => self.remove_site(&site),
            Request::AuthoriseFetch { agent, object } => self.authorise_fetch(agent, object),
            Request::Advertise { agent, addresses, relays } => self.advertise(agent, addresses, relays),
            Request::Offers { agent, object } => self.offers(agent, object),
            Request::OfferFailed { agent, object, holder } => self.offer_failed(agent, object, holder),
            Request::AuthorisePush { agent, transfer } => self.authorise_push(agent, transfer),
            Request::BucketFault { agent, object, message } => self.bucket_fault(agent, object, message),
            Request::RecordUpload { object, key } => self.record_upload(object, key),
            Request::KeepProjectKey { key, wrapped, instead_of } => {
                self.keep_project_key(key, wrapped, instead_of.as_ref())
            }
            Request::StageForClient { run, object, hold, kept } => {
                return self.stage_for_client(request, (run, kept), object, hold);
            }
            Request::PinObject { object, at, by } => self.pin_object(object, &at, &by),
            Request::UnpinObject { object, at } => self.unpin_object(object, &at),
            Request::EvictObject { object, site } => self.evict_object(object, site.as_ref()),
            Request::LetExpiredGo { object } => self.let_expired_go(object),
            Request::VerifySite { site, objects } => self.verify_site(&site, &objects),
            Request::RecordDownload { run, object, bytes } => self.record_download(run, object, bytes),
            Request::SetProject { project, change } => self.set_project(&project, &change),
            Request::ApplyPolicy { application } => self.apply_policy(*application),
            Request::PushAction { name, version } => self.push_action(name, *version),
            Request::DeprecateAction { name, advice } => self.deprecate_action(name, advice),
            Request::RemoveAction { name } => self.remove_action(name),
            Request::AddRepository { name, source, every, by } => self.add_repository(name, source, every, by),
            Request::RemoveRepository { name } => self.remove_repository(name),
            Request::LookAtRepository { name, mode, by } => self.look_at_repository(name, mode, by),
            Request::CancelImport { name, by } => self.cancel_import(name, by),
            Request::ImportEnded { name, number, report } => self.import_ended(name, number, *report),
            Request::PushImported { number, name, version, origin } => {
                self.push_imported(number, name, *version, *origin)
            }
            Request::DeployWorkflow { name, deployed } => self.deploy_workflow(name, *deployed),
            Request::UndeployWorkflow { name } => self.undeploy_workflow(name),
            Request::Emit { agent, execution, attempt, records } => self.emit(agent, (execution, attempt), records),
            Request::NoteRestored => self.note_restored(),
            Request::ResolveUnknown { execution, run_again } => self.resolve_unknown(execution, run_again),
        };
        self.reply(request, result);
    }
}
