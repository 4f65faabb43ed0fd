//! Socket files: who may connect, what to do with a file that already exists, and connecting within a time.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
            net::{SocketAddr, UnixStream},
        },
    },
    path::{self, Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use mio::{Interest, Registry, Token, event::Source};
use socket2::{Domain, SockAddr, Socket, Type};

/// A listener that removes its socket file when it is dropped.
#[derive(Debug)]
pub struct UnixListener {
    inner: mio::net::UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file, so that a successor's file is left alone.
    identity: (u64, u64),
}

impl UnixListener {
    /// Listens on `path`. With `is_default`, that is, if nobody chose the path, the directory must pass
    /// [`check_owner`].
    pub(super) fn bind(path: &Path, is_default: bool) -> io::Result<Self> {
        // An invalid socket path must not leave a directory or a lock file behind.
        SocketAddr::from_pathname(path)?;
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            if is_default {
                check_owner(directory)?;
            }
        }
        // Two processes that start at the same time must not take each other's new file for a stale one.
        let _lock = lock(&lock_path(path))?;
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // This precedes `listen`, so that nobody else can connect in between.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let inner = mio::net::UnixListener::from_std(OwnedFd::from(socket).into());
        let metadata = fs::symlink_metadata(path)?;
        // The program may be in another directory when the file is removed.
        Ok(Self { inner, path: path::absolute(path)?, identity: (metadata.dev(), metadata.ino()) })
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

/// Locks the lock file, waiting for others, which hold it only briefly.
fn lock(path: &Path) -> io::Result<File> {
    // Do not truncate: in a directory that others may write to, the name may lead to any file.
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    let until = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(LOCK_EVERY),
            Err(TryLockError::WouldBlock) => {
                let problem = format!("another process has held {} for {LOCK_TIMEOUT:?}", path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Refuses a directory in which somebody else could put a socket. This is for the default directory: anybody
/// may create one of that name in the directory for temporary files.
pub(super) fn check_owner(directory: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(directory)?;
    let others = 0o022;
    if metadata.is_dir()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & others == 0
    {
        return Ok(());
    }
    let problem = format!(
        "{} belongs to somebody else, or others may write to it: remove it, or choose a path with unix_sock_path",
        directory.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

/// How many connections may wait to be accepted, if the system allows that many.
const BACKLOG: i32 = 4096;

/// How long a starting process waits for others that are starting.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_EVERY: Duration = Duration::from_millis(5);

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
    match connect_at_once(path) {
        // Someone who does not accept right now is listening as well.
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Connects within `timeout`. Blocks meanwhile, if the listener has as many connections to accept as it may.
pub(super) fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let until = Instant::now() + timeout;
    loop {
        match connect_at_once(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= until {
                    let problem = "it is listening, but has not accepted connections for a while";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
                }
                // Nothing signals that there is room again.
                thread::sleep(CONNECT_EVERY);
            }
            connected => return connected,
        }
    }
}

/// Connects without waiting; `WouldBlock` if the listener has as many connections to accept as it may.
fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(OwnedFd::from(socket).into())
}

/// How often connecting is tried again while the listener has as many connections to accept as it may.
const CONNECT_EVERY: Duration = Duration::from_millis(10);

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

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    /// As one that is frozen.
    #[test]
    fn nobody_waits_for_a_listener_that_does_not_accept() {
        let directory = std::env::temp_dir().join(format!("daffi-full-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("s");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(1).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match connect_at_once(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let refused = UnixListener::bind(&path, false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        let late = connect(&path, Duration::from_millis(30)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        // One that goes on in time is reached.
        let accepting = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            let accepted = listener.accept().unwrap();
            (listener, accepted)
        });
        connect(&path, Duration::from_secs(20)).unwrap();
        drop(accepting.join().unwrap());
        fs::remove_dir_all(&directory).unwrap();
    }
}
