//! Seals what must not be read from the store: XChaCha20-Poly1305 with a random nonce of 24 bytes in front. The sealed
//! text belongs to its place: moved to another row, it does not open.

use std::{fmt, fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc};

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::CannotOpen;
use crate::config::memory::{VaultKeys, decode};

const NONCE_BYTES: usize = 24;

/// Where a key is made if nobody gives one.
const KEY_FILE: &str = "vault.key";

/// Seals and opens.
pub struct Vault {
    current: XChaCha20Poly1305,
    previous: Vec<XChaCha20Poly1305>,
}

/// A text that was opened, and with which key.
pub struct Opened {
    /// What was sealed.
    pub text: zeroize::Zeroizing<Vec<u8>>,
    /// An older key opened it.
    pub is_old: bool,
}

impl Vault {
    /// With the keys of the file, else with one that is kept in `data_dir`, and made there the first time.
    pub fn open(keys: Option<&VaultKeys>, data_dir: &Path) -> Result<Self, CannotOpen> {
        match keys {
            Some(keys) => Ok(Self::with(keys)),
            None => {
                let path = data_dir.join(KEY_FILE);
                let key = own_key(&path)
                    .map_err(|error| CannotOpen(format!("the vault's key {}: {error}", path.display())))?;
                Ok(Self { current: cipher(&key), previous: Vec::new() })
            }
        }
    }

    /// With the keys of the file.
    pub fn with(keys: &VaultKeys) -> Self {
        Self { current: cipher(&keys.current), previous: keys.previous.iter().map(cipher).collect() }
    }

    /// With a key that is gone with this process.
    pub fn of_this_process() -> Self {
        Self { current: cipher(&new_key().expect("the system has random numbers")), previous: Vec::new() }
    }

    /// Seals a text for a place.
    pub fn seal(&self, text: &[u8], place: &str) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).expect("the system has random numbers");
        let payload = Payload { msg: text, aad: place.as_bytes() };
        let sealed = self.current.encrypt(&XNonce::from(nonce), payload).expect("the text is short");
        [&nonce[..], &sealed].concat()
    }

    /// Opens what was sealed for a place. None: by none of these keys, or for another place, or it was changed.
    pub fn unseal(&self, sealed: &[u8], place: &str) -> Option<Opened> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let ciphers = std::iter::once(&self.current).chain(&self.previous);
        ciphers.enumerate().find_map(|(i, cipher)| {
            let payload = Payload { msg: text, aad: place.as_bytes() };
            let text = cipher.decrypt(&XNonce::from(*nonce), payload).ok()?;
            Some(Opened { text: text.into(), is_old: i > 0 })
        })
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", 1 + self.previous.len())
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened(..)")
    }
}

fn cipher(key: &Arc<[u8; 32]>) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new((&**key).into())
}

fn new_key() -> Result<Arc<[u8; 32]>, String> {
    let mut key = [0; 32];
    SystemRandom::new().fill(&mut key).map_err(|_| "the system has no random numbers")?;
    Ok(Arc::new(key))
}

/// The key in a file, which is made if it is not there.
fn own_key(path: &Path) -> Result<Arc<[u8; 32]>, String> {
    let read = || {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        decode(&text).ok_or_else(|| "it is no key: 32 bytes in base64".to_owned())
    };
    let mut options = fs::OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let key = new_key()?;
            let text = base64_simd::STANDARD.encode_to_string(*key);
            let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
            written.map_err(|error| error.to_string())?;
            Ok(key)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => read(),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(current: u8, previous: &[u8]) -> VaultKeys {
        let key = |byte: u8| Arc::new([byte; 32]);
        VaultKeys { current: key(current), previous: previous.iter().map(|byte| key(*byte)).collect() }
    }

    fn vault(current: u8, previous: &[u8]) -> Vault {
        Vault::open(Some(&keys(current, previous)), Path::new("/nowhere")).unwrap()
    }

    #[test]
    fn only_the_same_place_and_a_known_key_open() {
        let sealed = vault(1, &[]).seal(b"secret", "a/1");
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        let opened = vault(1, &[]).unseal(&sealed, "a/1").unwrap();
        assert_eq!((&**opened.text, opened.is_old), (&b"secret"[..], false));
        assert!(vault(1, &[]).unseal(&sealed, "a/2").is_none());
        assert!(vault(2, &[]).unseal(&sealed, "a/1").is_none());
        assert!(vault(2, &[1]).unseal(&sealed, "a/1").unwrap().is_old);
        let mut changed = sealed;
        *changed.last_mut().unwrap() ^= 1;
        assert!(vault(1, &[]).unseal(&changed, "a/1").is_none());
    }

    #[test]
    fn a_key_is_made_once_and_is_for_nobody_else() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let sealed = Vault::open(None, folder.path()).unwrap().seal(b"secret", "a");
        let again = Vault::open(None, folder.path()).unwrap();
        assert_eq!(&**again.unseal(&sealed, "a").unwrap().text, b"secret");
        let mode = fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
