//! Spans of `tracing` as scopes of services, for programs that have spans already.
//!
//! Above everything but `lib.rs`: this room enters services like any user does. A
//! span's service is kept with the span, in the subscriber's own storage; what a
//! thread is in, is kept with the thread ([`spans`]).

mod spans;
mod unattributed;

pub use unattributed::{Unattributed, UnattributedExt};

use crate::announce;
use crate::ledger::slots::Record;
use crate::service::{Service, check_name, gate, name_too_long};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::table::beginning;
use dashmap::DashMap;
use spans::{Apart, Key};
use std::any::TypeId;
use std::fmt::{self, Write as _};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record as Values};
use tracing::{Dispatch, Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{Extensions, LookupSpan, SpanRef};

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
/// Each subscriber may have its own. One that is exchanged, by tracing-subscriber's
/// `reload`, should be exchanged while no span is entered.
///
/// In the closure of [`by`](Self::by), and under
/// [`unattributed()`](UnattributedExt::unattributed) in all other layers,
/// [`Service::current`] is the unattributed service.
///
/// A thread remembers the services of some 30 spans that it made or entered last; to
/// enter one of those costs some 60 instructions. Others are looked up in the
/// subscriber, which takes a lock of the span. To leave one looks nothing up. The
/// allocations in it cost what they cost after [`Service::enter`].
#[derive(Debug)]
pub struct ServiceLayer {
    number: u32,
    field: &'static str,
    rule: Rule,
    keeps_services: bool,
    /// Those that are kept, by their names.
    kept: DashMap<Box<str>, Service>,
    /// Changes whenever a span that has a place here is new, gets another service, or is
    /// closed: so what threads remember of spans is known to be true, though their
    /// numbers are used again.
    versions: Box<[AtomicU64; VERSIONS]>,
}

const VERSIONS: usize = 1024;

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
        // Tells the layers of several subscribers apart, whose spans have the same
        // numbers.
        static NEXT: AtomicU32 = AtomicU32::new(0);

        let _apart = Apart::enter();
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            field: "service",
            rule,
            keeps_services: true,
            kept: DashMap::new(),
            versions: Box::new([const { AtomicU64::new(0) }; VERSIONS]),
        }
    }
}

impl Default for ServiceLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for ServiceLayer
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let _apart = Apart::enter();
        let Some(span) = context.span(id) else { return };
        let own = self.named(|name| attributes.record(name)).or_else(|| self.ruled(attributes));
        let attribution = match own {
            Some(service) => Some(self.attribution(service, id)),
            None => self.inherited(attributes, &span, &context),
        };
        let version = self.version(id).fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let Some(attribution) = attribution else { return spans::remember(self.key(id), version, None) };
        let origin = attribution.origin();
        let mut extensions = span.extensions_mut();
        // Another layer of this kind may have come first.
        if extensions.get_mut::<Attribution>().is_none() {
            extensions.insert(attribution);
            spans::remember(self.key(id), version, Some(origin));
        }
    }

    fn on_record(&self, id: &Id, values: &Values<'_>, context: Context<'_, S>) {
        let _apart = Apart::enter();
        let service = self.named(|name| values.record(name));
        if let Some((service, span)) = service.zip(context.span(id)) {
            self.set(&span, service);
        }
    }

    #[inline]
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let (key, version) = (self.key(id), self.version(id).load(Ordering::Acquire));
        if spans::enter_remembered(key, version) {
            return;
        }
        let Some(span) = context.span(id) else { return };
        let extensions = span.extensions();
        let attribution = self.own(&extensions);
        // The span holds the service while it is locked.
        let service = attribution.map(Attribution::origin);
        spans::enter(key, service);
        if attribution.is_none_or(Attribution::is_lasting) {
            spans::remember(key, version, service);
        }
    }

    #[inline]
    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        spans::exit(self.key(id));
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.version(&id).fetch_add(1, Ordering::Release);
    }

    unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
        if id == TypeId::of::<Self>() {
            Some(std::ptr::from_ref(self).cast())
        } else if id == TypeId::of::<Attach>() {
            Some(std::ptr::from_ref(const { &Attach(attach_in::<S>) }).cast())
        } else {
            None
        }
    }
}

impl Service {
    /// Has a span run in this service from now on, wherever it is entered; also
    /// where the calling thread has entered it already. Children that it has
    /// already keep what they have.
    ///
    /// `false` if that is not possible: the span is disabled, or its subscriber
    /// has no [`ServiceLayer`]. (One whose own filter hides the span takes the service
    /// and does not enter it.) A span that gets a third service or more is looked up
    /// whenever it is entered, and it holds its first one until it is closed.
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
        span.with_subscriber(|(id, dispatch)| {
            let Some(Attach(attach)) = dispatch.downcast_ref::<Attach>() else { return false };
            attach(dispatch, id, self.clone())
        })
        .unwrap_or(false)
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

/// What is kept with a span: the service that it runs in, and the span that this
/// comes from, itself or an ancestor.
struct Attribution {
    layer: u32,
    service: Service,
    origin: u64,
    /// The first service of a span that has had others: a thread that remembers it may
    /// be about to enter it. The later ones are not remembered.
    first: Option<Service>,
}

impl Attribution {
    fn origin(&self) -> (&'static Record, u64) {
        (self.service.record(), self.origin)
    }

    /// Whether the span holds this service as long as it can be entered.
    fn is_lasting(&self) -> bool {
        self.first.is_none()
    }
}

/// A way from a subscriber of any type to its layer and its spans.
struct Attach(fn(&Dispatch, &Id, Service) -> bool);

fn attach_in<S>(dispatch: &Dispatch, id: &Id, service: Service) -> bool
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let _apart = Apart::enter();
    let layer = dispatch.downcast_ref::<ServiceLayer>();
    let Some((layer, span)) = layer.zip(dispatch.downcast_ref::<S>().and_then(|spans| spans.span(id))) else {
        return false;
    };
    layer.set(&span, service);
    true
}

impl ServiceLayer {
    fn key(&self, id: &Id) -> Key {
        Key { layer: self.number, span: id.into_u64() }
    }

    fn version(&self, id: &Id) -> &AtomicU64 {
        &self.versions[id.into_u64() as usize % VERSIONS]
    }

    /// Of a span that has a service of its own.
    fn attribution(&self, service: Service, span: &Id) -> Attribution {
        Attribution { layer: self.number, service, origin: span.into_u64(), first: None }
    }

    /// What this layer, and not another one, keeps with a span.
    fn own<'a>(&self, extensions: &'a Extensions<'_>) -> Option<&'a Attribution> {
        extensions.get::<Attribution>().filter(|attribution| attribution.layer == self.number)
    }

    fn set<'span, S: LookupSpan<'span>>(&self, span: &SpanRef<'span, S>, service: Service) {
        let id = span.id();
        let mut extensions = span.extensions_mut();
        if extensions.get_mut::<Attribution>().is_some_and(|other| other.layer != self.number) {
            return;
        }
        spans::change(self.key(&id), service.record());
        let former = extensions.remove::<Attribution>();
        let (former, first) = match former {
            None => (None, None),
            Some(Attribution { service, first: None, .. }) => (None, Some(service)),
            Some(Attribution { service, first, .. }) => (Some(service), first),
        };
        extensions.insert(Attribution { first, ..self.attribution(service, &id) });
        // Not dropped while the span is locked.
        drop(extensions);
        drop(former);
        self.version(&id).fetch_add(1, Ordering::Release);
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
    ) -> Option<Attribution>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let current = context.current_span();
        let parent = if attributes.is_contextual() { current.id() } else { attributes.parent() };
        let parent = parent?;
        let version = self.version(parent).load(Ordering::Acquire);
        if let Some(remembered) = spans::remembered(self.key(parent), version) {
            // The parent holds it: it is open as long as it has children.
            let (record, origin) = remembered?;
            let service = Service::of_held(record);
            return Some(Attribution { layer: self.number, service, origin, first: None });
        }
        let parent = span.parent()?;
        let extensions = parent.extensions();
        let Attribution { layer, service, origin, .. } = self.own(&extensions)?;
        Some(Attribution { layer: *layer, service: service.clone(), origin: *origin, first: None })
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
            announce::span_without_service(name, error);
            return None;
        }
        if let Some(known) = self.kept(name) {
            return Some(known);
        }
        let service = match Service::register(name) {
            Ok(service) => service,
            Err(error) => {
                announce::span_without_service(name, error);
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
            announce::span_without_service(&name.text, name_too_long(&name.text, name.len));
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
