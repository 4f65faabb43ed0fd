//! Where controllers listen, and who can get there.

use std::{
    env, fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, symlink},
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::Path,
    process::Command,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use daffi::{Address, Error, Global};

use crate::support::{PATIENCE, TempDir, builder, in_time, until};

fn controller(address: Address) -> daffi::Result<Global> {
    builder().process_name("controller").init_controller(true).address(address).callback("f", || 1).start()
}

fn on_localhost() -> (Global, u16) {
    let g = builder()
        .process_name("controller")
        .init_controller(true)
        .host("localhost")
        .callback("f", || 1)
        .start()
        .unwrap();
    let Address::Tcp { port, .. } = *g.address() else { panic!("{:?}", g.address()) };
    (g, port)
}

/// A new node gets there and is served.
#[track_caller]
fn serves(address: &Address) {
    let node = builder().address(address.clone()).connect_timeout(PATIENCE).start().unwrap();
    assert_eq!(node.call.by_name::<i32, _>("f", ()).fg().unwrap(), 1);
    node.stop().unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn localhost_is_the_loopback_and_nothing_else() {
    in_time(|| {
        let (g, port) = on_localhost();
        serves(g.address());
        TcpStream::connect(("localhost", port)).unwrap();
        let mut others = Vec::new();
        if cfg!(target_os = "linux") {
            others.push(IpAddr::from([127, 0, 0, 2]));
        }
        // Sends nothing, but tells which address of this machine would be used.
        let outward = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("192.0.2.255:9")?;
            socket.local_addr()
        });
        others.extend(outward.ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback()));
        for other in others {
            let refused = TcpStream::connect_timeout(&SocketAddr::new(other, port), PATIENCE).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{other}");
        }
    });
}

#[test]
fn a_port_in_use() {
    in_time(|| {
        let (first, _) = on_localhost();
        let error = controller(first.address().clone()).unwrap_err();
        assert!(matches!(&error, Error::AddressInUse { address } if address == first.address()), "{error:?}");
        assert!(error.to_string().contains(&first.address().to_string()), "{error}");
        serves(first.address());
    });
}

#[test]
fn a_port_that_is_free_again() {
    in_time(|| {
        let (first, _) = on_localhost();
        let address = first.address().clone();
        serves(&address);
        first.stop().unwrap();
        let second = controller(address.clone()).unwrap();
        assert_eq!(second.address(), &address);
        serves(&address);
    });
}

#[test]
fn a_host_that_does_not_exist() {
    in_time(|| {
        let nowhere = Address::Tcp { host: "host.invalid".into(), port: 1 };
        let error = controller(nowhere.clone()).unwrap_err();
        assert!(matches!(&error, Error::AddressUnusable { address, .. } if *address == nowhere), "{error:?}");
        let foreign = Address::Tcp { host: "203.0.113.1".into(), port: 0 };
        let error = controller(foreign).unwrap_err();
        assert!(matches!(error, Error::AddressUnusable { .. }), "{error:?}");
    });
}

#[test]
fn a_socket_file_in_use() {
    in_time(|| {
        let directory = TempDir::new();
        let address = Address::Unix(directory.join("s"));
        let first = controller(address.clone()).unwrap();
        let error = controller(address.clone()).unwrap_err();
        assert!(matches!(&error, Error::AddressInUse { address: told } if *told == address), "{error:?}");
        serves(first.address());
        first.stop().unwrap();
        let second = controller(address).unwrap();
        serves(second.address());
    });
}

#[test]
fn the_socket_of_another_program() {
    in_time(|| {
        let directory = TempDir::new();
        let path = directory.join("s");
        let other = UnixListener::bind(&path).unwrap();
        let error = controller(Address::Unix(path.clone())).unwrap_err();
        assert!(matches!(error, Error::AddressInUse { .. }), "{error:?}");
        // It sees a knock at most, and goes on.
        let mut visitor = UnixStream::connect(&path).unwrap();
        visitor.write_all(b"hello").unwrap();
        other.set_nonblocking(true).unwrap();
        let heard = other.incoming().map_while(Result::ok).any(|mut stream| {
            stream.set_nonblocking(true).unwrap();
            let mut text = [0; 5];
            stream.read_exact(&mut text).is_ok() && &text == b"hello"
        });
        assert!(heard);
    });
}

#[test]
fn a_socket_file_that_a_dead_process_left() {
    in_time(|| {
        let directory = TempDir::new();
        let path = directory.join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let g = controller(Address::Unix(path.clone())).unwrap();
        serves(g.address());
        assert_eq!(mode(&path), 0o600);
    });
}

/// Listening there fails for this reason, which the error has from the operating system, and leaves nothing behind.
#[track_caller]
fn unusable(path: &Path, reason: ErrorKind) {
    let error = controller(Address::Unix(path.to_owned())).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    let Error::AddressUnusable { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind(), reason, "{error}");
}

/// Controllers that start at once where a dead process has left its file: one of them gets it.
#[test]
fn several_controllers_at_a_socket_file_that_a_dead_process_left() {
    const CONTROLLERS: usize = 6;
    in_time(|| {
        let directory = TempDir::new();
        for round in 0..20 {
            let path = directory.join(&format!("s{round}"));
            drop(UnixListener::bind(&path).unwrap());
            let start = Barrier::new(CONTROLLERS);
            let started: Vec<_> = thread::scope(|scope| {
                let start = || {
                    start.wait();
                    controller(Address::Unix(path.clone()))
                };
                let starts: Vec<_> = (0..CONTROLLERS).map(|_| scope.spawn(start)).collect();
                starts.into_iter().map(|start| start.join().unwrap()).collect()
            });
            let (running, refused): (Vec<_>, Vec<_>) = started.into_iter().partition(Result::is_ok);
            assert_eq!(running.len(), 1, "{round}: {refused:?}");
            let in_use = |refused: &daffi::Result<_>| matches!(refused, Err(Error::AddressInUse { .. }));
            assert!(refused.iter().all(in_use), "{round}: {refused:?}");
            serves(&Address::Unix(path));
        }
    });
}

#[test]
fn a_file_that_is_not_a_socket() {
    in_time(|| {
        let directory = TempDir::new();
        let path = directory.join("data");
        fs::write(&path, "precious").unwrap();
        unusable(&path, ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        // Below a file there is no room either.
        unusable(&path.join("s"), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    });
}

#[test]
fn a_link_to_a_file_is_left_alone() {
    in_time(|| {
        let directory = TempDir::new();
        let (target, path) = (directory.join("data"), directory.join("s"));
        fs::write(&target, "precious").unwrap();
        symlink(&target, &path).unwrap();
        unusable(&path, ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    });
}

#[test]
fn a_directory_without_permission() {
    in_time(|| {
        let directory = TempDir::new();
        let closed = directory.join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
        let ours = controller(Address::Unix(directory.join("ours"))).unwrap();
        // Root may do everything, so it becomes somebody else for this.
        if fs::write(closed.join("probe"), "").is_ok() {
            let program = directory.join("program");
            fs::copy(env::current_exe().unwrap(), &program).unwrap();
            let child = Command::new(program)
                .args(["--exact", "addresses::child_without_permission", "--ignored", "--nocapture"])
                .env(FOREIGN, directory.path())
                .current_dir("/")
                .uid(NOBODY)
                .gid(NOBODY)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&child.stdout);
            let errors = String::from_utf8_lossy(&child.stderr);
            assert!(child.status.success() && text.contains("1 passed"), "{text}{errors}");
        } else {
            without_permission(directory.path());
        }
        if cfg!(target_os = "linux") {
            unusable(Path::new("/proc/daffi/s"), ErrorKind::NotFound);
        }
        serves(ours.address());
    });
}

/// The directory of somebody else.
const FOREIGN: &str = "DAFFI_TEST_FOREIGN";
const NOBODY: u32 = 65_534;

fn without_permission(directory: &Path) {
    unusable(&directory.join("closed/s"), ErrorKind::PermissionDenied);
    unusable(&directory.join("closed/deeper/s"), ErrorKind::PermissionDenied);
}

#[test]
#[ignore = "run by another test as another user"]
fn child_without_permission() {
    let Some(directory) = env::var_os(FOREIGN) else { return };
    let directory = Path::new(&directory);
    without_permission(directory);
    // Nor may it connect to what another user runs.
    let ours = builder().unix_sock_path(directory.join("ours"));
    let error = ours.connect_timeout(Duration::from_millis(50)).start().unwrap_err();
    assert!(matches!(&error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().to_lowercase().contains("permission denied"), "{error}");
}

#[test]
fn a_path_that_is_too_long() {
    in_time(|| {
        let directory = TempDir::new();
        for length in [120, 251, 300] {
            unusable(&directory.join(&"x".repeat(length)), ErrorKind::InvalidInput);
        }
        let left: Vec<_> = directory.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
        let error = builder()
            .unix_sock_path(directory.join(&"x".repeat(120)))
            .connect_timeout(Duration::from_millis(50))
            .start()
            .unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    });
}

#[test]
fn a_socket_path_is_a_file_or_a_directory_to_put_it_in() {
    in_time(|| {
        let directory = TempDir::new();
        let existing = directory.join("existing");
        fs::create_dir(&existing).unwrap();
        let cases = [
            (directory.join("file.sock"), directory.join("file.sock")),
            (directory.join("new/deep/file.sock"), directory.join("new/deep/file.sock")),
            (existing.clone(), existing.join(".sock")),
            (directory.join("made/"), directory.join("made/.sock")),
        ];
        for (given, socket) in cases {
            let g = builder()
                .process_name("controller")
                .init_controller(true)
                .unix_sock_path(&given)
                .callback("f", || 1)
                .start()
                .unwrap();
            assert_eq!(g.address(), &Address::Unix(socket.clone()));
            assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
            // The node finds it by the same words.
            let node = builder().unix_sock_path(&given).connect_timeout(PATIENCE).start().unwrap();
            assert_eq!(node.call.by_name::<i32, _>("f", ()).fg().unwrap(), 1);
        }
    });
}

#[test]
fn only_the_owner_gets_to_a_socket_file_and_it_goes_with_the_controller() {
    in_time(|| {
        let directory = TempDir::new();
        let given = directory.join("given");
        fs::create_dir(&given).unwrap();
        fs::set_permissions(&given, fs::Permissions::from_mode(0o755)).unwrap();
        for (path, parent_mode) in [(directory.join("made/s"), 0o700), (given.join("s"), 0o755)] {
            let g = controller(Address::Unix(path.clone())).unwrap();
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), parent_mode);
            g.stop().unwrap();
            assert!(!path.exists(), "{} is still there", path.display());
            let g = controller(Address::Unix(path.clone())).unwrap();
            drop(g);
            assert!(!path.exists(), "{} is still there", path.display());
        }
    });
}

#[test]
fn a_successors_socket_file_is_left_alone() {
    in_time(|| {
        let directory = TempDir::new();
        let path = directory.join("s");
        let first = controller(Address::Unix(path.clone())).unwrap();
        fs::remove_file(&path).unwrap();
        let second = controller(Address::Unix(path.clone())).unwrap();
        first.stop().unwrap();
        assert!(path.exists());
        serves(second.address());
    });
}

#[test]
fn without_any_address_it_is_a_socket_in_the_temporary_directory() {
    in_time(|| run_with_temp_dir(&TempDir::new(), "child_at_the_default_address"));
}

/// Everybody may make a directory of that name before its user does, and what listens there could be anybody's.
#[test]
fn a_default_directory_that_others_may_write_to_is_of_no_use() {
    in_time(|| {
        let directory = TempDir::new();
        let place = directory.join("daffi");
        fs::create_dir(&place).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
        let _strangers = UnixListener::bind(place.join(".sock")).unwrap();
        run_with_temp_dir(&directory, "child_at_a_default_address_of_others");

        let directory = TempDir::new();
        let elsewhere = TempDir::new();
        symlink(elsewhere.path(), directory.join("daffi")).unwrap();
        let _strangers = UnixListener::bind(elsewhere.join(".sock")).unwrap();
        run_with_temp_dir(&directory, "child_at_a_default_address_of_others");
    });
}

/// Has another process run one of the tests below.
fn run_with_temp_dir(directory: &TempDir, test: &str) {
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("addresses::{test}"), "--ignored", "--nocapture"])
        .env("TMPDIR", directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by another test with a temporary directory of its own"]
fn child_at_a_default_address_of_others() {
    in_time(|| {
        let error = builder().init_controller(true).start().unwrap_err();
        let Error::AddressUnusable { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("choose a path with unix_sock_path"), "{error}");
        let error = builder().connect_timeout(Duration::from_millis(100)).start().unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("choose a path with unix_sock_path"), "{error}");
    });
}

#[test]
#[ignore = "run by another test with a temporary directory of its own"]
fn child_at_the_default_address() {
    in_time(|| {
        let path = env::temp_dir().join("daffi/.sock");
        let first =
            builder().process_name("first").init_controller(true).callback("f", || 1).start().unwrap();
        assert_eq!(first.address(), &Address::Unix(path.clone()));
        assert_eq!(first.address(), &Address::default_unix());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let second = builder().connect_timeout(PATIENCE).start().unwrap();
        assert_eq!(second.address(), first.address());
        assert_eq!(second.call.by_name::<i32, _>("f", ()).fg().unwrap(), 1);
    });
}

/// What strangers say who took the port for something else.
fn strange_words() -> Vec<Vec<u8>> {
    // The same every time, without a pattern.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise = (0..100_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    vec![
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello, or something like it".to_vec(),
        vec![0; 10_000],
        vec![0xff; 10_000],
        noise,
    ]
}

/// Says something and reads until the other side closes.
fn say(mut stream: impl Read + Write, words: &[u8]) {
    // It may be closed while we still talk.
    let _ = stream.write_all(words);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "it was not closed: {error}"
        ),
    }
    assert!(answer.len() < 1024, "{} bytes for a stranger", answer.len());
}

fn strangers_are_shown_the_door(longest_max: Duration) {
    in_time(move || {
        let directory = TempDir::new();
        let (tcp, port) = on_localhost();
        let unix = controller(Address::Unix(directory.join("s"))).unwrap();
        let mut longest = Duration::ZERO;
        for g in [&tcp, &unix] {
            let node = builder().address(g.address().clone()).connect_timeout(PATIENCE).start().unwrap();
            for words in strange_words() {
                let begun = Instant::now();
                if let Address::Unix(path) = g.address() {
                    let stream = UnixStream::connect(path).unwrap();
                    stream.set_read_timeout(Some(PATIENCE / 2)).unwrap();
                    say(stream, &words);
                } else {
                    let stream = TcpStream::connect(("localhost", port)).unwrap();
                    stream.set_read_timeout(Some(PATIENCE / 2)).unwrap();
                    say(stream, &words);
                }
                longest = longest.max(begun.elapsed());
                assert_eq!(node.call.by_name::<i32, _>("f", ()).fg().unwrap(), 1);
            }
            serves(g.address());
            until("only those who were let in are left", || g.processes().unwrap().len() == 2);
        }
        println!("strangers were closed after {longest:?} at most");
        assert!(longest < longest_max, "{longest:?}");
    });
}

#[test]
fn strangers_are_shown_the_door_and_nobody_else_notices() {
    // Who was not recognised would be closed after the 5 s that a handshake may take.
    strangers_are_shown_the_door(Duration::from_secs(2));
}

/// `cargo test --release --test start -- --ignored --nocapture full_size_strangers`
#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_strangers_are_shown_the_door_within_a_tenth_of_a_second() {
    strangers_are_shown_the_door(Duration::from_millis(100));
}
