//! rustls asks, the certificate store answers: the only `ResolvesServerCert` of the house.

use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::store::CertStore;

/// Chooses the certificate of a handshake by its server name.
#[derive(Debug)]
pub struct CertResolver(Arc<CertStore>);

impl CertResolver {
    /// A resolver over `store`; what is committed there later counts from the next handshake on.
    pub fn new(store: Arc<CertStore>) -> CertResolver {
        CertResolver(store)
    }
}

impl ResolvesServerCert for CertResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.find(hello.server_name())
    }
}
