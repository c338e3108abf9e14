//! Spans of `tracing` as scopes of services, for programs that have spans already.
//!
//! A [`ServiceLayer`] is a part of somebody's subscriber, or of an [`Attributed`] around it, which also
//! has the spans that the subscriber does not want ([`hidden`]). To the layer either is a [`Caller`].
//!
//! This module enters services by their public interface, as a program does. A
//! span's service is kept with the span, in the subscriber's own storage. The spans that a
//! thread is in are kept with the thread ([`spans`]).

mod attach;
mod attributed;
mod attribution;
mod caller;
mod callsites;
mod hidden;
mod kept;
mod layer_id;
mod names;
mod root_event;
mod rule;
mod span_stack;
mod spans;
mod token;
mod unattributed;

pub use attributed::{Attributed, attributed};
pub use unattributed::{Unattributed, UnattributedExt};

use crate::contained::drop_contained;
use crate::service::Service;
use attribution::Attribution;
use caller::{Called, Caller};
use layer_id::LayerId;
use names::Names;
use rule::Rule;
use span_stack::Key;
use spans::Apart;
use std::mem;
use token::{Token, generation_of};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as Values};
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// Runs spans in services: a layer for `tracing` subscribers.
///
/// A span with a field `service` runs in the service of that name, wherever it is
/// entered: on any thread, on any number of threads at once, at each poll of an
/// instrumented future. The layer registers services when spans first name them.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// use dogtag::{ServiceLayer, UnattributedExt};
/// use tracing_subscriber::prelude::*;
///
/// tracing_subscriber::registry().with(ServiceLayer::new()).unattributed().init();
///
/// let tokens = tracing::info_span!("login", service = "auth").in_scope(|| vec![0_u8; 1000]);
/// assert_eq!(dogtag::Service::register("auth").unwrap().usage().bytes(), 1000);
/// # drop(tokens);
/// # }
/// ```
///
/// A span without a service of its own runs in that of its nearest ancestor that
/// has one. So a task that is spawned with a child of a request's span belongs to
/// the request's service, on whichever thread. If the thread is already in that ancestor, its service
/// does not change: a scope that was entered by hand
/// inside the ancestor holds in its children too.
///
/// # Libraries that are not changed
///
/// [`by_crate`](Self::by_crate), [`by_target_prefix`](Self::by_target_prefix),
/// [`by_target`](Self::by_target), [`by_span_name`](Self::by_span_name) and [`by`](Self::by) choose services for spans that name none, such as those of libraries.
/// [`Service::attach`] chooses one for a single span.
///
/// # What tracing itself allocates
///
/// Subscribers allocate for spans and events, on the thread that makes them. What
/// this layer allocates belongs to the unattributed service. To charge what the registry and all
/// other layers allocate there too, end the subscriber with
/// [`unattributed()`](UnattributedExt::unattributed).
///
/// # Filters
///
/// [`attributed`] puts a layer around a whole subscriber, and its filters do not matter.
///
/// To a layer among others, a span that is filtered out does not exist, and changes no service. Filters
/// of a single layer (`with_filter`) do not affect the others, so a log can be terse and services
/// complete. But a subscriber in which one layer has no filter makes all spans and events, and
/// throws most of them away. So give this layer a filter too, for the spans that it needs:
///
/// ```
/// use dogtag::ServiceLayer;
/// use tracing::Level;
/// use tracing_subscriber::{filter::{FilterExt, LevelFilter, filter_fn}, fmt, prelude::*};
///
/// tracing_subscriber::registry()
///     .with(fmt::layer().with_filter(LevelFilter::INFO))
///     .with(ServiceLayer::new().with_filter(filter_fn(|metadata| {
///         metadata.is_span() && *metadata.level() <= Level::DEBUG
///     })))
///     .init();
/// ```
///
/// One such layer is enough for a subscriber; its place among the others does not
/// matter. (Of two, the first one chooses for the spans that it finds services for.)
/// Each subscriber may have its own.
///
/// # Layers that are exchanged
///
/// tracing-subscriber's `reload` may exchange or remove the layer at any time. Spans keep
/// their services, and their children under the next layer inherit them. A thread
/// that is in a span meanwhile leaves the span's service when it leaves the span, if
/// there is another layer by then. If there is none, it does when the span is closed on that thread,
/// or when the thread enters or leaves a span that any layer sees. (A [`Scope`](crate::Scope) that it has
/// entered by hand meanwhile goes back to the span's service all the same.)
///
/// A layer that came into a subscriber later, or is shared by several, looks spans up
/// whenever they are entered.
///
/// In the closure of [`by`](Self::by), and under
/// [`unattributed()`](UnattributedExt::unattributed) in all other layers,
/// [`Service::current`] is the unattributed service.
///
/// A thread remembers the services of some 30 spans that it made or entered last. Entering
/// one of those takes some 80 instructions. Others are looked up in the
/// subscriber, which takes a lock of the span. Leaving a span looks nothing up. The
/// allocations in it cost what they cost after [`Service::enter`].
#[derive(Debug)]
#[must_use = "a layer does nothing before it is part of a subscriber"]
pub struct ServiceLayer {
    id: LayerId,
    /// How many subscribers were built with it: 2 for more. One that was put into a subscriber
    /// later, or is shared by some, does not know by a span's number which span that is, and looks
    /// it up.
    subscribers: u8,
    rule: Rule,
    names: Names,
}

impl ServiceLayer {
    /// Makes a layer that runs spans with a field `service` in the service of that name.
    ///
    /// The value may be a string, or anything that is recorded with `%` or `?`. A
    /// span that is declared with an `Empty` field gets its service when the field is recorded. A value
    /// that is no name, since it is empty or longer than [`Service::MAX_NAME_LEN`], chooses none,
    /// and a `tracing` event (target `dogtag`, level error) reports it, once a second at most.
    pub fn new() -> Self {
        Self::with_rule(Rule::None)
    }

    /// Makes a layer that runs spans without a service of their own in the service named as their
    /// target: the path of the span's module, unless the span sets another target.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() {
    /// use dogtag::{Service, ServiceLayer};
    /// use tracing_subscriber::prelude::*;
    ///
    /// mod parser {
    ///     // Of a library that knows nothing of services.
    ///     pub fn parse() -> Vec<u8> {
    ///         tracing::info_span!("parse").in_scope(|| vec![0; 1000])
    ///     }
    /// }
    ///
    /// tracing_subscriber::registry().with(ServiceLayer::by_target()).init();
    /// let parsed = parser::parse();
    /// let service = Service::by_name(concat!(module_path!(), "::parser")).unwrap();
    /// assert_eq!(service.usage().bytes(), 1000);
    /// # drop(parsed);
    /// # }
    /// ```
    pub fn by_target() -> Self {
        Self::with_rule(Rule::Target(usize::MAX))
    }

    /// Makes a layer that runs spans without a service of their own in the service named as the crate
    /// that they are from: the first segment of their target.
    ///
    /// The rule for a program that nobody has divided into services yet: its table has some ten rows.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() {
    /// use dogtag::{Service, ServiceLayer};
    /// use tracing_subscriber::prelude::*;
    ///
    /// tracing_subscriber::registry().with(ServiceLayer::by_crate()).init();
    /// let rows = tracing::info_span!(target: "sqlx::query", "query").in_scope(|| vec![0_u8; 1000]);
    /// assert_eq!(Service::by_name("sqlx").unwrap().usage().bytes(), 1000);
    /// # drop(rows);
    /// # }
    /// ```
    pub fn by_crate() -> Self {
        Self::by_target_prefix(1)
    }

    /// Makes a layer that runs spans without a service of their own in the service named by the first
    /// segments of their target, so many at most: by crate and module for two.
    ///
    /// A layer that keeps its services ([`keep_services`](Self::keep_services)) keeps 4096 that this rule,
    /// [`by_target`](Self::by_target) or [`by_span_name`](Self::by_span_name) has named. Spans with further
    /// names stay in the service around them, and a `tracing` event (target `dogtag`, level warn)
    /// tells so, once.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() {
    /// use dogtag::{Service, ServiceLayer};
    /// use tracing_subscriber::prelude::*;
    ///
    /// tracing_subscriber::registry().with(ServiceLayer::by_target_prefix(2)).init();
    /// let span = tracing::info_span!(target: "shop::cart::items", "add");
    /// let items = span.in_scope(|| vec![0_u8; 1000]);
    /// assert_eq!(Service::by_name("shop::cart").unwrap().usage().bytes(), 1000);
    /// # drop(items);
    /// # }
    /// ```
    pub fn by_target_prefix(segments: usize) -> Self {
        Self::with_rule(Rule::Target(segments))
    }

    /// Makes a layer that runs spans without a service of their own in the service named as the span.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() {
    /// use dogtag::{Service, ServiceLayer};
    /// use tracing_subscriber::prelude::*;
    ///
    /// tracing_subscriber::registry().with(ServiceLayer::by_span_name()).init();
    /// let parsed = tracing::info_span!("parse").in_scope(|| vec![0_u8; 1000]);
    /// assert_eq!(Service::by_name("parse").unwrap().usage().bytes(), 1000);
    /// # drop(parsed);
    /// # }
    /// ```
    pub fn by_span_name() -> Self {
        Self::with_rule(Rule::Name)
    }

    /// Makes a layer that runs spans without a service of their own in the one that `choose` returns,
    /// if any. The layer calls it once for each such span, on the thread that makes the span. It must
    /// not make spans itself.
    ///
    /// ```
    /// use dogtag::{Service, ServiceLayer};
    ///
    /// let database = Service::builder("database").soft_limit(1 << 30).register()?;
    /// let layer = ServiceLayer::by(move |span| {
    ///     span.metadata().target().starts_with("sqlx").then(|| database.clone())
    /// });
    /// # drop(layer);
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    pub fn by(choose: impl Fn(&Attributes<'_>) -> Option<Service> + Send + Sync + 'static) -> Self {
        Self::with_rule(Rule::By(Box::new(choose)))
    }

    /// Sets the name of the field that names the service, which is `service` by default.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() {
    /// use dogtag::{Service, ServiceLayer};
    /// use tracing_subscriber::prelude::*;
    ///
    /// tracing_subscriber::registry().with(ServiceLayer::new().with_field("tenant")).init();
    /// let rows = tracing::info_span!("query", tenant = "acorn").in_scope(|| vec![0_u8; 1000]);
    /// assert_eq!(Service::by_name("acorn").unwrap().usage().bytes(), 1000);
    /// # drop(rows);
    /// # }
    /// ```
    pub fn with_field(mut self, field: &'static str) -> Self {
        self.names.field = field;
        self
    }

    /// Sets whether the layer keeps the services that spans have named for as long as it exists, which
    /// is the default. With `false` they end with their last span and block.
    ///
    /// Choose `false` if names come and go, such as one for each
    /// tenant or request. Then their figures go to those that have
    /// [ended](crate::Snapshot::ended).
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() {
    /// use dogtag::{Service, ServiceLayer};
    /// use tracing_subscriber::prelude::*;
    ///
    /// tracing_subscriber::registry().with(ServiceLayer::new().keep_services(false)).init();
    /// tracing::info_span!("request", service = "request-17").in_scope(|| drop(vec![0_u8; 1000]));
    /// assert_eq!(Service::by_name("request-17"), None);
    /// # }
    /// ```
    pub fn keep_services(mut self, keep: bool) -> Self {
        self.names.keeps_services = keep;
        self
    }

    fn with_rule(rule: Rule) -> Self {
        let _apart = Apart::enter();
        Self { id: LayerId::begin(), subscribers: 0, rule, names: Names::new() }
    }
}

impl Default for ServiceLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ServiceLayer {
    fn drop(&mut self) {
        let _apart = Apart::enter();
        self.id.end();
        layer_id::begin_epoch();
        spans::leave_if_nobody_tells();
        drop_contained(mem::replace(&mut self.rule, Rule::None));
    }
}

impl<S> Layer<S> for ServiceLayer
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_layer(&mut self, _: &mut S) {
        self.join();
    }

    // This and the next are asked again whenever a layer was exchanged, of every layer.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        layer_id::begin_epoch();
        Interest::always()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        layer_id::begin_epoch();
        None
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.make(attributes, id, false, None, &context);
    }

    fn on_record(&self, id: &Id, values: &Values<'_>, context: Context<'_, S>) {
        self.record(id, values, &context);
    }

    #[inline]
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.enter(id, &context);
    }

    #[inline]
    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.exit(id, &context);
    }
}

/// What is done for a caller, which has the spans.
impl ServiceLayer {
    /// Notes the service of a new span, which may be known.
    fn make<C: Caller>(
        &self,
        attributes: &Attributes<'_>,
        id: &Id,
        is_hidden: bool,
        known: Option<&Service>,
        caller: &C,
    ) {
        let _apart = Apart::enter();
        let Some(span) = caller.span(id) else { return };
        spans::look_after(&Called { caller, has_current: true });
        let own = known.cloned().or_else(|| self.own(attributes));
        let inherited = if own.is_none() { self.inherited(attributes, &span, caller) } else { None };
        let number = id.into_u64();
        let mut extensions = span.extensions_mut();
        if let Some(known) = extensions.get_mut::<Attribution>() {
            // Another layer of this kind has come first.
            let left_over = match own {
                Some(own) if !known.is_anothers(self.id) => known.choose(own, self.id),
                own => own,
            };
            drop(extensions);
            return drop((left_over, inherited));
        }
        let mut attribution = match own {
            Some(own) => Attribution::chosen(number, own, self.id),
            None => Attribution::new(number, inherited),
        };
        attribution.hidden = is_hidden.then(|| attributes.metadata());
        let (token, service) = (attribution.token, attribution.origin());
        extensions.insert(attribution);
        if self.is_settled() {
            spans::remember(self.key(id), token.generation(), token, service, is_hidden);
        }
    }

    fn record<C: Caller>(&self, id: &Id, values: &Values<'_>, caller: &C) {
        let _apart = Apart::enter();
        let Some(span) = caller.span(id) else { return };
        if let Some(attached) = spans::receive(id.into_u64()) {
            self.set(&span, attached, |_| true);
        } else if let Some(named) = self.names.named(|name| values.record(name)) {
            self.set(&span, named, |attribution| !attribution.is_anothers(self.id));
        }
    }

    #[inline]
    fn enter<C: Caller>(&self, id: &Id, caller: &C) {
        let (key, place) = (self.key(id), generation_of(id.into_u64()));
        let generation = place.get();
        if !(self.is_settled() && spans::enter_remembered(key, place, generation)) {
            self.look_up_and_enter(key, generation, caller);
        }
    }

    #[inline]
    fn exit<C: Caller>(&self, id: &Id, caller: &C) {
        let key = self.key(id);
        if !(self.is_settled() && spans::exit(key)) {
            spans::exit_here(key, &Called { caller, has_current: true });
        }
    }

    /// Makes it a part of one more subscriber.
    fn join(&mut self) {
        self.subscribers = self.subscribers.saturating_add(1).min(2);
        layer_id::begin_epoch();
    }

    /// Whether all spans with that metadata run in one service, which the layer keeps, or in none of
    /// their own.
    fn is_constant(&self, metadata: &Metadata<'_>) -> bool {
        self.is_settled()
            && self.rule.is_constant()
            && self.names.keeps_services
            && metadata.fields().field(self.names.field).is_none()
    }

    #[inline]
    fn key(&self, id: &Id) -> Key {
        Key { layer: self.id, span: id.into_u64() }
    }

    /// Whether there is one subscriber that this layer is a part of. An exchange begins another
    /// epoch.
    #[inline]
    fn is_settled(&self) -> bool {
        self.subscribers == 1
    }

    #[cold]
    #[inline(never)]
    fn look_up_and_enter<C: Caller>(&self, key: Key, generation: u64, caller: &C) {
        // By now the span itself is the current one.
        spans::look_after(&Called { caller, has_current: false });
        let Some(span) = caller.span(&Id::from_u64(key.span)) else { return };
        let extensions = span.extensions();
        if let Some(attribution) = extensions.get::<Attribution>() {
            // The span holds the service while it is locked.
            let (token, service) = (attribution.token, attribution.origin());
            spans::enter(key, token, service, attribution.hidden.is_some());
            if self.is_settled() {
                spans::remember(key, generation, token, service, attribution.hidden.is_some());
            }
            return;
        }
        drop(extensions);
        // It was made while there was no such layer, or hidden from it.
        let _apart = Apart::enter();
        let mut extensions = span.extensions_mut();
        if extensions.get_mut::<Attribution>().is_none() {
            extensions.insert(Attribution::new(key.span, None));
        }
        if let Some(attribution) = extensions.get_mut::<Attribution>() {
            spans::enter(key, attribution.token, attribution.origin(), false);
        }
    }

    fn set<'span, S: LookupSpan<'span>>(
        &self,
        span: &SpanRef<'span, S>,
        service: Service,
        may_choose: impl FnOnce(&Attribution) -> bool,
    ) {
        let number = span.id().into_u64();
        let mut extensions = span.extensions_mut();
        if extensions.get_mut::<Attribution>().is_none() {
            extensions.insert(Attribution::new(number, None));
        }
        let Some(attribution) = extensions.get_mut::<Attribution>() else { return };
        if !may_choose(attribution) {
            drop(extensions);
            return drop(service);
        }
        let record = service.record();
        let former = attribution.choose(service, self.id);
        spans::change(attribution.token, record);
        // Not dropped while the span is locked.
        drop(extensions);
        drop(former);
    }

    /// Returns the service that a span's fields name, or that the rule chooses.
    fn own(&self, attributes: &Attributes<'_>) -> Option<Service> {
        self.names.named(|name| attributes.record(name)).or_else(|| self.rule.choose(attributes, &self.names))
    }

    /// Returns what a span inherits from its parent.
    fn inherited<'a, C: Caller>(
        &self,
        attributes: &Attributes<'_>,
        span: &SpanRef<'a, C::Spans>,
        caller: &'a C,
    ) -> Option<(Service, Token)> {
        let parent = caller.parent(attributes)?;
        if self.is_settled()
            && let Some(remembered) = spans::remembered(self.key(&parent), generation_of(parent.into_u64()))
        {
            return remembered;
        }
        let parent = caller.parent_of(span, &parent)?;
        parent.extensions().get::<Attribution>()?.inherit()
    }
}
