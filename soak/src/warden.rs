//! Ends what a soak program leaves behind that is killed itself.
//!
//! Callees and callers see the end of their standard input, but not while they are frozen, and controllers have none to
//! look at. So another process is told who there is. It has nothing more to hear once the program is gone, however
//! that ended, and kills all that are left.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{self, Child, Command, Stdio},
    sync::Mutex,
};

use crate::process::lock;

/// The process that is told. It does its work when this is dropped, too.
#[derive(Debug)]
pub struct Warden(Mutex<Child>);

impl Warden {
    /// Starts it. In the end it removes the directory as well.
    pub fn start(program: &Path, directory: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        // A signal for all that a terminal has started is not for the one that cleans up behind them.
        command.arg("warden").arg(directory).stdin(Stdio::piped()).process_group(0);
        Ok(Self(Mutex::new(command.spawn()?)))
    }

    /// There is a process with this id.
    pub fn begins(&self, pid: u32) {
        self.tell(&format!("+{pid}\n"));
    }

    /// It is no more, and its id may soon be somebody else's.
    pub fn ends(&self, pid: u32) {
        self.tell(&format!("-{pid}\n"));
    }

    fn tell(&self, line: &str) {
        if let Some(stdin) = &mut lock(&self.0).stdin
            && let Err(error) = stdin.write_all(line.as_bytes())
        {
            eprintln!("nobody cleans up if this program is killed: {error}");
        }
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        // Its standard input is closed before it is waited for.
        let _ = lock(&self.0).wait();
    }
}

/// Plays the part.
pub fn run(directory: &Path) -> ! {
    let left = left(io::stdin().lock());
    if !left.is_empty() {
        let _ = Command::new("kill").arg("-KILL").args(left.iter().map(u32::to_string)).status();
    }
    let _ = fs::remove_dir_all(directory);
    process::exit(0);
}

/// Who has begun and not ended, when there is nothing more to hear.
fn left(lines: impl BufRead) -> BTreeSet<u32> {
    let mut left = BTreeSet::new();
    for line in lines.lines().map_while(Result::ok) {
        match line.split_at_checked(1).map(|(what, pid)| (what, pid.parse())) {
            Some(("+", Ok(pid))) => _ = left.insert(pid),
            Some(("-", Ok(pid))) => _ = left.remove(&pid),
            _ => {}
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_ended_is_left() {
        assert_eq!(left(&b"+1\n+20\n+3\n-20\n-7\n?\n"[..]), BTreeSet::from([1, 3]));
        assert_eq!(left(&b"+1\n-1\n"[..]), BTreeSet::new());
        assert_eq!(left(&b""[..]), BTreeSet::new());
    }
}
