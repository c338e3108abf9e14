//! The rule that chooses services for spans that name none.

use super::names::Names;
use crate::service::Service;
use std::fmt;
use tracing::span::Attributes;

/// How services are chosen for spans that name none.
pub(super) enum Rule {
    None,
    Target,
    Name,
    By(Choice),
}

type Choice = Box<dyn Fn(&Attributes<'_>) -> Option<Service> + Send + Sync>;

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Target => "Target",
            Self::Name => "Name",
            Self::By(_) => "By(..)",
        })
    }
}

impl Rule {
    /// Returns the service that the rule chooses.
    pub(super) fn choose(&self, attributes: &Attributes<'_>, names: &Names) -> Option<Service> {
        match self {
            Self::None => None,
            Self::Target => names.service(attributes.metadata().target()),
            Self::Name => names.service(attributes.metadata().name()),
            Self::By(choose) => choose(attributes),
        }
    }
}
