//! A profile as serde reads and writes it: with the names, so that it can be read elsewhere.

use super::Profile;
use crate::profile::collect::Kind;
use crate::profile::mappings::Mapping;
use crate::profile::row::{ProfileRow, ProfileService};
use crate::profile::symbols::Names;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::SystemTime;

#[derive(Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Stored {
    kind: Kind,
    is_difference: bool,
    interval: u64,
    dropped: u64,
    began: SystemTime,
    taken: SystemTime,
    services: Vec<ProfileService>,
    rows: Vec<ProfileRow>,
    mappings: Vec<Mapping>,
    /// Without them they are looked up in the process that reads it.
    names: Option<Names>,
}

impl Default for Stored {
    fn default() -> Self {
        let mut stored = Self::from(Profile::default());
        stored.names = None;
        stored
    }
}

impl From<Profile> for Stored {
    fn from(profile: Profile) -> Self {
        let names = Some(profile.names().clone());
        let Profile {
            kind, is_difference, interval, dropped, began, taken, services, rows, mappings, ..
        } = profile;
        let mappings = mappings.to_vec();
        Self { kind, is_difference, interval, dropped, began, taken, services, rows, mappings, names }
    }
}

impl From<Stored> for Profile {
    fn from(stored: Stored) -> Self {
        let Stored { kind, is_difference, interval, dropped, began, taken, services, rows, mappings, names } =
            stored;
        let names = names.map(Arc::new).map(Into::into).unwrap_or_default();
        let mappings = mappings.into();
        Self { kind, is_difference, interval, dropped, began, taken, services, rows, mappings, names }
    }
}
