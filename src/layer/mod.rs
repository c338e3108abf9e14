//! Spans of `tracing` as scopes of services, for programs that have spans already.
//!
//! Above everything but `lib.rs`: this room enters services like any user does. A
//! span's service is kept with the span, in the subscriber's own storage; what a
//! thread is in, is kept with the thread ([`spans`]).

mod attribution;
mod spans;
mod unattributed;

pub use unattributed::{Unattributed, UnattributedExt};

use crate::contained::drop_contained;
use crate::events;
use crate::format::beginning;
use crate::service::{Service, check_name, gate, name_too_long};
use attribution::{Attribution, LayerId, Token, generation_of};
use dashmap::DashMap;
use spans::{Apart, Current, Here, Key};
use std::fmt::{self, Write as _};
use std::mem;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as Values};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Metadata, Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// A layer for `tracing` subscribers that runs spans in services.
///
/// A span with a field `service` runs in the service of that name, wherever it is
/// entered: on any thread, in any number of threads at once, at each poll of an
/// instrumented future. Services are registered when they are first named.
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
/// has one. So a task which is spawned with a child of a request's span belongs to
/// the request's service, on whichever thread. Where that ancestor is what the
/// thread is in already, the thread stays where it is: a scope entered by hand
/// inside of the ancestor holds in its children too.
///
/// # Without a change to code
///
/// [`by_target`](Self::by_target), [`by_span_name`](Self::by_span_name) and
/// [`by`](Self::by) choose services for spans that name none; libraries that have
/// spans show up with no line changed. By hand: [`Service::attach`].
///
/// # What tracing itself allocates
///
/// Subscribers allocate for spans and events, on the thread that makes them. What
/// this layer allocates is nobody's, that is, the unattributed service's; so that
/// this holds for the registry and for all other layers too, end with
/// [`unattributed()`](UnattributedExt::unattributed).
///
/// # Filters
///
/// A span that is filtered out does not exist, and changes no service. Filters
/// of a single layer (`with_filter`) do not touch the others, so a log can be terse and services complete;
/// but a subscriber in which one layer has no filter makes all spans and events, to
/// throw most of them away. This layer looks at spans only, and at as many as you
/// like:
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
/// matter. (Of two, the one that comes first has the spans that it finds services for.)
/// Each subscriber may have its own.
///
/// # Layers that are exchanged
///
/// A layer may be exchanged or taken away at any time, by tracing-subscriber's `reload`. Spans keep
/// their services, and their children inherit them from the next layer on. A thread
/// that is in a span meanwhile is taken out of the span's service when it leaves the span, if
/// there is another layer by then; if there is none, when the span is closed on that thread,
/// or when the thread enters or leaves a span that a layer, whichever, is told of.
///
/// A layer that came into a subscriber later, or is shared by several, looks spans up
/// whenever they are entered.
///
/// In the closure of [`by`](Self::by), and under
/// [`unattributed()`](UnattributedExt::unattributed) in all other layers,
/// [`Service::current`] is the unattributed service.
///
/// A thread remembers the services of some 30 spans that it made or entered last; to
/// enter one of those costs some 80 instructions. Others are looked up in the
/// subscriber, which takes a lock of the span. To leave one looks nothing up. The
/// allocations in it cost what they cost after [`Service::enter`].
#[derive(Debug)]
#[must_use = "a layer does nothing before it is part of a subscriber"]
pub struct ServiceLayer {
    id: LayerId,
    /// How many subscribers were built with it: 2 for more. One that was put into a subscriber
    /// later, or is shared by some, cannot tell by a span's number which span that is, and looks
    /// it up.
    subscribers: u8,
    field: &'static str,
    rule: Rule,
    keeps_services: bool,
    /// Those that are kept, by their names.
    kept: DashMap<Box<str>, Service>,
}

impl ServiceLayer {
    /// Spans with a field `service` run in the service of that name.
    ///
    /// The value may be a string, or anything that is recorded with `%` or `?`. A
    /// span declared with an `Empty` field gets its service when it is recorded. A value that
    /// can be no name, since it is empty or longer than [`Service::MAX_NAME_LEN`], chooses none,
    /// and a `tracing` event (target `dogtag`, level error) tells of it, once a second at most.
    pub fn new() -> Self {
        Self::with_rule(Rule::None)
    }

    /// Spans that name no service run in one that is named as their target: the path of
    /// the module that they are in, unless they say otherwise.
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
        Self::with_rule(Rule::Target)
    }

    /// Spans that name no service run in one that has the span's name.
    pub fn by_span_name() -> Self {
        Self::with_rule(Rule::Name)
    }

    /// Spans that name no service run in the one that `choose` chooses, if any. It
    /// is called once for each span, on the thread that makes it, and must not
    /// make spans itself.
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

    /// Chooses the field that names the service, instead of `service`.
    #[must_use]
    pub fn with_field(mut self, field: &'static str) -> Self {
        self.field = field;
        self
    }

    /// Whether services that spans have named are kept as long as the layer (which
    /// is so unless this says otherwise), or end with their last span and block.
    ///
    /// Choose `false` where names are made up as the program runs, one for each
    /// tenant or request: their figures go to those that have
    /// [ended](crate::Snapshot::ended) then.
    #[must_use]
    pub fn keep_services(mut self, keep: bool) -> Self {
        self.keeps_services = keep;
        self
    }

    fn with_rule(rule: Rule) -> Self {
        let _apart = Apart::enter();
        Self {
            id: LayerId::begin(),
            subscribers: 0,
            field: "service",
            rule,
            keeps_services: true,
            kept: DashMap::new(),
        }
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
        attribution::begin_epoch();
        spans::leave_if_nobody_tells();
        drop_contained(mem::replace(&mut self.rule, Rule::None));
    }
}

impl<S> Layer<S> for ServiceLayer
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_layer(&mut self, _: &mut S) {
        self.subscribers = self.subscribers.saturating_add(1).min(2);
        attribution::begin_epoch();
    }

    // This and the next are asked again whenever a layer was exchanged, of every layer.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        attribution::begin_epoch();
        Interest::always()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        attribution::begin_epoch();
        None
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let _apart = Apart::enter();
        let Some(span) = context.span(id) else { return };
        spans::look_after(&Subscribed { context: &context, has_current: true });
        let own = self.named(|name| attributes.record(name)).or_else(|| self.ruled(attributes));
        let inherited = if own.is_none() { self.inherited(attributes, &span, &context) } else { None };
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
        let attribution = match own {
            Some(own) => Attribution::chosen(number, own, self.id),
            None => Attribution::new(number, inherited),
        };
        let (token, service) = (attribution.token, attribution.origin());
        extensions.insert(attribution);
        if self.is_settled() {
            spans::remember(self.key(id), token.generation(), token, service);
        }
    }

    fn on_record(&self, id: &Id, values: &Values<'_>, context: Context<'_, S>) {
        let _apart = Apart::enter();
        let Some(span) = context.span(id) else { return };
        if let Some(attached) = spans::receive(id.into_u64()) {
            self.set(&span, attached, |_| true);
        } else if let Some(named) = self.named(|name| values.record(name)) {
            self.set(&span, named, |attribution| !attribution.is_anothers(self.id));
        }
    }

    #[inline]
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let (key, place) = (self.key(id), generation_of(id.into_u64()));
        let generation = place.get();
        if !(self.is_settled() && spans::enter_remembered(key, place, generation)) {
            self.look_up_and_enter(key, generation, &context);
        }
    }

    #[inline]
    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let key = self.key(id);
        if !(self.is_settled() && spans::exit(key)) {
            spans::exit_here(key, &Subscribed { context: &context, has_current: true });
        }
    }
}

impl Service {
    /// Has a span run in this service from now on, wherever it is entered; also
    /// where the calling thread has entered it already. Children that it has
    /// already keep what they have.
    ///
    /// `false` if that is not possible: the span is disabled, or its subscriber
    /// has no [`ServiceLayer`], or one whose own filter hides the span. The layer may be
    /// behind whatever passes [`on_record`](tracing_subscriber::Layer::on_record) on, such as
    /// `reload`: it is told by way of that, and other layers get a record without values.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// use dogtag::{Service, ServiceLayer};
    /// use tracing_subscriber::prelude::*;
    ///
    /// tracing_subscriber::registry().with(ServiceLayer::new()).init();
    ///
    /// let auth = Service::register("auth")?;
    /// let span = tracing::info_span!("login");
    /// assert!(auth.attach(&span));
    /// let tokens = span.in_scope(|| vec![0_u8; 1000]);
    /// assert_eq!(auth.usage().bytes(), 1000);
    /// # drop(tokens);
    /// # Ok(())
    /// # }
    /// ```
    pub fn attach(&self, span: &Span) -> bool {
        let Some(metadata) = span.metadata() else { return false };
        // To the span's layer, wherever in the subscriber it is, goes by way of all that have to do
        // with the span: as values that were recorded, of which there are none.
        let values = metadata.fields().value_set(&[]);
        let send = |(id, dispatch): (&Id, &Dispatch)| {
            spans::send(id.into_u64(), self.record(), || dispatch.record(id, &Values::new(&values)))
        };
        span.with_subscriber(send).unwrap_or(false)
    }
}

/// How services are chosen for spans that name none.
enum Rule {
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

/// The subscriber that tells a layer something.
struct Subscribed<'a, 'b, S> {
    context: &'a Context<'b, S>,
    /// Whether the span that is current is the one that the thread has been in.
    has_current: bool,
}

impl<S> Here for Subscribed<'_, '_, S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn token(&self, span: u64) -> Option<Token> {
        let span = self.context.span(&Id::from_u64(span))?;
        span.extensions().get::<Attribution>().map(|attribution| attribution.token)
    }

    fn current(&self) -> Current {
        if !self.has_current {
            return Current::Unknown;
        }
        let current = self.context.current_span();
        match current.id() {
            Some(id) => Current::Span(id.into_u64()),
            None if current.is_known() => Current::None,
            None => Current::Unknown,
        }
    }
}

impl ServiceLayer {
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
    fn look_up_and_enter<S>(&self, key: Key, generation: u64, context: &Context<'_, S>)
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        // By now the span itself is the current one.
        spans::look_after(&Subscribed { context, has_current: false });
        let Some(span) = context.span(&Id::from_u64(key.span)) else { return };
        let extensions = span.extensions();
        if let Some(attribution) = extensions.get::<Attribution>() {
            // The span holds the service while it is locked.
            let (token, service) = (attribution.token, attribution.origin());
            spans::enter(key, token, service);
            if self.is_settled() {
                spans::remember(key, generation, token, service);
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
            spans::enter(key, attribution.token, attribution.origin());
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

    /// The service that a span's fields name.
    fn named(&self, record: impl FnOnce(&mut Named<'_>)) -> Option<Service> {
        let mut named = Named { layer: self, service: None };
        record(&mut named);
        named.service
    }

    /// What a span has from its parent.
    fn inherited<S>(
        &self,
        attributes: &Attributes<'_>,
        span: &SpanRef<'_, S>,
        context: &Context<'_, S>,
    ) -> Option<(Service, Token)>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let current = context.current_span();
        let parent = if attributes.is_contextual() { current.id() } else { attributes.parent() };
        let parent = parent?;
        if self.is_settled()
            && let Some(remembered) = spans::remembered(self.key(parent), generation_of(parent.into_u64()))
        {
            return remembered;
        }
        let parent = span.parent()?;
        parent.extensions().get::<Attribution>()?.inherit()
    }

    /// The service that the rule chooses.
    fn ruled(&self, attributes: &Attributes<'_>) -> Option<Service> {
        match &self.rule {
            Rule::None => None,
            Rule::Target => self.service(attributes.metadata().target()),
            Rule::Name => self.service(attributes.metadata().name()),
            Rule::By(choose) => choose(attributes),
        }
    }

    fn service(&self, name: &str) -> Option<Service> {
        if let Err(error) = check_name(name) {
            events::span_without_service(name, error);
            return None;
        }
        if let Some(known) = self.kept(name) {
            return Some(known);
        }
        let service = match Service::register(name) {
            Ok(service) => service,
            Err(error) => {
                events::span_without_service(name, error);
                return None;
            }
        };
        if self.keeps_services {
            let clone = service.clone();
            let _gate = gate();
            self.kept.insert(name.into(), clone);
        }
        Some(service)
    }

    /// Of a name that may be too long.
    fn service_of(&self, name: &Formatted) -> Option<Service> {
        if name.len > name.text.len() {
            events::span_without_service(&name.text, name_too_long(&name.text, name.len));
            return None;
        }
        self.service(&name.text)
    }

    fn kept(&self, name: &str) -> Option<Service> {
        if !self.keeps_services {
            return None;
        }
        let _gate = gate();
        self.kept.get(name).map(|known| known.clone())
    }
}

/// A value as text: the beginning, as far as it may be a name, and how long all of it is.
#[derive(Default)]
struct Formatted {
    text: String,
    len: usize,
}

impl fmt::Write for Formatted {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        // What comes behind something that was cut is left out, too.
        if self.len == self.text.len() {
            self.text.push_str(beginning(more, Service::MAX_NAME_LEN - self.text.len()));
        }
        self.len = self.len.saturating_add(more.len());
        Ok(())
    }
}

/// Looks for the field that names a service.
struct Named<'a> {
    layer: &'a ServiceLayer,
    service: Option<Service>,
}

impl Visit for Named<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == self.layer.field {
            self.service = self.layer.service(value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == self.layer.field {
            let mut name = Formatted::default();
            // Fails where the value's own formatting does.
            if write!(name, "{value:?}").is_ok() {
                self.service = self.layer.service_of(&name);
            }
        }
    }
}
