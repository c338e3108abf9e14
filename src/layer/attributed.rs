//! A subscriber in which spans have services whatever its filters leave out.
//!
//! It stands around a program's subscriber and asks it of each span whether it wants it, as tracing would
//! have. A span that the program's subscriber does not want is [`hidden`] from it. It is told all that it
//! would have been told of the others, and nothing else: what a program makes of a disabled span, such as
//! a child, is a root.

use super::ServiceLayer;
use super::attribution::Attribution;
use super::caller::{Caller, Store};
use super::callsites::{Callsite, Callsites};
use super::hidden;
use super::kept::{Kept, OfCallsite};
use super::root_event::with_root;
use super::spans::{self, Apart, Begun};
use crate::events;
use std::any::TypeId;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::span::{Attributes, Id, Record as Values};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber, callsite};
use tracing_core::span::Current;
use tracing_subscriber::Registry;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Runs the spans of a program in services, whatever its log's filters leave out. Wraps the whole
/// subscriber of the program.
///
/// Spans without a field `service` run in the service named as the crate that they are from
/// ([`ServiceLayer::by_crate`]), unless [`with_layer`](Attributed::with_layer) sets another rule.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// use tracing_subscriber::EnvFilter;
///
/// // Instead of `tracing_subscriber::fmt().with_env_filter("warn").init()`:
/// dogtag::attributed(tracing_subscriber::fmt().with_env_filter(EnvFilter::new("warn")).finish()).init();
///
/// // The log does not have this span, and the service does.
/// let rows = tracing::info_span!(target: "sqlx::query", "query").in_scope(|| vec![0_u8; 1000]);
/// assert_eq!(dogtag::Service::by_name("sqlx").unwrap().usage().bytes(), 1000);
/// # drop(rows);
/// # }
/// ```
///
/// The program's subscriber is told what it was told before, of spans that it wants: its log does not
/// change. What it allocates belongs to the unattributed service, as after
/// [`unattributed`](crate::UnattributedExt::unattributed).
///
/// # What tracing sees of spans that are left out
///
/// Spans up to the level debug, or that of [`with_max_level`](Attributed::with_max_level), are made though
/// the subscriber does not want them. [`Span::is_disabled`](tracing::Span::is_disabled) is false for such
/// a span. It is the [current](tracing::Span::current) one only in a thread that is in none that the
/// subscriber wants. So what is handed on by `in_current_span()` runs in the service of the innermost span that
/// the subscriber wants, if there is one. Events cost what they cost before; `enabled!` and `span_enabled!` return what they
/// returned.
///
/// # What cannot be had
///
/// A subscriber without a [`Registry`](tracing_subscriber::Registry) in it, which is somebody's own, gets
/// no services. Nor do spans that are not compiled in, by tracing's features `max_level_*` and
/// `release_max_level_*`. Of either [`init`](Attributed::init) tells once, by a `tracing` event (target
/// `dogtag`, level warn).
pub fn attributed<S: Subscriber>(subscriber: S) -> Attributed<S> {
    Attributed {
        has_registry: (&subscriber as &dyn Subscriber).is::<Registry>(),
        subscriber,
        layer: joined(ServiceLayer::by_crate()),
        level: LevelFilter::DEBUG,
        is_raised: AtomicBool::new(true),
        own_level: AtomicU8::new(rank(LevelFilter::TRACE)),
        callsites: Callsites::new(),
    }
}

/// Wraps a subscriber in which spans have services whatever its filters leave out: [`attributed`].
#[derive(Debug)]
#[must_use = "a subscriber does nothing before it is installed"]
pub struct Attributed<S> {
    subscriber: S,
    has_registry: bool,
    layer: ServiceLayer,
    /// Spans up to this level are made.
    level: LevelFilter,
    /// Whether spans are made that the subscriber does not want.
    is_raised: AtomicBool,
    /// The level that the subscriber itself has named last, as a number.
    own_level: AtomicU8,
    callsites: Callsites,
}

impl<S: Subscriber> Attributed<S> {
    /// Sets the layer that chooses services, which is [`ServiceLayer::by_crate`] by default.
    ///
    /// ```
    /// use dogtag::ServiceLayer;
    /// use tracing_subscriber::fmt;
    ///
    /// dogtag::attributed(fmt().finish()).with_layer(ServiceLayer::by_target().with_field("tenant")).init();
    /// ```
    pub fn with_layer(mut self, layer: ServiceLayer) -> Self {
        self.layer = joined(layer);
        self
    }

    /// Sets up to which level spans have services though the subscriber does not want them: `DEBUG` by
    /// default. Libraries use the level trace for spans that are made very often. (Spans that
    /// the subscriber wants always have services.)
    ///
    /// ```
    /// use tracing::level_filters::LevelFilter;
    /// use tracing_subscriber::fmt;
    ///
    /// dogtag::attributed(fmt().finish()).with_max_level(LevelFilter::TRACE).init();
    /// ```
    pub fn with_max_level(mut self, level: LevelFilter) -> Self {
        self.level = level;
        self
    }
}

impl<S: Subscriber + Send + Sync> Attributed<S> {
    /// Installs it as the global default subscriber, as
    /// [`SubscriberInitExt::init`] does with the subscriber in it. If
    /// tracing-subscriber's feature `tracing-log` is on, records of the crate `log` come to it up to
    /// the level that the program's own subscriber names.
    ///
    /// # Panics
    ///
    /// Panics if there is a global default subscriber already.
    pub fn init(self) {
        self.try_init().expect("failed to set global default subscriber");
    }

    /// Installs it as the global default subscriber like [`init`](Self::init), unless there is one
    /// already.
    ///
    /// # Errors
    ///
    /// Returns an error if there is a global default subscriber or a logger already.
    pub fn try_init(self) -> Result<(), TryInitError> {
        // What sets the level of `log` meanwhile takes the level of the subscriber itself.
        self.is_raised.store(false, Ordering::Relaxed);
        let dispatch = Dispatch::new(self);
        let result = SubscriberInitExt::try_init(dispatch.clone());
        if let Some(installed) = dispatch.downcast_ref::<Self>() {
            installed.is_raised.store(true, Ordering::Relaxed);
            callsite::rebuild_interest_cache();
            if result.is_ok() {
                installed.tell_what_cannot_be_had();
            }
        }
        result
    }
}

impl<S: Subscriber> Attributed<S> {
    fn registry(&self) -> Option<&Registry> {
        self.store().registry()
    }

    fn tell_what_cannot_be_had(&self) {
        if !self.has_registry {
            events::spans_without_registry();
        } else if STATIC_MAX_LEVEL < self.level {
            events::spans_are_compiled_out(STATIC_MAX_LEVEL);
        }
    }

    fn store(&self) -> Store<'_> {
        Store { subscriber: &self.subscriber, layer: self.layer.id }
    }

    /// Whether such a span is made though the subscriber does not want it, if there is a registry.
    fn is_made(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && self.is_raised.load(Ordering::Relaxed)
    }

    /// Whether tracing is to make all that has such metadata.
    fn is_asked_for(&self, metadata: &Metadata<'_>) -> bool {
        // `span_enabled!` asks for a span that is never made, by that name.
        metadata.is_span()
            && !metadata.name().starts_with("enabled ")
            && self.is_made(metadata)
            && self.has_registry
    }

    /// Whether the subscriber wants such a span, of which nobody has asked it.
    fn wants(&self, metadata: &'static Metadata<'static>, callsite: Option<Callsite<'_>>) -> bool {
        if !self.is_within_own_level(metadata) {
            return false;
        }
        let interest = callsite.map_or_else(Interest::sometimes, Callsite::interest);
        interest.is_always()
            || (interest.is_sometimes() && {
                // Between being asked and making the span it may keep what it found, so nothing comes in between.
                let _apart = Apart::enter();
                self.subscriber.enabled(metadata)
            })
    }

    /// tracing does not ask for what is beyond this level, where it is the only subscriber's.
    fn is_within_own_level(&self, metadata: &Metadata<'_>) -> bool {
        rank(LevelFilter::from_level(*metadata.level())) <= self.own_level.load(Ordering::Relaxed)
    }

    fn own_level(&self) -> Option<LevelFilter> {
        let level = self.subscriber.max_level_hint();
        self.own_level.store(rank(level.unwrap_or(LevelFilter::TRACE)), Ordering::Relaxed);
        level
    }

    fn is_hidden(&self, id: &Id) -> bool {
        let key = self.layer.key(id);
        spans::kept(key).is_some() || spans::is_hidden(key).unwrap_or_else(|| self.is_noted_as_hidden(id))
    }

    /// Whether the registry has a span as a hidden one.
    #[cold]
    #[inline(never)]
    fn is_noted_as_hidden(&self, id: &Id) -> bool {
        self.registry().is_some_and(|registry| hidden::is_hidden(registry, id))
    }

    /// Returns a span that is kept when it is closed, if it is such a one.
    #[inline]
    fn kept(&self, id: &Id) -> Option<&'static Kept> {
        let key = self.layer.key(id);
        spans::kept(key).or_else(|| match spans::is_hidden(key) {
            Some(false) => None,
            _ => self.look_up_kept(id),
        })
    }

    /// Enters a hidden span that the calling thread does not remember as kept, or not at all.
    #[cold]
    #[inline(never)]
    fn enter_hidden(&self, span: &Id, is_remembered: bool) {
        let is_entered = !is_remembered
            && self.look_up_kept(span).is_some()
            && matches!(spans::enter_kept(self.layer.key(span)), Begun::Done);
        if !is_entered {
            self.layer.enter(span, &self.store());
        }
    }

    #[cold]
    fn look_up_kept(&self, id: &Id) -> Option<&'static Kept> {
        let registry = self.registry().filter(|registry| hidden::is_hidden(registry, id))?;
        let _apart = Apart::enter();
        let span = registry.span(id)?;
        let (kept, token) = {
            let extensions = span.extensions();
            let attribution = extensions.get::<Attribution>()?;
            (attribution.kept?, attribution.token)
        };
        if kept.is(token)
            && let Some(of) = self.callsites.kept(kept.callsite())
        {
            spans::remember_kept(self.layer.id, token, kept, of);
        }
        Some(kept)
    }

    /// Makes a hidden span.
    fn make_hidden(
        &self,
        attributes: &Attributes<'_>,
        callsite: Option<Callsite<'_>>,
        registry: &Registry,
    ) -> Id {
        let id = hidden::make(registry);
        self.layer.make(attributes, &id, true, None, &self.store());
        if let Some(callsite) = callsite
            && let Some(of) = self.learn(callsite, attributes, registry, &id)
            && let Some(span) = registry.span(&id)
            && let Some(attribution) = span.extensions_mut().get_mut::<Attribution>()
        {
            let kept = Kept::begin(callsite.number, attribution.token);
            attribution.kept = Some(kept);
            spans::remember_kept(self.layer.id, attribution.token, kept, of);
        }
        id
    }

    /// Learns the service of a callsite from its first span, if all of them have the same.
    fn learn<'a>(
        &self,
        callsite: Callsite<'a>,
        attributes: &Attributes<'_>,
        registry: &Registry,
        id: &Id,
    ) -> Option<&'a OfCallsite> {
        if !self.layer.is_constant(attributes.metadata()) {
            return None;
        }
        let service = registry.span(id)?.extensions().get::<Attribution>()?.chosen_by(self.layer.id)?;
        Some(callsite.kept_or_none_yet(service))
    }

    /// Closes a span that is kept, or one of its clones.
    fn close_kept(&self, id: Id, kept: &'static Kept) -> bool {
        if !kept.release() {
            return false;
        }
        spans::close_kept(self.layer.key(&id));
        let of = self.callsites.kept(kept.callsite()).filter(|_| kept.is_unchanged());
        if of.is_some_and(|of| spans::put_kept(of, kept)) {
            return true;
        }
        let _apart = Apart::enter();
        if let Some(registry) = self.registry() {
            hidden::try_close(registry, registry, id);
        }
        kept.end();
        true
    }

    fn has_hidden_parent(&self, event: &Event<'_>) -> bool {
        event.parent().is_some_and(|parent| self.has_registry && self.is_hidden(parent))
    }
}

fn joined(mut layer: ServiceLayer) -> ServiceLayer {
    layer.join();
    layer
}

fn rank(level: LevelFilter) -> u8 {
    match level.into_level() {
        None => 0,
        Some(Level::ERROR) => 1,
        Some(Level::WARN) => 2,
        Some(Level::INFO) => 3,
        Some(Level::DEBUG) => 4,
        Some(Level::TRACE) => 5,
    }
}

impl<S: Subscriber> Subscriber for Attributed<S> {
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        let _apart = Apart::enter();
        self.subscriber.on_register_dispatch(dispatch);
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let _apart = Apart::enter();
        let mut interest = self.subscriber.register_callsite(metadata);
        self.own_level();
        if !self.is_within_own_level(metadata) {
            interest = Interest::never();
        }
        if metadata.is_span() {
            self.callsites.note(metadata, &interest);
        }
        if self.is_asked_for(metadata) { Interest::always() } else { interest }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.is_asked_for(metadata)
            || (self.is_within_own_level(metadata) && {
                let _apart = Apart::enter();
                self.subscriber.enabled(metadata)
            })
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let level = self.own_level()?;
        let is_raised = self.is_raised.load(Ordering::Relaxed) && self.has_registry;
        Some(if is_raised { level.max(self.level) } else { level })
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let metadata = attributes.metadata();
        let callsite = self.callsites.find(metadata);
        // tracing has asked for the others.
        let is_shown = !(self.has_registry && self.is_made(metadata)) || self.wants(metadata, callsite);
        if !is_shown
            && let Some(of) = callsite.and_then(Callsite::kept)
            && let Some(id) = spans::take_kept(of, self.layer.id)
        {
            return Id::from_u64(id);
        }
        let _apart = Apart::enter();
        let Some(registry) = self.registry() else { return self.subscriber.new_span(attributes) };
        if !is_shown {
            return self.make_hidden(attributes, callsite, registry);
        }
        let id = if attributes.parent().is_some_and(|parent| self.is_hidden(parent)) {
            self.subscriber.new_span(&Attributes::new_root(metadata, attributes.values()))
        } else {
            self.subscriber.new_span(attributes)
        };
        let of = callsite.and_then(Callsite::kept);
        self.layer.make(attributes, &id, false, of.map(OfCallsite::service), &self.store());
        if let (Some(callsite), None) = (callsite, of) {
            self.learn(callsite, attributes, registry, &id);
        }
        id
    }

    fn record(&self, span: &Id, values: &Values<'_>) {
        if let Some(kept) = self.kept(span) {
            if !spans::is_sent(span.into_u64()) {
                return;
            }
            kept.change();
        }
        let _apart = Apart::enter();
        if !(self.has_registry && self.is_hidden(span)) {
            self.subscriber.record(span, values);
        }
        if self.has_registry {
            self.layer.record(span, values, &self.store());
        }
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        let _apart = Apart::enter();
        let is_hidden = |id| self.has_registry && self.is_hidden(id);
        if !is_hidden(span) && !is_hidden(follows) {
            self.subscriber.record_follows_from(span, follows);
        }
    }

    fn event_enabled(&self, event: &Event<'_>) -> bool {
        let _apart = Apart::enter();
        if self.has_hidden_parent(event) {
            return with_root(event, |event| self.subscriber.event_enabled(event));
        }
        self.subscriber.event_enabled(event)
    }

    fn event(&self, event: &Event<'_>) {
        let _apart = Apart::enter();
        if self.has_hidden_parent(event) {
            return with_root(event, |event| self.subscriber.event(event));
        }
        self.subscriber.event(event);
    }

    #[inline]
    fn enter(&self, span: &Id) {
        let Begun::NotYet { is_hidden } = spans::enter_kept(self.layer.key(span)) else { return };
        if !self.has_registry {
            return self.subscriber.enter(span);
        }
        if is_hidden.unwrap_or_else(|| self.is_noted_as_hidden(span)) {
            return self.enter_hidden(span, is_hidden.is_some());
        }
        // The layer is told while the thread is apart, and leads it to where it goes then.
        let _apart = Apart::enter();
        self.subscriber.enter(span);
        self.layer.enter(span, &self.store());
    }

    #[inline]
    fn exit(&self, span: &Id) {
        let Begun::NotYet { is_hidden } = spans::exit_hidden(self.layer.key(span)) else { return };
        if !self.has_registry {
            return self.subscriber.exit(span);
        }
        if is_hidden.unwrap_or_else(|| self.is_noted_as_hidden(span)) {
            return self.layer.exit(span, &self.store());
        }
        let _apart = Apart::enter();
        self.subscriber.exit(span);
        self.layer.exit(span, &self.store());
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(kept) = self.kept(id) {
            kept.retain();
            return id.clone();
        }
        let _apart = Apart::enter();
        self.subscriber.clone_span(id)
    }

    // Which is what everybody calls instead by now.
    fn drop_span(&self, id: Id) {
        self.try_close(id);
    }

    fn try_close(&self, id: Id) -> bool {
        if let Some(kept) = self.kept(&id) {
            return self.close_kept(id, kept);
        }
        let _apart = Apart::enter();
        let Some(registry) = self.registry() else { return self.subscriber.try_close(id) };
        let subscriber: &dyn Subscriber = if self.is_hidden(&id) { registry } else { &self.subscriber };
        hidden::try_close(registry, subscriber, id)
    }

    fn current_span(&self) -> Current {
        let current = self.subscriber.current_span();
        if current.id().is_some() || !current.is_known() {
            return current;
        }
        let hidden = || {
            let store = self.store();
            let innermost = Id::from_u64(spans::innermost(self.layer.id)?);
            let metadata = store.span(&innermost)?.extensions().get::<Attribution>()?.hidden?;
            Some(Current::new(innermost, metadata))
        };
        hidden().unwrap_or(current)
    }

    unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
        if id == TypeId::of::<Self>() {
            return Some(std::ptr::from_ref(self).cast());
        }
        // SAFETY: the caller uses what this returns as the type that it asked for, and while `self`
        // lives, which the inner subscriber does as well.
        unsafe { self.subscriber.downcast_raw(id) }
    }
}
