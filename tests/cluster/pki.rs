//! A certificate authority for one scenario, and what it signs, as the files that the roles read.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

const HOUR: Duration = Duration::from_secs(3600);

/// An authority.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub certificate_pem: String,
    pub key_pem: String,
    /// What is seen on the wire.
    pub der: Vec<u8>,
}

/// The files of one role.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// For an hour from an hour ago.
    Now,
    /// Until an hour ago.
    Past,
}

impl Authority {
    /// With a key of its own, so that two with one name do not trust each other.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = Validity::Now.range();
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a new key for servers and clients with these names: addresses, `spiffe://` URIs, or DNS names.
    pub fn sign(&self, names: &[&str], validity: Validity) -> Leaf {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains("://") => SanType::URI((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity.range();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Leaf {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            der: certificate.der().to_vec(),
        }
    }
}

impl Validity {
    fn range<T: From<SystemTime>>(self) -> (T, T) {
        let now = SystemTime::now();
        match self {
            Self::Now => ((now - HOUR).into(), (now + HOUR).into()),
            Self::Past => ((now - 2 * HOUR).into(), (now - HOUR).into()),
        }
    }
}

impl Files {
    /// In a folder of their own, named after the role.
    pub fn write(folder: &Path, role: &str, leaf: &Leaf, ca_pem: &str) -> Self {
        let folder = folder.join(format!("tls-{role}"));
        fs::create_dir_all(&folder).unwrap();
        let files = Self {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            ca: folder.join("ca.crt"),
        };
        files.replace(leaf);
        files.replace_ca(ca_pem);
        files
    }

    /// Certificate, then key, each in one step, as tools that renew certificates do. In between they do not fit.
    pub fn replace(&self, leaf: &Leaf) {
        replace(&self.certificate, &leaf.certificate_pem);
        replace(&self.key, &leaf.key_pem);
    }

    /// One or several authorities.
    pub fn replace_ca(&self, pem: &str) {
        replace(&self.ca, pem);
    }
}

fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file).unwrap();
}
