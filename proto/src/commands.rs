//! Commands to a site.

use std::time::Duration;

use atoll_model::action::{BundleSignature, PublicKey};
use atoll_model::elements::ElementSet;
use atoll_model::id::CommandSeq;
use atoll_model::session::{
    ControlBody, Dispatch, DispatchElements, Origin, Requester, SiteCommand, StepTemplate, TemplateOutput, TemplateWork,
};
use atoll_model::value::ObjectRef;
use atoll_model::workflow::{OnDisconnect, StartMode};

use crate::bindings::{BindingsWriter, read_bindings, read_run};
use crate::columns::{ElementsReader, elements, read_runs, runs, same_length};
use crate::error::{WireError, required};
use crate::types::{enumeration, number, object_list, read_attempt, read_object_list, read_step, step};
use crate::v1 as wire;
use crate::v1::dispatch::Elements as WireElements;
use crate::v1::site_command::Kind;
use crate::v1::step_template::Work;

enumeration!(start_mode, read_start_mode, StartMode, wire::StartMode, [AtLeastOnce, AtMostOnce]);
enumeration!(on_disconnect, read_on_disconnect, OnDisconnect, wire::OnDisconnect, [Finish, Stop]);

pub(crate) fn write_commands(first: CommandSeq, commands: Vec<SiteCommand>) -> wire::Commands {
    wire::Commands { first: first.0, commands: commands.into_iter().map(Into::into).collect() }
}

/// Reads the commands of a frame. One that a newer peer may have meant keeps its number.
pub(crate) fn read_commands(message: wire::Commands, refused: &mut Vec<WireError>) -> Result<ControlBody, WireError> {
    let mut commands = Vec::with_capacity(message.commands.len());
    for command in message.commands {
        commands.push(match SiteCommand::try_from(command) {
            Ok(command) => command,
            Err(error) if error.refuses_item_only() => {
                let reason = error.to_string();
                refused.push(error);
                SiteCommand::Unknown { reason }
            }
            Err(error) => return Err(error),
        });
    }
    Ok(ControlBody::Commands { first: CommandSeq(message.first), commands })
}

impl From<SiteCommand> for wire::SiteCommand {
    fn from(command: SiteCommand) -> Self {
        let kind = match command {
            SiteCommand::Prepare(template) => Kind::Prepare((*template).into()),
            SiteCommand::Dispatch(dispatch) => Kind::Dispatch(dispatch.into()),
            SiteCommand::Cancel { run, step: index, elements, reason } => Kind::Cancel(wire::CancelElements {
                run: Some(run.into()),
                step: step(index),
                elements: Some((&elements).into()),
                reason,
            }),
            SiteCommand::Push { transfer, object } => {
                Kind::Push(wire::Push { transfer: Some(transfer.into()), object: Some(object.into()) })
            }
            SiteCommand::CancelPush { transfer } => Kind::CancelPush(transfer.into()),
            SiteCommand::Forget { run } => Kind::Forget(run.into()),
            SiteCommand::Evict { proposal, objects, refused, reason } => {
                Kind::Evict(wire::Evict { proposal, objects: object_list(objects), refused, reason })
            }
            SiteCommand::ProposeEviction { objects } => {
                Kind::ProposeEviction(wire::ObjectList { objects: object_list(objects) })
            }
            SiteCommand::Verify { objects } => Kind::Verify(wire::ObjectList { objects: object_list(objects) }),
            SiteCommand::Unknown { reason } => Kind::Unknown(reason),
            SiteCommand::Delegate(delegation) => Kind::Delegate((*delegation).into()),
            SiteCommand::Withdraw { run, step: index, stop } => {
                Kind::Withdraw(wire::Withdrawal { run: Some(run.into()), step: step(index), stop })
            }
            SiteCommand::Replicate { object, execution } => {
                Kind::Replicate(wire::Replicate { object: Some(object.into()), execution: Some(execution.into()) })
            }
            SiteCommand::MakeReady(template) => Kind::MakeReady((*template).into()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::SiteCommand> for SiteCommand {
    type Error = WireError;

    fn try_from(message: wire::SiteCommand) -> Result<Self, WireError> {
        Ok(match message.kind.ok_or(WireError::UnknownKind { field: "command" })? {
            Kind::Prepare(template) => Self::Prepare(Box::new(template.try_into()?)),
            Kind::Dispatch(dispatch) => Self::Dispatch(dispatch.try_into()?),
            Kind::Cancel(cancel) => Self::Cancel {
                run: read_run(cancel.run)?,
                step: read_step(cancel.step)?,
                elements: required(cancel.elements, "cancel.elements")?.try_into()?,
                reason: cancel.reason,
            },
            Kind::Push(push) => Self::Push {
                transfer: required(push.transfer, "push.transfer")?.into(),
                object: required(push.object, "push.object")?.try_into()?,
            },
            Kind::CancelPush(transfer) => Self::CancelPush { transfer: transfer.into() },
            Kind::Forget(run) => Self::Forget { run: run.into() },
            Kind::Evict(wire::Evict { proposal, objects, refused, reason }) => {
                Self::Evict { proposal, objects: read_object_list(objects)?, refused, reason }
            }
            Kind::ProposeEviction(list) => Self::ProposeEviction { objects: read_object_list(list.objects)? },
            Kind::Verify(list) => Self::Verify { objects: read_object_list(list.objects)? },
            Kind::Unknown(reason) => Self::Unknown { reason },
            Kind::Delegate(delegation) => Self::Delegate(Box::new(delegation.try_into()?)),
            Kind::Withdraw(withdrawal) => Self::Withdraw {
                run: read_run(withdrawal.run)?,
                step: read_step(withdrawal.step)?,
                stop: withdrawal.stop,
            },
            Kind::Replicate(wire::Replicate { object, execution }) => Self::Replicate {
                object: required(object, "replicate.object")?.try_into()?,
                execution: required(execution, "replicate.execution")?.try_into()?,
            },
            Kind::MakeReady(template) => Self::MakeReady(Box::new(template.try_into()?)),
        })
    }
}

impl From<StepTemplate> for wire::StepTemplate {
    fn from(template: StepTemplate) -> Self {
        let work = match template.work {
            TemplateWork::Script(script) => Work::Script(script),
            TemplateWork::Command { command, bundle } => {
                let (bundle, signatures) = (bundle.map(Into::into), Vec::new());
                Work::Command(wire::ActionCommand { command, bundle, signatures })
            }
            TemplateWork::SignedCommand { command, bundle, signatures } => {
                let signatures = signatures.into_iter().map(Into::into).collect();
                Work::Command(wire::ActionCommand { command, bundle: Some(bundle.into()), signatures })
            }
            TemplateWork::Import { source, directory } => {
                Work::Import(wire::Import { source: source.into(), directory })
            }
            TemplateWork::Null => Work::Null(wire::Nothing {}),
            TemplateWork::Export { target, overwrite } => {
                Work::Export(wire::Export { target: target.into(), overwrite })
            }
            TemplateWork::Python { bundle, signatures } => {
                let signatures = signatures.into_iter().map(Into::into).collect();
                Work::Python(wire::PythonAction { bundle: Some(bundle.into()), signatures })
            }
            TemplateWork::Container { bundle, signatures } => {
                let signatures = signatures.into_iter().map(Into::into).collect();
                Work::Container(wire::ContainerAction { bundle: Some(bundle.into()), signatures })
            }
            TemplateWork::Wasm { bundle, signatures } => {
                let signatures = signatures.into_iter().map(Into::into).collect();
                Work::Wasm(wire::WasmAction { bundle: Some(bundle.into()), signatures })
            }
        };
        let mut bindings = BindingsWriter::new(template.run);
        template.bindings.into_iter().for_each(|binding| bindings.write(binding));
        let environment = template.environment.into_iter();
        Self {
            run: Some(template.run.into()),
            step: step(template.step),
            step_name: template.step_name,
            workflow: template.workflow,
            work: Some(work),
            resources: Some(template.resources.into()),
            outputs: template.outputs.into_iter().map(Into::into).collect(),
            bindings: Some(bindings.finish()),
            environment: environment.map(|(name, value)| wire::EnvironmentVariable { name, value }).collect(),
            start: start_mode(template.start).into(),
            on_disconnect: on_disconnect(template.on_disconnect).into(),
            traceparent: template.origin.traceparent,
            requester: template
                .origin
                .requester
                .map(|Requester { project, person }| wire::Requester { project, person }),
            priority: template.priority.into(),
        }
    }
}

impl TryFrom<wire::StepTemplate> for StepTemplate {
    type Error = WireError;

    fn try_from(message: wire::StepTemplate) -> Result<Self, WireError> {
        let run = read_run(message.run)?;
        let work = match message.work.ok_or(WireError::UnknownKind { field: "template.work" })? {
            Work::Script(script) => TemplateWork::Script(script),
            Work::Command(action) => action.try_into()?,
            Work::Import(import) => TemplateWork::Import { source: import.source.into(), directory: import.directory },
            Work::Null(wire::Nothing {}) => TemplateWork::Null,
            Work::Export(export) => TemplateWork::Export { target: export.target.into(), overwrite: export.overwrite },
            Work::Python(wire::PythonAction { bundle, signatures }) => TemplateWork::Python {
                bundle: required(bundle, "template.python.bundle")?.try_into()?,
                signatures: signatures.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            },
            Work::Container(wire::ContainerAction { bundle, signatures }) => TemplateWork::Container {
                bundle: required(bundle, "template.container.bundle")?.try_into()?,
                signatures: signatures.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            },
            Work::Wasm(wire::WasmAction { bundle, signatures }) => TemplateWork::Wasm {
                bundle: required(bundle, "template.wasm.bundle")?.try_into()?,
                signatures: signatures.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            },
        };
        Ok(Self {
            run,
            step: read_step(message.step)?,
            step_name: message.step_name,
            workflow: message.workflow,
            work,
            resources: required(message.resources, "template.resources")?.try_into()?,
            outputs: message.outputs.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            bindings: read_bindings(message.bindings, run)?.collect::<Result<_, _>>()?,
            environment: message.environment.into_iter().map(|variable| (variable.name, variable.value)).collect(),
            start: read_start_mode(number(message.start), "template.start")?,
            on_disconnect: read_on_disconnect(number(message.on_disconnect), "template.on_disconnect")?,
            origin: Origin {
                traceparent: message.traceparent,
                requester: message.requester.map(|wire::Requester { project, person }| Requester { project, person }),
            },
            priority: i16::try_from(message.priority)
                .map_err(|_| WireError::OutOfRange { field: "template.priority" })?,
        })
    }
}

impl TryFrom<wire::ActionCommand> for TemplateWork {
    type Error = WireError;

    fn try_from(message: wire::ActionCommand) -> Result<Self, WireError> {
        let wire::ActionCommand { command, bundle, signatures } = message;
        let bundle: Option<ObjectRef> = bundle.map(TryInto::try_into).transpose()?;
        let signatures: Vec<BundleSignature> =
            signatures.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(match bundle {
            Some(bundle) if !signatures.is_empty() => Self::SignedCommand { command, bundle, signatures },
            bundle => Self::Command { command, bundle },
        })
    }
}

impl From<BundleSignature> for wire::BundleSignature {
    fn from(signature: BundleSignature) -> Self {
        Self { key: signature.key.bytes().to_vec().into(), signature: signature.bytes().to_vec().into() }
    }
}

impl TryFrom<wire::BundleSignature> for BundleSignature {
    type Error = WireError;

    fn try_from(message: wire::BundleSignature) -> Result<Self, WireError> {
        let out_of_range = WireError::OutOfRange { field: "command.signatures" };
        let key = <[u8; 32]>::try_from(&message.key[..]).ok().map(PublicKey::from_bytes);
        key.and_then(|key| Self::from_bytes(key, &message.signature)).ok_or(out_of_range)
    }
}

impl From<TemplateOutput> for wire::TemplateOutput {
    fn from(output: TemplateOutput) -> Self {
        let TemplateOutput { name, r#type, optional, listed } = output;
        Self { name, r#type: Some(r#type.into()), optional, listed }
    }
}

impl TryFrom<wire::TemplateOutput> for TemplateOutput {
    type Error = WireError;

    fn try_from(message: wire::TemplateOutput) -> Result<Self, WireError> {
        let wire::TemplateOutput { name, r#type, optional, listed } = message;
        Ok(Self { name, r#type: required(r#type, "output.type")?.try_into()?, optional, listed })
    }
}

impl From<Dispatch> for wire::Dispatch {
    fn from(dispatch: Dispatch) -> Self {
        let elements = match dispatch.elements {
            DispatchElements::Plain(set) => WireElements::Plain((&set).into()),
            DispatchElements::Bound(bound) => {
                let numbers = elements(bound.iter().map(|(element, _)| *element));
                let counts = runs(bound.iter().map(|(_, bindings)| bindings.len() as u64));
                let mut bindings = BindingsWriter::new(dispatch.run);
                bound.into_iter().flat_map(|(_, inputs)| inputs).for_each(|binding| bindings.write(binding));
                WireElements::Bound(wire::BoundElements {
                    elements: Some(numbers),
                    counts: Some(counts),
                    bindings: Some(bindings.finish()),
                })
            }
        };
        Self {
            run: Some(dispatch.run.into()),
            step: step(dispatch.step),
            attempt: dispatch.attempt.0,
            elements: Some(elements),
            fragment: dispatch.fragment,
            start_by: dispatch.start_by.map(Into::into),
        }
    }
}

impl TryFrom<wire::Dispatch> for Dispatch {
    type Error = WireError;

    fn try_from(message: wire::Dispatch) -> Result<Self, WireError> {
        let run = read_run(message.run)?;
        let elements = match message.elements.ok_or(WireError::UnknownKind { field: "dispatch.elements" })? {
            WireElements::Plain(set) => DispatchElements::Plain(ElementSet::try_from(set)?),
            WireElements::Bound(bound) => {
                let numbers = ElementsReader::new(bound.elements, "bound.elements")?;
                let counts = read_runs(bound.counts, numbers.count(), "bound.counts")?;
                let mut bindings = read_bindings(bound.bindings, run)?;
                let mut elements = Vec::with_capacity(numbers.count());
                for (element, count) in numbers.into_iter().zip(counts) {
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    let inputs = bindings.by_ref().take(count).collect::<Result<Vec<_>, _>>()?;
                    same_length("bound.bindings", count, inputs.len())?;
                    elements.push((element, inputs));
                }
                same_length("bound.bindings", 0, bindings.len())?;
                DispatchElements::Bound(elements)
            }
        };
        Ok(Self {
            run,
            step: read_step(message.step)?,
            attempt: read_attempt(u64::from(message.attempt))?,
            elements,
            fragment: message.fragment,
            start_by: message.start_by.map(Duration::try_from).transpose()?,
        })
    }
}
