//! The authority itself: its certificate and its key, and the certificates that it makes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData,
};

use super::certificate::{self, CaCertificate};
use super::constraints::Constraints;
use super::{BACKDATED, CA_FILE, CA_KEY_FILE, CA_LIFE, FORMER_FILE, LEAF_LIFE, LocalCaError, at, write};
use crate::base::certified_name::CertifiedName;
use crate::keys::{LocalKeys, file, subject_alt_name};
use crate::tls::pair::{CertificateFiles, Pair, PairError};

/// The longest name that is put into a leaf's subject (RFC 5280, appendix A.1: `ub-common-name` is 64).
const LONGEST_NAME: usize = 48;

/// An authority that may certify what was asked for.
pub(super) struct Authority {
    folder: PathBuf,
    pem: String,
    /// Its certificate.
    pub(super) certificate: CaCertificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority of `folder`, which may vouch for `names`. One that may not, that may vouch for anybody, or that is
    /// out of its time makes room for a new one; that one may vouch for all that the old one could be asked for.
    pub(super) fn open(
        folder: &Path,
        names: &BTreeSet<CertifiedName>,
        now: SystemTime,
    ) -> Result<Authority, LocalCaError> {
        let files = CertificateFiles { cert: folder.join(CA_FILE), key: folder.join(CA_KEY_FILE) };
        let constraints = Constraints::local().with(names);
        if !files.cert.exists() {
            create(&files, &constraints, now)?;
            tracing::info!(
                ca = %files.cert.display(),
                "made a local certificate authority for {constraints}: `doorward trust` has this machine believe it"
            );
            return Authority::load(folder, &files);
        }
        let old = Authority::load(folder, &files)?;
        let Some(reason) = old.objection(names, now) else { return Ok(old) };
        remember(folder, &files)?;
        // Files of one folder share its authority: the next start of another one must not find its hosts gone.
        let constraints = old.certificate.constraints.into_iter().fold(constraints, Constraints::joined);
        create(&files, &constraints, now)?;
        tracing::warn!(
            ca = %files.cert.display(), %reason,
            "the local certificate authority is replaced, and nothing trusts the new one yet: run `doorward trust` again"
        );
        Authority::load(folder, &files)
    }

    /// Makes a key and a certificate for `site`.
    pub(super) fn certify(
        &self,
        files: &CertificateFiles,
        site: &str,
        names: &BTreeSet<CertifiedName>,
        now: SystemTime,
    ) -> Result<(), LocalCaError> {
        let mut params = CertificateParams::default();
        // Not the bare name: OpenSSL holds a subject that looks like a host against the authority's constraints, where
        // no other DNS name stands in the certificate.
        let subject: String = site.chars().take(LONGEST_NAME).chain(" (Doorward)".chars()).collect();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.subject_alt_names = names.iter().map(subject_alt_name).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LEAF_LIFE).min(self.certificate.not_after).into();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(&files.key, &key.serialize_pem(), 0o600)?;
        write(&files.cert, &format!("{}{}", certificate.pem(), self.pem), 0o644)?;
        tracing::info!(%site, folder = %self.folder.display(), "made a local certificate");
        Ok(())
    }

    fn load(folder: &Path, files: &CertificateFiles) -> Result<Authority, LocalCaError> {
        let damaged = |source| LocalCaError::Authority { folder: folder.to_owned(), source };
        let pair = Pair::load(&LocalKeys::new(), files).map_err(damaged)?;
        let text = |path: &Path| -> Result<String, LocalCaError> {
            let contents = file::read(path).map_err(at(path))?;
            String::from_utf8(contents.bytes)
                .map_err(|error| at(path)(io::Error::new(io::ErrorKind::InvalidData, error)))
        };
        let pem = text(&files.cert)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&text(&files.key)?)?)?;
        let der = pair
            .certified
            .end_entity_cert()
            .map_err(|source| damaged(PairError::Unusable { path: files.cert.clone(), source }))?;
        let certificate = CaCertificate::of(der)
            .ok_or_else(|| damaged(PairError::Damaged { path: files.cert.clone(), number: 1 }))?;
        Ok(Authority { folder: folder.to_owned(), pem, certificate, issuer })
    }

    /// Why this authority cannot be the one for `names`.
    fn objection(&self, names: &BTreeSet<CertifiedName>, now: SystemTime) -> Option<String> {
        if let Err(reason) = self.certificate.validity(now) {
            return Some(reason.to_string());
        }
        let Some(constraints) = &self.certificate.constraints else {
            return Some("it could vouch for any name in the world".to_owned());
        };
        let missing: Vec<String> =
            names.iter().filter(|name| !constraints.permit(name)).map(CertifiedName::to_string).collect();
        (!missing.is_empty()).then(|| format!("it may not vouch for {}", missing.join(", ")))
    }
}

fn create(files: &CertificateFiles, constraints: &Constraints, now: SystemTime) -> Result<(), LocalCaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, certificate::name_for(&key.subject_public_key_info()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // RFC 5280, section 4.2.1.10: "Conforming CAs MUST mark this extension as critical", and so rcgen does.
    params.name_constraints = Some(constraints.extension());
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + CA_LIFE).into();
    let certificate = params.self_signed(&key)?;
    // The key first: an authority without its key is damaged, a key without its authority is nothing yet.
    write(&files.key, &key.serialize_pem(), 0o600)?;
    write(&files.cert, &certificate.pem(), 0o644)
}

/// Moves the certificate of an authority that goes to those that were: `doorward trust` and `untrust` take these out of
/// where they are trusted. From then on, until the new one is there, the folder has no authority.
fn remember(folder: &Path, files: &CertificateFiles) -> Result<(), LocalCaError> {
    let path = folder.join(FORMER_FILE);
    let text = |path: &Path| match file::read(path) {
        Ok(contents) => Ok(String::from_utf8_lossy(&contents.bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(at(path)(error)),
    };
    write(&path, &format!("{}{}", text(&files.cert)?, text(&path)?), 0o644)?;
    fs::remove_file(&files.cert).map_err(at(&files.cert))
}
