//! Listening on a socket file: who may enter, and what to do with a file that is already there.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::{SocketAddr, UnixStream},
    },
    path::{Path, PathBuf},
};

use mio::{Interest, Registry, Token, event::Source};

/// A listener that removes its socket file when it is dropped.
#[derive(Debug)]
pub struct UnixListener {
    inner: mio::net::UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file, so that a successor's file is left alone.
    identity: (u64, u64),
}

impl UnixListener {
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        // A path that no socket can have must not leave a directory or a lock file behind.
        SocketAddr::from_pathname(path)?;
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        // Two processes that start at once must not take each other's fresh file for a stale one.
        // Opened without truncating: in a directory that others may write to, the name may lead to any file.
        let lock = File::options().write(true).create(true).truncate(false).open(lock_path(path))?;
        lock.lock()?;
        remove_stale(path)?;
        let inner = mio::net::UnixListener::bind(path)?;
        // Nobody can connect in between: a connection waits for `accept`, and others are kept out by the
        // directory's mode where it is ours.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { inner, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) })
    }

    pub(super) fn accept(&self) -> io::Result<mio::net::UnixStream> {
        self.inner.accept().map(|(stream, _)| stream)
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
        {
            // If it cannot be removed now, the next controller takes it over as stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file that nobody listens on any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is not a socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

impl Source for UnixListener {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.inner.register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.inner.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.inner.deregister(registry)
    }
}
