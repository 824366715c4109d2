//! Frames that are too large for the wire go as several.

use atoll_model::limits::FRAME_BYTES_MAX;
use prost::Message;

use crate::v1::{AgentFrame, Commands, ControlFrame, Reports, agent_frame, control_frame};

/// Splits a frame of commands at command borders, so that no part is larger than [`FRAME_BYTES_MAX`] unless one command
/// alone is. Other frames, and those that fit, come back as they are.
pub fn split_control_frame(frame: ControlFrame) -> Vec<ControlFrame> {
    if frame.encoded_len() <= FRAME_BYTES_MAX {
        return vec![frame];
    }
    let ControlFrame { epoch, acknowledged, lease, body } = frame;
    let with = |body| ControlFrame { epoch, acknowledged, lease, body };
    match body {
        Some(control_frame::Body::Commands(Commands { mut first, commands })) => {
            let mut frames = Vec::new();
            for commands in parts(commands) {
                let count = commands.len() as u64;
                frames.push(with(Some(control_frame::Body::Commands(Commands { first, commands }))));
                first += count;
            }
            frames
        }
        other => vec![with(other)],
    }
}

/// Splits a frame of reports as [`split_control_frame`] splits one of commands.
pub fn split_agent_frame(frame: AgentFrame) -> Vec<AgentFrame> {
    if frame.encoded_len() <= FRAME_BYTES_MAX {
        return vec![frame];
    }
    let AgentFrame { epoch, acknowledged, body } = frame;
    let with = |body| AgentFrame { epoch, acknowledged, body };
    match body {
        Some(agent_frame::Body::Reports(Reports { mut first, reports })) => {
            let mut frames = Vec::new();
            for reports in parts(reports) {
                let count = reports.len() as u64;
                frames.push(with(Some(agent_frame::Body::Reports(Reports { first, reports }))));
                first += count;
            }
            frames
        }
        other => vec![with(other)],
    }
}

/// What a frame has around its items, and an item has around its content, at most.
const OVERHEAD_BYTES: usize = 256;

fn parts<M: Message>(items: Vec<M>) -> Vec<Vec<M>> {
    let mut parts = vec![Vec::new()];
    let mut filled = OVERHEAD_BYTES;
    for item in items {
        let bytes = item.encoded_len() + 8;
        if filled + bytes > FRAME_BYTES_MAX && parts.last().is_some_and(|part| !part.is_empty()) {
            parts.push(Vec::new());
            filled = OVERHEAD_BYTES;
        }
        filled += bytes;
        if let Some(part) = parts.last_mut() {
            part.push(item);
        }
    }
    parts
}
