//! Who we are and whom we trust, like ssh.
//!
//! Every host (more exactly: every `VRUN_HOME`) has one Ed25519 key pair; a peer is trusted when its public key is
//! pinned under a name. There are no certificates, no authorities and no expiry, and pinning is for both directions:
//! a peer may be dialled, and may dial.
//!
//! ```text
//!   VRUN_HOME/            0700
//!     key                 0600   PKCS#8 in PEM; made on first use, never overwritten
//!     peers               0600   NAME vrun-ed25519 BASE64 [ADDRESS]      one peer per line, # for comments
//! ```
//!
//! A public key is written as `vrun-ed25519 BASE64`, BASE64 being its 32 raw bytes.

use std::{
    fmt, fs, io,
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use aws_lc_rs::{digest, rand, signature::Ed25519KeyPair};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use rustls::{
    crypto::aws_lc_rs::sign::any_eddsa_type,
    pki_types::{PrivatePkcs8KeyDer, pem::PemObject},
    sign::SigningKey,
};

/// Algorithm name in the text form of a public key.
pub const ALGORITHM: &str = "vrun-ed25519";
/// The word that means "the origin" where the name of a host is expected; no peer can have it as its name.
pub const HOME: &str = "home";

/// The DER of an Ed25519 SubjectPublicKeyInfo up to the 32 bytes of the key (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// No key or peers file is larger than this many bytes.
const FILE_MAX: u64 = 1 << 20;

/// What is wrong with the identity of this host or its list of peers.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system refuses something.
    #[error("cannot {verb} {path}: {source}", path = path.display())]
    Io {
        /// What was to be done, as in "cannot read".
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is in the reach of others, or is not ours.
    #[error("others can {what} {path} (mode {mode:04o}, owner {owner}): make it yours with mode 0600, or remove it",
        path = path.display())]
    Exposed {
        /// What others can do with it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
        /// Its user id.
        owner: u32,
    },
    /// The key file has something else in it.
    #[error("{path} is not an Ed25519 private key in PKCS#8: remove it to have a new one made", path = path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// No entropy.
    #[error("cannot make a key pair: the system gives no random numbers")]
    NoRandom,
    /// This text is not a public key.
    #[error("`{0}` is not a public key: write `{ALGORITHM} BASE64`, as `vctl key` prints it")]
    NotAPublicKey(String),
    /// This is not the name of a peer.
    #[error("`{0}` cannot be the name of a peer: use 1 to 64 of A-Z a-z 0-9 . _ - and not `{HOME}`")]
    BadName(String),
    /// This is not the address of a peer.
    #[error("`{0}` cannot be the address of a peer: write HOST or HOST:PORT")]
    BadAddress(String),
    /// The peers file has a line that cannot be understood.
    #[error("line {line} of {path} is wrong: {what}", path = path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// A sentence about it.
        what: String,
    },
}

fn failed<'a>(verb: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> KeyError + 'a {
    move |source| KeyError::Io {
        verb,
        path: path.into(),
        source,
    }
}

/// An Ed25519 public key: what a host is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// From the 32 bytes of RFC 8032.
    pub fn from_bytes(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    /// The 32 bytes of RFC 8032.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// `SHA256:` and the base64 of the digest of the 32 bytes: for people to compare.
    pub fn fingerprint(&self) -> String {
        format!(
            "SHA256:{}",
            STANDARD_NO_PAD.encode(digest::digest(&digest::SHA256, &self.0))
        )
    }

    /// As the SubjectPublicKeyInfo that TLS carries (RFC 7250).
    pub(crate) fn to_spki(self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }

    /// From a SubjectPublicKeyInfo; `None` if it is of another algorithm or malformed.
    pub(crate) fn from_spki(spki: &[u8]) -> Option<PublicKey> {
        Some(PublicKey(spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM} {}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        let mut words = text.split_whitespace();
        let key = match (words.next(), words.next(), words.next()) {
            (Some(ALGORITHM), Some(base64), None) => STANDARD.decode(base64).ok(),
            _ => None,
        };
        let key = key.and_then(|bytes| bytes.try_into().ok());
        key.map(PublicKey)
            .ok_or_else(|| KeyError::NotAPublicKey(text.trim().into()))
    }
}

/// The key pair of this host.
#[derive(Clone)]
pub struct Identity {
    key: Arc<dyn SigningKey>,
    public: PublicKey,
}

impl Identity {
    /// Reads `dir/key`, and makes the directory and a new key pair if there is none.
    ///
    /// Two processes doing this at once end up with the same key. Errors: [`KeyError::Exposed`] if others can read the
    /// file or it belongs to somebody else, [`KeyError::NotAKey`], [`KeyError::Io`].
    pub fn open(dir: &Path) -> Result<Identity, KeyError> {
        let path = dir.join("key");
        let pem = match read_private(&path, 0o077, "read")? {
            Some(pem) => pem,
            None => {
                create(dir, &path)?;
                read_private(&path, 0o077, "read")?.ok_or_else(|| KeyError::NotAKey { path: path.clone() })?
            }
        };
        let not_a_key = || KeyError::NotAKey { path: path.clone() };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| not_a_key())?;
        let key = any_eddsa_type(&der).map_err(|_| not_a_key())?;
        let public = key
            .public_key()
            .and_then(|spki| PublicKey::from_spki(&spki))
            .ok_or_else(not_a_key)?;
        Ok(Identity { key, public })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn signing_key(&self) -> Arc<dyn SigningKey> {
        self.key.clone()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// Makes a key pair at `path` in `dir` unless there is one.
fn create(dir: &Path, path: &Path) -> Result<(), KeyError> {
    let document = Ed25519KeyPair::generate_pkcs8v1(&rand::SystemRandom::new()).map_err(|_| KeyError::NoRandom)?;
    // 48 bytes of DER are exactly one 64-character line of PEM.
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(document.as_ref())
    );
    let new = write_beside(dir, "key", pem.as_bytes())?;
    // Unlike rename(2), link(2) does not replace: a key that somebody else made meanwhile wins.
    let linked = fs::hard_link(&new, path);
    let _ = fs::remove_file(&new);
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", path)(error)),
        _ => sync_directory(dir),
    }
}

/// Writes `bytes` durably to a new file of mode 0600 in `dir`, which is made if it is missing, and gives its path.
fn write_beside(dir: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf, KeyError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("create", dir))?;
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| KeyError::NoRandom)?;
    let path = dir.join(format!(".{name}.{:016x}", u64::from_ne_bytes(random)));
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&path);
        failed("write", &path)(error)
    })?;
    Ok(path)
}

fn sync_directory(dir: &Path) -> Result<(), KeyError> {
    fs::File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(failed("sync", dir))
}

/// The text of a file that must belong to us (or to root) and have none of the `forbidden` mode bits; `None` if there
/// is no such file.
fn read_private(path: &Path, forbidden: u32, what: &'static str) -> Result<Option<String>, KeyError> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed("open", path))?,
    };
    // Of the open file, so that it is the one that is read.
    let metadata = file.metadata().map_err(failed("look at", path))?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & forbidden != 0 || (owner != rustix::process::geteuid().as_raw() && owner != 0) {
        return Err(KeyError::Exposed {
            what,
            path: path.into(),
            mode,
            owner,
        });
    }
    let mut text = String::new();
    file.take(FILE_MAX)
        .read_to_string(&mut text)
        .map_err(failed("read", path))?;
    Ok(Some(text))
}

/// A host whose key is pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name here.
    pub name: String,
    /// The only key that it may show.
    pub key: PublicKey,
    /// `HOST` or `HOST:PORT`, if it is not the name.
    pub address: Option<String>,
}

impl Peer {
    /// A peer with a name and an address of the right form.
    pub fn new(name: &str, key: PublicKey, address: Option<&str>) -> Result<Peer, KeyError> {
        let right = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(right) || name == HOME {
            return Err(KeyError::BadName(name.into()));
        }
        match address {
            Some(address) if !(1..=255).contains(&address.len()) || !address.bytes().all(|b| b.is_ascii_graphic()) => {
                Err(KeyError::BadAddress(address.into()))
            }
            _ => Ok(Peer {
                name: name.into(),
                key,
                address: address.map(Into::into),
            }),
        }
    }

    /// Where to dial it: its address, or else its name.
    pub fn address(&self) -> &str {
        self.address.as_deref().unwrap_or(&self.name)
    }

    /// From a line of the peers file; `None` for an empty line or a comment.
    fn parse(line: &str) -> Result<Option<Peer>, KeyError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => Ok(None),
            [first, ..] if first.starts_with('#') => Ok(None),
            [name, algorithm, key] => Peer::new(name, format!("{algorithm} {key}").parse()?, None).map(Some),
            [name, algorithm, key, address] => {
                Peer::new(name, format!("{algorithm} {key}").parse()?, Some(address)).map(Some)
            }
            _ => Err(KeyError::NotAPublicKey(words[1..].join(" "))),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.key)?;
        self.address.iter().try_for_each(|address| write!(f, " {address}"))
    }
}

/// The pinned peers of a `VRUN_HOME`.
#[derive(Clone, Debug)]
pub struct TrustStore {
    dir: PathBuf,
    peers: Vec<Peer>,
}

impl TrustStore {
    /// Reads `dir/peers`; a missing file is an empty list.
    ///
    /// Errors: [`KeyError::Exposed`] if others can write the file, [`KeyError::BadLine`], [`KeyError::Io`].
    pub fn load(dir: &Path) -> Result<TrustStore, KeyError> {
        let mut store = TrustStore {
            dir: dir.into(),
            peers: Vec::new(),
        };
        store.parse(&store.read()?)?;
        Ok(store)
    }

    /// Pins `key` under `name`, in the file and here; a peer of that name is replaced, address included. Comments and
    /// the order of lines are kept.
    ///
    /// Errors: [`KeyError::BadName`], [`KeyError::BadAddress`] and those of [`load`](TrustStore::load); the file is
    /// then as it was.
    pub fn add(&mut self, name: &str, key: PublicKey, address: Option<&str>) -> Result<(), KeyError> {
        let peer = Peer::new(name, key, address)?;
        let path = self.dir.join("peers");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(failed("create", &self.dir))?;
        // Held until the end: of two additions at once, none is lost.
        let lock = fs::File::open(&self.dir).map_err(failed("open", &self.dir))?;
        lock.lock().map_err(failed("lock", &self.dir))?;

        let text = self.read()?;
        self.parse(&text)?;
        let names_it = |line: &&str| line.split_whitespace().next() == Some(name);
        let mut lines: Vec<String> = text.lines().map(Into::into).collect();
        match text.lines().position(|line| names_it(&line)) {
            Some(index) => lines[index] = peer.to_string(),
            None => lines.push(peer.to_string()),
        }
        let text = lines.join("\n") + "\n";
        let new = write_beside(&self.dir, "peers", text.as_bytes())?;
        fs::rename(&new, &path).map_err(|error| {
            let _ = fs::remove_file(&new);
            failed("replace", &path)(error)
        })?;
        sync_directory(&self.dir)?;
        self.parse(&text)
    }

    /// The peer of that name.
    pub fn by_name(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// The peer with that key; the first one, if it is pinned under several names.
    pub fn by_key(&self, key: &PublicKey) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.key == *key)
    }

    /// All peers in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    fn read(&self) -> Result<String, KeyError> {
        // Who can write this file can make us trust anybody.
        Ok(read_private(&self.dir.join("peers"), 0o022, "write")?.unwrap_or_default())
    }

    fn parse(&mut self, text: &str) -> Result<(), KeyError> {
        let mut peers: Vec<Peer> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let bad = |what| KeyError::BadLine {
                path: self.dir.join("peers"),
                line: index + 1,
                what,
            };
            let Some(peer) = Peer::parse(line).map_err(|error| bad(error.to_string()))? else {
                continue;
            };
            if peers.iter().any(|other| other.name == peer.name) {
                return Err(bad(format!("there is a `{}` already", peer.name)));
            }
            peers.push(peer);
        }
        self.peers = peers;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    #[test]
    fn the_key_is_made_once_and_kept_private() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a/b");
        let first = Identity::open(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join("key")), 0o600);
        assert_eq!(Identity::open(&dir).unwrap().public(), first.public());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left behind");
        assert!(
            !format!("{first:?}").contains("key: "),
            "the private half is never printed"
        );
    }

    #[test]
    fn processes_that_create_at_once_get_the_same_key() {
        let home = tempfile::tempdir().unwrap();
        let keys: Vec<PublicKey> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Identity::open(home.path()).unwrap().public()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        Identity::open(home.path()).unwrap();
        fs::set_permissions(home.path().join("key"), fs::Permissions::from_mode(0o640)).unwrap();
        let error = Identity::open(home.path()).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn a_damaged_key_is_refused_and_kept() {
        let home = tempfile::tempdir().unwrap();
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(home.path().join("key"))
            .unwrap();
        assert!(matches!(Identity::open(home.path()), Err(KeyError::NotAKey { .. })));
        assert_eq!(fs::metadata(home.path().join("key")).unwrap().len(), 0);
    }

    #[test]
    fn public_keys_are_one_line() {
        let text = key(7).to_string();
        assert_eq!(text, "vrun-ed25519 BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
        assert_eq!(text.parse::<PublicKey>().unwrap(), key(7));
        assert_eq!(format!(" {text}\n").parse::<PublicKey>().unwrap(), key(7));
        for wrong in [
            "",
            "vrun-ed25519",
            "ssh-ed25519 AAAA",
            "vrun-ed25519 AAAA",
            &format!("{text} x"),
            &text[13..],
        ] {
            assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
        }
        assert_eq!(
            key(7).fingerprint(),
            "SHA256:S7Bvjk46dxXSAdVz0KpCN2LlXavWGiwCJ4+lbMbSlOA"
        );
        assert_eq!(PublicKey::from_spki(&key(7).to_spki()), Some(key(7)));
        assert_eq!(PublicKey::from_spki(&key(7).to_spki()[1..]), None);
    }

    #[test]
    fn peers_are_added_replaced_and_found() {
        let home = tempfile::tempdir().unwrap();
        let mut store = TrustStore::load(home.path()).unwrap();
        assert_eq!(store.iter().count(), 0);
        store.add("b", key(1), None).unwrap();
        store.add("c", key(2), Some("10.0.0.3:99")).unwrap();
        let path = home.path().join("peers");
        fs::write(&path, format!("# my hosts\n\n{}", fs::read_to_string(&path).unwrap())).unwrap();
        store.add("b", key(3), Some("b.example")).unwrap();

        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            format!("# my hosts\n\nb {} b.example\nc {} 10.0.0.3:99\n", key(3), key(2))
        );
        assert_eq!(mode(&path), 0o600);
        for store in [store, TrustStore::load(home.path()).unwrap()] {
            assert_eq!(store.by_key(&key(1)), None);
            assert_eq!(store.by_key(&key(3)).unwrap().name, "b");
            assert_eq!(store.by_name("c").unwrap().address(), "10.0.0.3:99");
            assert_eq!(store.iter().count(), 2);
        }
    }

    #[test]
    fn additions_at_once_are_all_kept() {
        let home = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let dir = home.path();
                scope.spawn(move || {
                    TrustStore::load(dir)
                        .unwrap()
                        .add(&format!("h{n}"), key(n), None)
                        .unwrap()
                });
            }
        });
        assert_eq!(TrustStore::load(home.path()).unwrap().iter().count(), 8);
    }

    #[test]
    fn what_is_not_a_name_or_an_address_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let mut store = TrustStore::load(home.path()).unwrap();
        for name in ["", "home", "a b", "a/b", "#a", "ä", &"x".repeat(65)] {
            assert!(
                matches!(store.add(name, key(1), None), Err(KeyError::BadName(_))),
                "{name}"
            );
        }
        for address in ["", "a b", "a\nb"] {
            assert!(
                matches!(store.add("a", key(1), Some(address)), Err(KeyError::BadAddress(_))),
                "{address}"
            );
        }
        assert!(!home.path().join("peers").exists());
    }

    #[test]
    fn a_wrong_or_exposed_list_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("peers");
        let good = format!("a {}\n", key(1));
        for (text, line) in [
            ("a\n", 1),
            (&format!("{good}{good}"), 2),
            (&format!("{good}b {} x y\n", key(2)), 2),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            match TrustStore::load(home.path()) {
                Err(KeyError::BadLine { line: found, .. }) => assert_eq!(found, line, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(TrustStore::load(home.path()), Err(KeyError::Exposed { .. })));
    }
}
