//! What the executions of a step have in common, made once for all of them.

use std::sync::Arc;

use atoll_model::session::{StepTemplate, TemplateWork};
use site_agent_core::event::NodeId;

use super::actions::ReadyAction;
use super::{Local, orders};
use crate::shim::protocol::{Common, Key};

impl Local {
    pub(super) fn common(
        &mut self,
        template: &StepTemplate,
        action: Option<&ReadyAction>,
    ) -> Result<Arc<Common>, orders::OrderError> {
        let step = (template.run, template.step);
        if let Some((known, common)) = &self.common
            && *known == step
        {
            return Ok(Arc::clone(common));
        }
        let common = match (&template.work, action) {
            (TemplateWork::Python { .. }, Some(action)) => {
                let interpreter = self.python.as_ref().ok_or(orders::OrderError::NoPython)?;
                interpreter.common(&self.surroundings, template, action)?
            }
            (TemplateWork::Container { .. }, Some(action)) => {
                let engine = self.engine.as_ref().ok_or(orders::OrderError::NoEngine)?;
                engine.common(&self.surroundings, template, action, &self.workers.staged_home())?
            }
            (_, action) => self.surroundings.common(template, action.map(|action| action.folder.as_path()))?,
        };
        let (isolation, around) = &self.isolation;
        let needs = self.surroundings.needs(&common, action);
        let common = Arc::new(isolation.confine(common, template, around, needs)?);
        self.common = Some((step, Arc::clone(&common)));
        Ok(common)
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
