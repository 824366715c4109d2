//! What placement looks ahead for.

use control_plane_core::look_ahead::{Aim, Goal};
use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Placement {
    pub aim: PlacementAim,
    /// Of a run's run time, what one site may have at most, where that can be: 100 for all of it.
    pub share_max_percent: u8,
    /// Whether runs that are known from before are looked at as a whole.
    pub look_ahead: bool,
}

/// What is to be little.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlacementAim {
    /// Time until a run ends, then bytes.
    #[default]
    Time,
    /// Bytes that cross a border, then time.
    Bytes,
}

impl Default for Placement {
    fn default() -> Self {
        Self { aim: PlacementAim::default(), share_max_percent: 100, look_ahead: true }
    }
}

impl Placement {
    pub(crate) fn is_possible(&self) -> bool {
        (1..=100).contains(&self.share_max_percent)
    }

    pub(crate) fn goal(&self) -> Goal {
        Goal {
            aim: match self.aim {
                PlacementAim::Time => Aim::Time,
                PlacementAim::Bytes => Aim::Bytes,
            },
            share_max: f64::from(self.share_max_percent) / 100.0,
            effort: if self.look_ahead { atoll_model::limits::LOOK_AHEAD_EFFORT } else { 0 },
        }
    }
}
