//! dogtag's services, for the programs that have them.

use crate::workloads::Services;
use dogtag::{InServiceExt, Service};

#[derive(Clone, Copy)]
pub struct Dogtag;

impl Services for Dogtag {
    type Service = Service;

    fn service(self, number: u64) -> Service {
        Service::register(format!("service {number}")).unwrap()
    }

    fn run<R>(self, service: &Service, work: impl FnOnce() -> R) -> R {
        service.run(work)
    }

    fn enter(self, service: &Service) -> impl Sized {
        service.enter()
    }

    fn request<F: Future + Send>(self, number: u64, future: F) -> impl Future<Output = F::Output> + Send {
        future.in_service(&self.service(number))
    }
}
