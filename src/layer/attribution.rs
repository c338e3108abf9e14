//! A span's attribution, kept with the span in the subscriber's own storage.
//!
//! The storage drops it when the span is closed, whichever layer learns of that and whatever has
//! become of this one meanwhile. So its drop is where threads learn that what they remember of the
//! span is not true any more.

use super::kept::Kept;
use super::layer_id::LayerId;
use super::spans;
use super::token::{Origin, Token};
use crate::service::Service;
use tracing::Metadata;

/// The service of a span, and where it comes from.
pub(super) struct Attribution {
    pub(super) token: Token,
    service: Option<Service>,
    /// The span that this comes from, itself or an ancestor.
    origin: Token,
    /// Who has chosen it, if it is the span's own.
    layer: Option<LayerId>,
    /// Its metadata, if it is hidden: the registry does not have that.
    pub(super) hidden: Option<&'static Metadata<'static>>,
    /// Whether it is kept when it is closed.
    pub(super) kept: Option<&'static Kept>,
}

impl Attribution {
    /// Makes the attribution of a new span, or one that is not known yet, with what it inherits from
    /// its parent.
    pub(super) fn new(span: u64, inherited: Option<(Service, Token)>) -> Self {
        let token = Token::new(span);
        let (service, origin) = inherited.unzip();
        Self::of(token, service, origin.unwrap_or(token), None)
    }

    /// Makes the attribution of a new span for which its layer has chosen a service.
    pub(super) fn chosen(span: u64, service: Service, layer: LayerId) -> Self {
        let token = Token::new(span);
        Self::of(token, Some(service), token, Some(layer))
    }

    // All are made here: one that is made from another's fields drops the other, and so forgets itself.
    fn of(token: Token, service: Option<Service>, origin: Token, layer: Option<LayerId>) -> Self {
        Self { token, service, origin, layer, hidden: None, kept: None }
    }

    /// What threads may remember, or enter while the span is locked: until then it is held.
    pub(super) fn origin(&self) -> Origin {
        Some((self.service.as_ref()?.record(), self.origin))
    }

    /// Returns a clone of the service, if that layer has chosen it.
    pub(super) fn chosen_by(&self, layer: LayerId) -> Option<Service> {
        if self.layer == Some(layer) { self.service.clone() } else { None }
    }

    /// Returns what a child inherits.
    pub(super) fn inherit(&self) -> Option<(Service, Token)> {
        Some((self.service.clone()?, self.origin))
    }

    /// Whether another layer, which is still there, has chosen its service.
    pub(super) fn is_anothers(&self, layer: LayerId) -> bool {
        self.layer.is_some_and(|other| other != layer && other.is_there())
    }

    /// Chooses the span's service. Returns the former one, to be dropped when the span is not
    /// locked any more.
    pub(super) fn choose(&mut self, service: Service, layer: LayerId) -> Option<Service> {
        (self.origin, self.layer) = (self.token, Some(layer));
        let former = self.service.replace(service);
        self.token.forget();
        former
    }
}

impl Drop for Attribution {
    /// Makes what threads remember untrue, for the span is closed.
    fn drop(&mut self) {
        self.token.forget();
        spans::close(self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::token::generation_of;

    /// What a thread remembers of a new span is true until the span is closed.
    #[test]
    fn a_new_one_can_be_remembered() {
        let span = 777;
        let service = Service::register("new_one_can_be_remembered").unwrap();
        let chosen = Attribution::chosen(span, service.clone(), LayerId::begin());
        assert_eq!(generation_of(span).get(), chosen.token.generation());
        drop(chosen);
        let inherited = Attribution::new(span, Some((service, Token::NONE)));
        assert_eq!(generation_of(span).get(), inherited.token.generation());
        let generation = inherited.token.generation();
        drop(inherited);
        assert_ne!(generation_of(span).get(), generation);
    }
}
