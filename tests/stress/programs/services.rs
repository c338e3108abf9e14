//! What a thread does with services: registers, finds and looks at them.

use super::watch::expect_growth;
use super::worker::Worker;
use crate::engine::account::{Account, Held};
use crate::engine::{aside, ensure};
use dogtag::{RegisterError, Service, Usage};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// When there are so many, no more are registered.
const MOST_SERVICES: usize = 24;

impl Worker<'_> {
    pub fn register_name(&mut self, name: usize, parent: Option<usize>, hard: Option<u64>) {
        let world = self.world;
        // What has a limit from the beginning is known to have it only if nobody else had the name.
        let hard = hard.filter(|_| world.in_turn);
        let name = aside(|| world.name(name));
        let Some((parent, living)) = aside(|| self.before_registering(parent, |known| known.name == name))
        else {
            return;
        };
        let parent_known = parent.as_ref().map(|parent| &parent.account);
        let is_others = living.as_ref().is_some_and(|living| {
            let same = |(one, other)| Arc::ptr_eq(one, other);
            parent_known.is_some() && !living.parent.as_ref().zip(parent_known).is_some_and(same)
        });
        // A living service keeps its limits; whoever asks for others is told.
        let has_others = living
            .as_ref()
            .is_some_and(|living| hard.is_some_and(|hard| hard != living.hard.load(Ordering::SeqCst)));
        let mut builder = Service::builder(&name);
        if let Some(parent) = &parent {
            builder = builder.parent(&parent.service);
        }
        if let Some(hard) = hard {
            builder = builder.hard_limit(hard);
        }
        // What is said of an error is the caller's memory.
        let registered = if is_others || has_others || !world.in_turn {
            aside(|| builder.register())
        } else {
            builder.register()
        };
        aside(|| match registered {
            Ok(service) => {
                ensure!(!is_others && !has_others && (service.name() == name));
                let known = world.known(&service, hard);
                if let (true, Some(living)) = (world.in_turn, &living) {
                    ensure!(Arc::ptr_eq(living, &known), "{name} is another one's");
                }
                let is_new = living.is_none() && world.in_turn;
                ensure!(
                    !is_new || service.usage() == Usage::default(),
                    "{name} begins with another's figures"
                );
                world.board.lock().unwrap().push(Held::new(service, known));
            }
            Err(RegisterError::OtherParent { .. }) => ensure!(is_others || !world.in_turn, "{name}: parent"),
            Err(RegisterError::OtherLimits { .. }) => {
                ensure!(!is_others && (has_others || !world.in_turn), "{name}: limits");
            }
            Err(error) => panic!("{error}"),
        });
    }

    pub fn register_handle(&mut self, handle: u32, parent: Option<usize>, hard: Option<u64>) {
        let world = self.world;
        let (name, number) = aside(|| world.unique());
        let Some((parent, living)) =
            aside(|| self.before_registering(parent, |known| known.handle == handle))
        else {
            return;
        };
        aside(|| {
            let mut builder = Service::builder(&name).handle(handle);
            if let Some(parent) = &parent {
                builder = builder.parent(&parent.service);
            }
            if let Some(hard) = hard {
                builder = builder.hard_limit(hard);
            }
            match builder.register() {
                Ok(service) => {
                    ensure!(living.is_none(), "{number}: {handle} was taken");
                    assert_eq!((service.usage(), service.handle()), (Usage::default(), handle));
                    let known = world.known(&service, hard);
                    world.board.lock().unwrap().push(Held::new(service, known));
                }
                Err(RegisterError::HandleTaken { handle: taken, .. }) => {
                    ensure!(taken == handle && (living.is_some() || !world.in_turn), "{handle} was free");
                }
                Err(error) => panic!("{error}"),
            }
        });
    }

    /// The parent, and in turn who has the name or handle already. `None` if there are services
    /// enough.
    fn before_registering(
        &self,
        parent: Option<usize>,
        is_it: impl Fn(&Account) -> bool,
    ) -> Option<(Option<Held>, Option<Arc<Account>>)> {
        if self.world.board.lock().unwrap().len() >= MOST_SERVICES {
            return None;
        }
        let parent = parent.and_then(|parent| self.world.service(parent));
        if !self.world.in_turn {
            return Some((parent, None));
        }
        // Then all have ended that can.
        self.world.check();
        Some((parent, self.world.living(is_it)))
    }

    /// A service by its name and its handle.
    pub fn find(&self, service: usize) {
        let world = self.world;
        let Some(Held { service, account: known, .. }) = &world.service(service) else { return };
        let (by_name, by_handle) = (Service::by_name(service.name()), Service::by_handle(service.handle()));
        if world.in_turn {
            world.check();
            let found = |service: Option<Service>| service.map(|service| world.known(&service, None));
            let same = |found: Option<Arc<Account>>, living: Option<Arc<Account>>| match (&found, &living) {
                (Some(found), Some(living)) => Arc::ptr_eq(found, living),
                (found, living) => found.is_none() && living.is_none(),
            };
            let by = |is_it: &dyn Fn(&Account) -> bool| world.living(is_it);
            ensure!(same(found(by_name), by(&|other| other.name == known.name)), "{}: by name", known.name);
            ensure!(
                same(found(by_handle), by(&|other| other.handle == known.handle)),
                "{}: by handle",
                known.name
            );
        } else {
            ensure!(by_name.is_none_or(|found| found.name() == service.name()));
            ensure!(by_handle.is_none_or(|found| found.handle() == service.handle()));
        }
    }

    /// Reads figures in the midst of it all.
    pub fn look(&self, service: usize) {
        if self.world.in_turn {
            return self.world.check();
        }
        let Some(Held { service, .. }) = &self.world.service(service) else { return };
        let (before, after) = (service.usage(), service.usage());
        expect_growth(service.name(), before, after);
        let (before, after) = (dogtag::totals(), dogtag::totals());
        expect_growth("totals", before, after);
        _ = (service.usage_with_children(), service.headroom());
    }
}
