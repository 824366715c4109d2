//! What the executions of a step have in common, made once for all of them, and what is handed over of each.

use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use atoll_model::session::{StepTemplate, TemplateWork};
use site_agent_core::command::StartInput;
use site_agent_core::event::NodeId;

use super::actions::ReadyAction;
use super::components::INPUTS_VARIABLE;
use super::containers::ContainerEngine;
use super::services::{name_of, on_machine};
use super::slot::StepKey;
use super::{Local, orders, python};
use crate::accounts::AccountError;
use crate::shim::account::Account;
use crate::shim::container::INPUTS;
use crate::shim::protocol::{Common, Key, Order, Terms};
use crate::telemetry::process_context;

/// Whose it is: that of the executions of a step, but where the memory of some has grown since they ran out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommonOf {
    step: StepKey,
    memory_bytes: Option<u64>,
}

impl Local {
    /// What is handed over of an execution.
    pub(super) fn prepare(
        &mut self,
        key: Key,
        template: &StepTemplate,
        inputs: &[StartInput],
        action: Option<&ReadyAction>,
    ) -> Result<(Arc<Common>, Order), orders::OrderError> {
        let is_contained = matches!(template.work, TemplateWork::Container { .. });
        let staged = if is_contained { PathBuf::from(INPUTS) } else { self.workers.staged_folder(key) };
        let context =
            self.spans.as_ref().and_then(|_| process_context(template, key)).map(|context| context.to_string());
        let mut common = self.common(template, action)?;
        let mut order = match common.worker {
            Some(_) => python::order(key, template, inputs, &staged, context.as_deref()),
            None => self.surroundings.order(key, template, inputs, &staged, context.as_deref())?,
        };
        if matches!(template.work, TemplateWork::Wasm { .. }) {
            order.environment.push((INPUTS_VARIABLE.into(), staged.into_os_string().into_vec()));
        }
        if let Some(name) = name_of(template) {
            common = self.services.begin(key, name, action, &common)?;
        }
        Ok((common, order))
    }

    /// Has processes of an action wait that its executions will call. Where that cannot be, the first of them start their own, or
    /// fail and say why.
    pub(super) fn warm_up(&mut self, template: &StepTemplate, action: &ReadyAction) {
        // What is kept from everything else is started for each; what is a job of a cluster, or another's, with it.
        let is_for_here = |common: &Common| {
            common.terms == Terms::default() && common.account.is_none() && !common.emits && common.kept.is_none()
        };
        if self.jobs.is_some() || name_of(template).is_some() || template.resources.gpus.is_some() {
            return;
        }
        match self.common(template, Some(action)) {
            Ok(common) if common.worker.is_some() && is_for_here(&common) => {
                if let Err(error) = self.slots.warm_up(&common) {
                    tracing::warn!(
                        error = super::staging::full_message(&error),
                        "no process waits for its first execution"
                    );
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(
                    error = super::staging::full_message(&error),
                    "no process can wait for its first execution"
                );
            }
        }
    }

    fn common(
        &mut self,
        template: &StepTemplate,
        action: Option<&ReadyAction>,
    ) -> Result<Arc<Common>, orders::OrderError> {
        let of = CommonOf { step: (template.run, template.step), memory_bytes: template.resources.memory_bytes };
        let account = self.account_of(template)?;
        if let Some((known, common)) = &self.common
            && *known == of
            && common.account == account
        {
            return Ok(Arc::clone(common));
        }
        let filled = self.services.fill_in(template)?;
        let template = filled.as_ref().unwrap_or(template);
        let common = match (&template.work, action) {
            (TemplateWork::Python { .. }, Some(action)) => {
                let interpreter = self.python.as_ref().ok_or(orders::OrderError::NoPython)?;
                interpreter.common(&self.surroundings, template, action)?
            }
            (TemplateWork::Container { .. }, Some(action)) => {
                let engine = self.engine.as_ref().ok_or(orders::OrderError::NoEngine)?;
                engine.common(&self.surroundings, template, action, &self.workers.staged_home())?
            }
            (TemplateWork::Wasm { .. }, Some(action)) => {
                let runner = self.components.as_ref().ok_or(orders::OrderError::NoRunner)?;
                runner.common(&self.surroundings, template, action)?
            }
            (_, action) => self.surroundings.common(template, action.map(|action| action.folder.as_path()))?,
        };
        let common = if filled.is_some() { on_machine(common) } else { common };
        let (isolation, around) = &self.isolation;
        let needs = self.surroundings.needs(&common, action);
        let common = isolation.confine(common, template, around, needs)?;
        let common = Arc::new(self.with_account(common, account)?);
        self.common = Some((of, Arc::clone(&common)));
        Ok(common)
    }

    /// The account that executions of a step run as, if not as this process's own.
    pub(super) fn account_of(&mut self, template: &StepTemplate) -> Result<Option<Account>, AccountError> {
        self.accounts.as_mut().map_or(Ok(None), |accounts| accounts.of(template))
    }

    /// What is started, as the account that the site's administrator has for whoever has asked for it.
    fn with_account(&self, common: Common, account: Option<Account>) -> Result<Common, orders::OrderError> {
        let Some(account) = account else { return Ok(common) };
        if common.container.is_some() {
            return match self.engine.as_ref().is_some_and(ContainerEngine::becomes_others) {
                true => Ok(Common { account: Some(account), ..common }),
                false => Err(orders::OrderError::NoAccountInContainer { name: account.name }),
            };
        }
        let mut environment = common.environment;
        for name in ["USER", "LOGNAME"] {
            if !environment.iter().any(|(known, _)| known == name.as_bytes()) {
                environment.push((name.into(), account.name.clone().into_bytes()));
            }
        }
        // Nothing that is of an account may gain what only its file gives.
        Ok(Common { environment, account: Some(account), confined: true, ..common })
    }

    /// What is started, with the GPUs that the attempt has for itself.
    pub(super) fn with_gpus(
        &mut self,
        key: Key,
        template: &StepTemplate,
        common: Arc<Common>,
    ) -> Result<Arc<Common>, String> {
        let Some(wanted) = &template.resources.gpus else { return Ok(common) };
        let node = self.attempts.get(key).map_or(NodeId::HOME, |known| known.node);
        match self.gpus_of(node).and_then(|gpus| gpus.take(key, wanted, &common)) {
            Ok(Some(own)) => Ok(Arc::new(own)),
            // The core gives out no more than there are.
            Ok(None) => Err(format!("{wanted} are not free here")),
            Err(error) => Err(format!("which GPUs it has cannot be noted: {error}")),
        }
    }
}
